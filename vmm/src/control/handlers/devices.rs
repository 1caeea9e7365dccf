//! Disks, networks, balloon, PCI, character devices.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::memory::hex;
use crate::block::stats::OpStats;
use crate::control::command::{Answer, Args, Class, Context, Failure};
use crate::control::steered::{BarInfo, BlockInfo, IoStatus, PciInfo, Steered};
use crate::num::index;
use crate::pci::config::BarKind;

fn no_balloon() -> Failure {
    Failure::new(Class::DeviceNotActive, "No balloon device has been activated")
}

/// `balloon`.
pub fn balloon(m: &mut dyn Steered, args: &Args) -> Answer {
    m.balloon().ok_or_else(no_balloon)?;
    let bytes = args.signed("value").and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0);
    let bytes = bytes.ok_or_else(|| Failure::generic("Parameter 'target' expects a size"))?;
    // More than there is means all of it, as in QEMU.
    let all = m.memory().nodes.iter().map(|n| n.size).sum();
    m.set_balloon(bytes.min(all))?;
    Ok(json!({}))
}

/// Names of the guest's statistics (virtio 1.2, 5.5.6.4) as QEMU's `guest-stats` has them.
const STATS: [&str; 10] = [
    "stat-swap-in",
    "stat-swap-out",
    "stat-major-faults",
    "stat-minor-faults",
    "stat-free-memory",
    "stat-total-memory",
    "stat-available-memory",
    "stat-disk-caches",
    "stat-htlb-pgalloc",
    "stat-htlb-pgfail",
];

/// `query-balloon`. `stats` is an addition: what the guest last said about its memory.
pub fn query_balloon(m: &mut dyn Steered, _args: &Args) -> Answer {
    let b = m.balloon().ok_or_else(no_balloon)?;
    let mut answer = json!({"actual": b.actual});
    let known = b.stats.iter().filter_map(|(tag, v)| Some((STATS.get(usize::from(*tag))?, v)));
    let stats: serde_json::Map<String, Value> =
        known.map(|(name, v)| ((*name).to_owned(), json!(v))).collect();
    if !stats.is_empty() {
        answer["stats"] = stats.into();
    }
    Ok(answer)
}

/// `info balloon`.
pub fn show_balloon(v: &Value) -> String {
    let mut text = format!("balloon: actual={}", v["actual"].as_u64().unwrap_or(0) >> 20);
    for (key, value) in v["stats"].as_object().into_iter().flatten() {
        let name = key.trim_start_matches("stat-").replace('-', "_");
        let _ = write!(text, " {name}={value}");
    }
    text
}

/// `set_link`.
pub fn set_link(m: &mut dyn Steered, args: &Args) -> Answer {
    let name = args.text("name");
    if m.set_link(name, args.truth("up"))? { Ok(json!({})) } else { Err(Failure::no_device(name)) }
}

/// `commit`.
pub fn commit(m: &mut dyn Steered, args: &Args, _c: &mut Context) -> Result<String, Failure> {
    let name = args.text("device");
    let found = m.commit((name != "all").then_some(name)).map_err(|e| {
        Failure::generic(format!("'commit' error for '{name}': {}", Failure::from(e).desc))
    })?;
    if found || name == "all" {
        Ok(String::new())
    } else {
        // Without "Error:", as in QEMU.
        Ok(format!("Device '{name}' not found\n"))
    }
}

/// `info network` as JSON: QEMU has no such command.
pub fn networks(m: &mut dyn Steered, _args: &Args) -> Answer {
    let mac = |m: [u8; 6]| m.map(|b| format!("{b:02x}")).join(":");
    Ok(m.nets()
        .into_iter()
        .map(|n| {
            json!({
                "name": n.id,
                "model": n.model,
                "macaddr": mac(n.mac),
                "backend": n.backend,
                "backend-info": n.backend_text,
                "link": n.up,
            })
        })
        .collect())
}

/// `info network`.
pub fn show_networks(v: &Value) -> String {
    let mut text = String::new();
    for n in v.as_array().into_iter().flatten() {
        let field = |key: &str| n[key].as_str().unwrap_or_default().to_owned();
        let _ = writeln!(
            text,
            "{}: index=0,type=nic,model={},macaddr={}\n \\ {}: {}",
            field("name"),
            field("model"),
            field("macaddr"),
            field("backend"),
            field("backend-info")
        );
    }
    text
}

fn block_json(b: &BlockInfo) -> Value {
    let mut image = json!({
        "filename": b.file,
        "format": b.format,
        "virtual-size": b.size,
        "dirty-flag": false,
    });
    let mut inserted = json!({
        "file": b.file,
        "drv": b.format,
        "ro": b.read_only,
        "encrypted": b.encrypted,
        "detect_zeroes": "off",
        "backing_file_depth": b.backing.len(),
        "write_threshold": 0,
        "cache": {"writeback": b.writeback, "direct": b.direct, "no-flush": b.no_flush},
    });
    for limit in ["bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"] {
        inserted[limit] = 0.into();
    }
    if let Some(backing) = b.backing.first() {
        inserted["backing_file"] = backing.clone().into();
        image["backing-filename"] = backing.clone().into();
        image["full-backing-filename"] = backing.clone().into();
    }
    inserted["image"] = image;
    json!({
        "device": b.id,
        "qdev": b.device,
        "type": "unknown",
        "removable": false,
        "locked": false,
        "io-status": match b.status {
            IoStatus::Ok => "ok",
            IoStatus::NoSpace => "nospace",
            IoStatus::Failed => "failed",
        },
        "inserted": inserted,
    })
}

/// `query-block`.
pub fn blocks(m: &mut dyn Steered, _args: &Args) -> Answer {
    Ok(m.blocks().iter().map(block_json).collect())
}

/// `info block`.
pub fn info_block(m: &mut dyn Steered, args: &Args, _c: &mut Context) -> Result<String, Failure> {
    let wanted = args.text("device");
    let mut text = String::new();
    for b in m.blocks().iter().filter(|b| wanted.is_empty() || b.id == wanted) {
        if !text.is_empty() {
            text.push('\n');
        }
        let read_only = if b.read_only { ", read-only" } else { "" };
        let _ = writeln!(text, "{}: {} ({}{read_only})", b.id, b.file, b.format);
        let _ = writeln!(text, "    Attached to:      {}", b.device);
        match b.status {
            IoStatus::Ok => {}
            IoStatus::NoSpace => text.push_str("    I/O status:       nospace\n"),
            IoStatus::Failed => text.push_str("    I/O status:       failed\n"),
        }
        let cache = [(b.direct, ", direct"), (b.no_flush, ", ignore flushes")];
        let modes: String = cache.iter().filter(|(on, _)| *on).map(|(_, t)| *t).collect();
        let base = if b.writeback { "writeback" } else { "writethrough" };
        let _ = writeln!(text, "    Cache mode:       {base}{modes}");
        if let Some(backing) = b.backing.first() {
            let depth = b.backing.len();
            let _ = writeln!(text, "    Backing file:     {backing} (chain depth: {depth})");
        }
        if args.truth("verbose") {
            let _ = writeln!(text, "\nImages:\nimage: {}\nfile format: {}", b.file, b.format);
            let _ = writeln!(text, "virtual size: {} bytes", b.size);
            for backing in &b.backing {
                let _ = writeln!(text, "backing file: {backing}");
            }
        }
    }
    if text.is_empty() && !wanted.is_empty() {
        return Err(Failure::no_device(wanted));
    }
    Ok(text)
}

/// `query-blockstats`.
pub fn block_stats(m: &mut dyn Steered, _args: &Args) -> Answer {
    let one = |b: BlockInfo| {
        let (r, w, f, u) = (b.stats.read, b.stats.write, b.stats.flush, b.stats.unmap);
        let ns = |s: OpStats| u64::try_from(s.time.as_nanos()).unwrap_or(u64::MAX);
        let mut stats = json!({
            "rd_bytes": r.bytes,
            "wr_bytes": w.bytes,
            "unmap_bytes": u.bytes,
            "rd_operations": r.operations,
            "wr_operations": w.operations,
            "flush_operations": f.operations,
            "unmap_operations": u.operations,
            "rd_total_time_ns": ns(r),
            "wr_total_time_ns": ns(w),
            "flush_total_time_ns": ns(f),
            "unmap_total_time_ns": ns(u),
            "failed_rd_operations": r.failed,
            "failed_wr_operations": w.failed,
            "failed_flush_operations": f.failed,
            "failed_unmap_operations": u.failed,
            "wr_highest_offset": b.stats.highest_write,
            "account_invalid": false,
            "account_failed": true,
            "timed_stats": [],
        });
        // Not counted here.
        for zero in [
            "rd_merged",
            "wr_merged",
            "unmap_merged",
            "invalid_rd_operations",
            "invalid_wr_operations",
            "invalid_flush_operations",
            "invalid_unmap_operations",
        ] {
            stats[zero] = 0.into();
        }
        json!({"device": b.id, "qdev": b.device, "stats": stats})
    };
    Ok(m.blocks().into_iter().map(one).collect())
}

/// `info blockstats`.
pub fn show_block_stats(v: &Value) -> String {
    let mut text = String::new();
    for b in v.as_array().into_iter().flatten() {
        let _ = write!(text, "{}:", b["device"].as_str().unwrap_or_default());
        for key in [
            "rd_bytes",
            "wr_bytes",
            "rd_operations",
            "wr_operations",
            "flush_operations",
            "wr_total_time_ns",
            "rd_total_time_ns",
            "flush_total_time_ns",
            "rd_merged",
            "wr_merged",
        ] {
            let _ = write!(text, " {key}={}", b["stats"][key]);
        }
        text.push('\n');
    }
    text
}

/// What a class of PCI devices is called (PCI Code and ID Assignment, 1).
fn class_name(class: u16) -> Option<&'static str> {
    Some(match class {
        0x0001 => "VGA controller",
        0x0100 => "SCSI controller",
        0x0101 => "IDE controller",
        0x0106 => "SATA controller",
        0x0200 => "Ethernet controller",
        0x0280 => "Network controller",
        0x0300 => "VGA controller",
        0x0401 => "Audio controller",
        0x0600 => "Host bridge",
        0x0601 => "ISA bridge",
        0x0604 => "PCI bridge",
        0x0680 => "Bridge",
        0x0780 => "Communication controller",
        0x0c03 => "USB controller",
        _ => return None,
    })
}

fn bar_json(b: &BarInfo) -> Value {
    let address = b.base.map_or(json!(-1), |a| json!(a));
    let mut v = json!({"bar": b.bar, "size": b.len, "address": address});
    if b.kind == BarKind::Io {
        v["type"] = "io".into();
    } else {
        v["type"] = "memory".into();
        v["prefetch"] = false.into();
        v["mem_type_64"] = (b.kind == BarKind::Memory64).into();
    }
    v
}

/// `query-pci`.
pub fn pci(m: &mut dyn Steered, _args: &Args) -> Answer {
    let one = |p: PciInfo| {
        let mut class = json!({"class": p.class});
        if let Some(desc) = class_name(p.class) {
            class["desc"] = desc.into();
        }
        let mut v = json!({
            "bus": 0,
            "slot": p.slot,
            "function": p.function,
            "qdev_id": p.id,
            "class_info": class,
            "id": {
                "vendor": p.number.0,
                "device": p.number.1,
                "subsystem-vendor": p.subsystem.0,
                "subsystem": p.subsystem.1,
            },
            "irq_pin": p.pin,
            "regions": p.bars.iter().map(bar_json).collect::<Value>(),
        });
        if p.pin != 0 {
            v["irq"] = p.line.into();
        }
        v
    };
    let devices: Value = m.pci().into_iter().map(one).collect();
    Ok(json!([{"bus": 0, "devices": devices}]))
}

fn number(v: &Value) -> u64 {
    v.as_u64().unwrap_or(u64::MAX)
}

/// `info pci`.
pub fn show_pci(v: &Value) -> String {
    let mut text = String::new();
    for d in v[0]["devices"].as_array().into_iter().flatten() {
        let (slot, function) = (number(&d["slot"]), number(&d["function"]));
        let _ = writeln!(text, "  Bus  0, device {slot:>3}, function {function}:");
        let class = &d["class_info"];
        let kind = match class["desc"].as_str() {
            Some(desc) => desc.to_owned(),
            None => format!("Class {:04x}", number(&class["class"])),
        };
        let id = |key: &str| number(&d["id"][key]);
        let _ = writeln!(text, "    {kind}: PCI device {:04x}:{:04x}", id("vendor"), id("device"));
        let _ = writeln!(
            text,
            "      PCI subsystem {:04x}:{:04x}",
            id("subsystem-vendor"),
            id("subsystem")
        );
        if let Some(pin @ 1..=4) = d["irq_pin"].as_u64() {
            let letter = char::from(b'@' + crate::num::low8(pin));
            let _ = writeln!(text, "      IRQ {}, pin {letter}", d["irq"]);
        }
        for r in d["regions"].as_array().into_iter().flatten() {
            let (at, last) = (number(&r["address"]), number(&r["size"]).wrapping_sub(1));
            let end = at.wrapping_add(last);
            let _ = if r["type"] == "io" {
                writeln!(text, "      BAR{}: I/O at 0x{at:04x} [0x{end:04x}].", r["bar"])
            } else {
                let bits = if r["mem_type_64"] == true { 64 } else { 32 };
                writeln!(
                    text,
                    "      BAR{}: {bits} bit memory at 0x{at:08x} [0x{end:08x}].",
                    r["bar"]
                )
            };
        }
        let _ = writeln!(text, "      id \"{}\"", d["qdev_id"].as_str().unwrap_or_default());
    }
    text
}

/// `info qtree`.
pub fn tree(m: &mut dyn Steered, _args: &Args, _c: &mut Context) -> Result<String, Failure> {
    let mut t = String::from("bus: main-system-bus\n  type System\n");
    let all = m.mappings();
    for io in all.ports.iter().filter(|p| !p.name.contains(" BAR ")) {
        let _ = writeln!(t, "  dev: {}, id \"\"", io.name);
        let _ = writeln!(t, "    io {:016x}/{:016x}", io.start, io.len);
    }
    t.push_str("  dev: pcihost, id \"\"\n    bus: pci.0\n      type PCI\n");
    for p in m.pci() {
        let _ = writeln!(t, "      dev: {}, id \"{}\"", p.driver, p.id);
        let _ = writeln!(t, "        addr = {:02x}.{}", p.slot, p.function);
        let class =
            class_name(p.class).map_or_else(|| format!("Class {:04x}", p.class), str::to_owned);
        let _ = writeln!(
            t,
            "        class {class}, addr 00:{:02x}.{}, pci id {:04x}:{:04x} (sub {:04x}:{:04x})",
            p.slot, p.function, p.number.0, p.number.1, p.subsystem.0, p.subsystem.1
        );
        for b in &p.bars {
            let kind = if b.kind == BarKind::Io { "i/o" } else { "mem" };
            let at = b.base.unwrap_or(u64::MAX);
            let _ = writeln!(
                t,
                "        bar {}: {kind} at 0x{at:x} [0x{:x}]",
                b.bar,
                at.wrapping_add(b.len).wrapping_sub(1)
            );
        }
    }
    Ok(t)
}

/// `query-chardev`.
pub fn chardevs(m: &mut dyn Steered, _args: &Args) -> Answer {
    Ok(m.chardevs()
        .into_iter()
        .map(|c| json!({"label": c.label, "filename": c.filename, "frontend-open": c.in_use}))
        .collect())
}

/// `info chardev`.
pub fn show_chardevs(v: &Value) -> String {
    let mut text = String::new();
    for c in v.as_array().into_iter().flatten() {
        let field = |key: &str| c[key].as_str().unwrap_or_default();
        let _ = writeln!(text, "{}: filename={}", field("label"), field("filename"));
    }
    text
}

/// `ringbuf-read`: UTF-8 text, or base64 on request.
pub fn ring_read(m: &mut dyn Steered, args: &Args) -> Answer {
    let size = args.signed("size").filter(|s| *s > 0);
    let size = size.ok_or_else(|| Failure::generic("size must be greater than zero"))?;
    let most = index(u64::try_from(size).unwrap_or(0)).min(1 << 20);
    match args.text("format") {
        "" | "utf8" => {
            let bytes = m.read_ring(args.text("device"), most)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned().into())
        }
        "base64" => Ok(base64(&m.read_ring(args.text("device"), most)?).into()),
        other => {
            Err(Failure::generic(format!("Parameter 'format' does not accept value '{other}'")))
        }
    }
}

/// `ringbuf_read`.
pub fn show_ring(v: &Value) -> String {
    let text = v.as_str().unwrap_or_default();
    let visible = |c: char| match c {
        '\\' => "\\\\".to_owned(),
        c if (c < ' ' && c != '\n' && c != '\t') || c == '\x7f' => {
            format!("\\u{}", hex(u64::from(u32::from(c)), 4))
        }
        c => c.to_string(),
    };
    text.chars().map(visible).collect::<String>() + "\n"
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let word =
            group.iter().fold(0u32, |w, b| w << 8 | u32::from(*b)) << (8 * (3 - group.len()));
        for digit in 0..4 {
            if digit <= group.len() {
                let value = word >> (18 - 6 * digit) & 63;
                text.push(char::from(DIGITS[index(u64::from(value))]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn base64_of_rfc_4648() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(super::base64(plain.as_bytes()), coded);
        }
    }
}
