//! Who and what the machine is; vCPUs.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::control::command::{Answer, Args, Context, Failure};
use crate::control::hmp::registers as text;
use crate::control::qmp::session;
use crate::control::steered::{CpuInfo, RunState, Steered};

/// `query-status`. `singlestep` is there for clients of old versions.
pub fn status(m: &mut dyn Steered, _args: &Args) -> Answer {
    let state = m.state();
    Ok(json!({
        "running": state == RunState::Running,
        "singlestep": false,
        "status": state.name(),
    }))
}

/// `info status`.
pub fn show_status(v: &Value) -> String {
    let running = v["running"] == true;
    let mut text = format!("VM status: {}", if running { "running" } else { "paused" });
    let status = v["status"].as_str().unwrap_or_default();
    if !running && status != "paused" {
        let _ = write!(text, " ({status})");
    }
    text
}

/// `query-kvm`.
pub fn kvm(_m: &mut dyn Steered, _args: &Args) -> Answer {
    Ok(json!({"enabled": true, "present": true}))
}

/// `info kvm`.
pub fn show_kvm(_v: &Value) -> String {
    "kvm support: enabled".into()
}

/// `query-version`.
pub fn version(_m: &mut dyn Steered, _args: &Args) -> Answer {
    Ok(session::version())
}

/// `info version`.
pub fn show_version(v: &Value) -> String {
    let q = &v["qemu"];
    let package = v["package"].as_str().unwrap_or_default();
    format!("{}.{}.{} ({package})", q["major"], q["minor"], q["micro"])
}

/// `query-name`.
pub fn name(m: &mut dyn Steered, _args: &Args) -> Answer {
    Ok(match m.name() {
        Some(name) => json!({ "name": name }),
        None => json!({}),
    })
}

/// `info name`.
pub fn show_name(v: &Value) -> String {
    v["name"].as_str().unwrap_or_default().to_owned()
}

/// `query-uuid`.
pub fn uuid(m: &mut dyn Steered, _args: &Args) -> Answer {
    let hex: String = m.uuid().iter().map(|b| format!("{b:02x}")).collect();
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    Ok(json!({"UUID": parts.join("-")}))
}

/// `info uuid`.
pub fn show_uuid(v: &Value) -> String {
    v["UUID"].as_str().unwrap_or_default().to_owned()
}

/// `query-cpus-fast`.
pub fn cpus_fast(m: &mut dyn Steered, _args: &Args) -> Answer {
    let one = |c: CpuInfo| {
        let (socket, core, thread) = c.place;
        json!({
            "cpu-index": c.index,
            "qom-path": format!("/machine/unattached/device[{}]", c.index),
            "thread-id": c.thread,
            "target": "x86_64",
            "props": {"socket-id": socket, "core-id": core, "thread-id": thread},
        })
    };
    Ok(m.cpus().into_iter().map(one).collect())
}

/// `info cpus`.
pub fn cpus(m: &mut dyn Steered, _args: &Args, context: &mut Context) -> Result<String, Failure> {
    let mut text = String::new();
    for c in m.cpus() {
        let mark = if c.index == context.cpu { '*' } else { ' ' };
        let _ = writeln!(text, "{mark} CPU #{}: thread_id={}", c.index, c.thread);
    }
    Ok(text)
}

fn known_cpu(m: &dyn Steered, index: Option<u64>) -> Option<usize> {
    let index = usize::try_from(index?).ok()?;
    (index < m.cpus().len()).then_some(index)
}

/// `cpu`.
pub fn choose_cpu(
    m: &mut dyn Steered,
    args: &Args,
    context: &mut Context,
) -> Result<String, Failure> {
    match known_cpu(m, args.number("index")) {
        Some(index) => {
            context.cpu = index;
            Ok(String::new())
        }
        None => Ok("invalid CPU index\n".into()),
    }
}

/// `info registers`.
pub fn registers(
    m: &mut dyn Steered,
    args: &Args,
    context: &mut Context,
) -> Result<String, Failure> {
    let chosen: Vec<usize> = if args.truth("all") {
        (0..m.cpus().len()).collect()
    } else if args.0.contains_key("vcpu") {
        match known_cpu(m, args.number("vcpu")) {
            Some(index) => vec![index],
            None => {
                let wanted = args.signed("vcpu").unwrap_or(-1);
                return Ok(format!("CPU#{wanted} not available\n"));
            }
        }
    } else {
        vec![context.cpu]
    };
    let mut all = String::new();
    for index in chosen {
        all.push_str(&text::show(index, &m.cpu_state(index)?));
    }
    Ok(all)
}
