//! What only programs ask.

use serde_json::{Value, json};

use crate::control::command::{Answer, Args, Context};
use crate::control::steered::Steered;
use crate::control::{events, hmp, table};
use crate::cpu::models::MODELS;

/// `query-commands`.
pub fn commands(_m: &mut dyn Steered, _args: &Args) -> Answer {
    let mut names: Vec<&str> = table::TABLE.iter().filter_map(|c| c.qmp).collect();
    names.push("qmp_capabilities");
    names.sort_unstable();
    Ok(names.into_iter().map(|n| json!({"name": n})).collect())
}

/// `query-events`.
pub fn events(_m: &mut dyn Steered, _args: &Args) -> Answer {
    Ok(events::NAMES.iter().map(|n| json!({"name": n})).collect())
}

/// `query-machines`.
pub fn machines(_m: &mut dyn Steered, _args: &Args) -> Answer {
    Ok(json!([{
        "name": "pc",
        "is-default": true,
        "cpu-max": 255,
        "hotpluggable-cpus": false,
        "numa-mem-supported": true,
        "deprecated": false,
        "default-ram-id": "pc.ram",
        "acpi": true,
    }]))
}

/// `query-cpu-definitions`.
pub fn cpu_definitions(_m: &mut dyn Steered, _args: &Args) -> Answer {
    let names = MODELS.iter().map(|m| m.name).chain(["host"]);
    let one = |name: &str| {
        json!({
            "name": name,
            "typename": format!("{name}-x86_64-cpu"),
            "static": false,
            "migration-safe": name != "host",
            "deprecated": false,
        })
    };
    Ok(names.map(one).collect())
}

/// `query-target`.
pub fn target(_m: &mut dyn Steered, _args: &Args) -> Answer {
    Ok(json!({"arch": "x86_64"}))
}

/// `query-chardev-backends`.
pub fn chardev_backends(_m: &mut dyn Steered, _args: &Args) -> Answer {
    let names = ["file", "memory", "null", "pipe", "pty", "ringbuf", "socket", "stdio", "udp"];
    Ok(names.iter().map(|n| json!({"name": n})).collect())
}

/// Questions whose answer is an empty list.
pub fn nothing(_m: &mut dyn Steered, _args: &Args) -> Answer {
    Ok(json!([]))
}

/// `human-monitor-command`.
pub fn human(m: &mut dyn Steered, args: &Args) -> Answer {
    let cpu = args.number("cpu-index").map_or(0, crate::num::index);
    if cpu >= m.cpus().len() {
        return Err(crate::control::Failure::generic("Parameter 'cpu-index' expects a CPU number"));
    }
    let mut context = Context { cpu, ..Context::default() };
    let text = hmp::execute(args.text("command-line"), m, &mut context);
    Ok(Value::String(text.replace('\n', "\r\n")))
}
