//! Memory and addresses.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write;

use serde_json::{Value, json};

use crate::control::command::{Answer, Args, Context, Failure};
use crate::control::paging::Paging;
use crate::control::steered::{Mapping, MappingKind, NodeInfo, Steered};
use crate::num::{index, len_u64};

/// Bytes copied at a time.
const PIECE: u64 = 1 << 20;

/// A number in hexadecimal with at least so many digits.
pub fn hex(value: u64, digits: usize) -> String {
    format!("{value:0digits$x}")
}

/// `info mem`.
pub fn mappings(m: &mut dyn Steered, _args: &Args, c: &mut Context) -> Result<String, Failure> {
    let paging = Paging::of(&m.cpu_state(c.cpu)?);
    if !paging.on() {
        return Ok("PG disabled\n".into());
    }
    let digits = if paging.long() { 16 } else { 8 };
    let mut text = String::new();
    for r in paging.ranges(m) {
        let user = if r.user { 'u' } else { '-' };
        let write = if r.write { 'w' } else { '-' };
        let end = r.start.wrapping_add(r.len);
        let (start, end, len) = (hex(r.start, digits), hex(end, digits), hex(r.len, digits));
        let _ = writeln!(text, "{start}-{end} {len} {user}r{write}");
    }
    Ok(text)
}

fn line(text: &mut String, indent: usize, m: &Mapping) {
    let (kind, name) = match m.kind {
        MappingKind::Ram(0) => ("ram", m.name.clone()),
        MappingKind::Ram(offset) => ("ram", format!("{} @{offset:016x}", m.name)),
        MappingKind::Registers => ("i/o", m.name.clone()),
    };
    let last = m.start.wrapping_add(m.len).wrapping_sub(1);
    let _ = writeln!(text, "{:indent$}{:016x}-{last:016x} (prio 0, {kind}): {name}", "", m.start);
}

/// `info mtree`.
pub fn tree(m: &mut dyn Steered, args: &Args, _c: &mut Context) -> Result<String, Failure> {
    let all = m.mappings();
    let mut text = String::new();
    let spaces = [("memory", "system", &all.memory, u64::MAX), ("I/O", "io", &all.ports, 0xffff)];
    for (number, (space, root, list, last)) in spaces.into_iter().enumerate() {
        if args.truth("flat") {
            let _ = writeln!(
                text,
                "FlatView #{number}\n AS \"{space}\", root: {root}\n Root memory region: {root}"
            );
        } else {
            let _ = writeln!(
                text,
                "address-space: {space}\n  {:016x}-{last:016x} (prio 0, i/o): {root}",
                0
            );
        }
        let indent = if args.truth("flat") { 2 } else { 4 };
        list.iter().for_each(|m| line(&mut text, indent, m));
        text.push('\n');
    }
    Ok(text)
}

/// `info numa`.
pub fn numa(m: &mut dyn Steered, _args: &Args, _c: &mut Context) -> Result<String, Failure> {
    let info = m.memory();
    if !info.numa {
        return Ok("0 nodes\n".into());
    }
    let mut text = format!("{} nodes\n", info.nodes.len());
    for (i, n) in info.nodes.iter().enumerate() {
        let cpus: String = n.cpus.iter().map(|c| format!(" {c}")).collect();
        let _ = writeln!(
            text,
            "node {i} cpus:{cpus}\nnode {i} size: {} MB\nnode {i} plugged: 0 MB",
            n.size >> 20
        );
    }
    Ok(text)
}

/// `query-memory-size-summary`.
pub fn size_summary(m: &mut dyn Steered, _args: &Args) -> Answer {
    let all: u64 = m.memory().nodes.iter().map(|n| n.size).sum();
    Ok(json!({"base-memory": all, "plugged-memory": 0}))
}

/// `info memory_size_summary`.
pub fn show_size_summary(v: &Value) -> String {
    format!("base memory: {}\nplugged memory: {}", v["base-memory"], v["plugged-memory"])
}

/// `query-memdev`.
pub fn backends(m: &mut dyn Steered, _args: &Args) -> Answer {
    let one = |n: NodeInfo| {
        json!({
            "id": n.backend,
            "size": n.size,
            "merge": n.merge,
            "dump": n.dump,
            "prealloc": n.prealloc,
            "share": n.share,
            "reserve": true,
            "host-nodes": [],
            "policy": "default",
        })
    };
    Ok(m.memory().nodes.into_iter().map(one).collect())
}

/// `info memdev`.
pub fn show_backends(v: &Value) -> String {
    let mut text = String::new();
    for b in v.as_array().into_iter().flatten() {
        let _ = writeln!(text, "memory backend: {}", b["id"].as_str().unwrap_or_default());
        for key in ["size", "merge", "dump", "prealloc", "share", "reserve"] {
            let _ = writeln!(text, "  {key}:  {}", b[key]);
        }
        text.push_str("  policy: default\n  host nodes:\n\n");
    }
    text
}

/// `sum`: 16 bits, each byte added after a rotation by one to the right.
pub fn sum(m: &mut dyn Steered, args: &Args, _c: &mut Context) -> Result<String, Failure> {
    let (start, size) = (args.number("start").unwrap_or(0), args.number("size").unwrap_or(0));
    let mut sum: u16 = 0;
    for at in (0..size.min(1 << 30)).step_by(index(4096)) {
        let mut bytes = vec![0; index((size - at).min(4096))];
        if !m.read_physical(start.wrapping_add(at), &mut bytes) {
            return Err(Failure::generic(format!("no memory at {:#x}", start.wrapping_add(at))));
        }
        sum = bytes.iter().fold(sum, |s, b| s.rotate_right(1).wrapping_add(u16::from(*b)));
    }
    Ok(format!("{sum:05}"))
}

/// `pmemsave`.
pub fn save_physical(m: &mut dyn Steered, args: &Args) -> Answer {
    save(m, args, None)
}

/// `memsave`.
pub fn save_virtual(m: &mut dyn Steered, args: &Args) -> Answer {
    let cpu = args.number("cpu-index").map_or(0, index);
    let paging = Paging::of(&m.cpu_state(cpu)?);
    save(m, args, Some(paging))
}

fn save(m: &mut dyn Steered, args: &Args, paging: Option<Paging>) -> Answer {
    let name = args.text("filename");
    let (mut at, mut left) = (args.number("val").unwrap_or(0), args.number("size").unwrap_or(0));
    let explain = |e: std::io::Error| {
        let sandbox = match e.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => {
                " (the sandbox lets no files be made: -sandbox off)"
            }
            _ => "",
        };
        Failure::generic(format!("Could not open '{name}': {}{sandbox}", words(&e)))
    };
    let mut file = File::create(name).map_err(explain)?;
    while left > 0 {
        let (physical, most) = match &paging {
            None => (Some(at), PIECE),
            Some(p) => (p.translate(at, m), 4096 - at % 4096),
        };
        let mut bytes = vec![0; index(left.min(most))];
        if !physical.is_some_and(|p| m.read_physical(p, &mut bytes)) {
            let (start, size) = (args.number("val").unwrap_or(0), args.number("size").unwrap_or(0));
            return Err(Failure::generic(format!(
                "Invalid addr 0x{start:016x}/size {size} specified: nothing at 0x{at:x}"
            )));
        }
        file.write_all(&bytes).map_err(explain)?;
        at = at.wrapping_add(len_u64(bytes.len()));
        left -= len_u64(bytes.len());
    }
    Ok(json!({}))
}

/// The words of an operating system's error, without its number.
fn words(e: &std::io::Error) -> String {
    let text = e.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}
