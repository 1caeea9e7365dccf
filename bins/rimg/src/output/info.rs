//! What `info` prints.

use imgcore::format::SpecificInfo;
use imgcore::ops::info::{ChildInfo, InfoReport};
use imgcore::opts::{filename, human};
use serde_json::{Value, json};

use super::{json as qemu_json, shown_name, snapshots};

/// All images of a chain, for people.
pub fn human(chain: &[InfoReport]) -> String {
    chain.iter().map(one).collect::<Vec<_>>().join("\n")
}

/// One image, or an array for a chain, for programs.
pub fn json(chain: &[InfoReport], whole_chain: bool) -> Value {
    match chain {
        [only] if !whole_chain => to_value(only),
        all => all.iter().map(to_value).collect(),
    }
}

fn one(info: &InfoReport) -> String {
    let mut text = image_lines(info);
    for child in &info.children {
        child_lines(child, "/", &mut text);
    }
    text
}

fn child_lines(child: &ChildInfo, parent: &str, text: &mut String) {
    let path = format!("{parent}{}", child.name);
    text.push_str(&format!("Child node '{path}':\n"));
    let protocol = is_protocol(&child.info.format);
    let lines = if protocol { file_lines(&child.info) } else { image_lines(&child.info) };
    for line in lines.lines() {
        text.push_str(&format!("    {line}\n"));
    }
    let mut inner = String::new();
    for below in &child.info.children {
        child_lines(below, &format!("{path}/"), &mut inner);
    }
    for line in inner.lines() {
        text.push_str(&format!("    {line}\n"));
    }
}

fn is_protocol(format: &str) -> bool {
    matches!(
        format,
        "file"
            | "host_device"
            | "host_cdrom"
            | "nbd"
            | "http"
            | "https"
            | "ssh"
            | "rbd"
            | "null-co"
            | "null-aio"
            | "vvfat"
    )
}

fn sized(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", human::size(bytes))
}

fn on_disk(info: &InfoReport) -> String {
    info.actual_size.map_or_else(|| "unavailable".to_owned(), human::size)
}

fn file_lines(info: &InfoReport) -> String {
    let mut text = format!(
        "filename: {}\nprotocol type: {}\nfile length: {}\ndisk size: {}\n",
        protocol_name(info),
        info.format,
        sized(info.virtual_size),
        on_disk(info)
    );
    specific_lines(info, &mut text);
    text
}

fn image_lines(info: &InfoReport) -> String {
    let mut text = format!(
        "image: {}\nfile format: {}\nvirtual size: {}\ndisk size: {}\n",
        shown_name::filename_of(info.filename.clone()),
        info.format,
        sized(info.virtual_size),
        on_disk(info)
    );
    if info.encrypted == Some(true) {
        text.push_str("encrypted: yes\n");
    }
    if let Some(size) = info.cluster_size {
        text.push_str(&format!("cluster_size: {size}\n"));
    }
    if info.dirty_flag == Some(true) {
        text.push_str("cleanly shut down: no\n");
    }
    if let Some(name) = &info.backing_filename {
        text.push_str(&format!("backing file: {name}"));
        match &info.full_backing_filename {
            None => text.push_str(" (cannot determine actual path)"),
            Some(full) if full != name => text.push_str(&format!(" (actual path: {full})")),
            Some(_) => {}
        }
        text.push('\n');
        if let Some(format) = &info.backing_filename_format {
            text.push_str(&format!("backing file format: {format}\n"));
        }
    }
    text.push_str(&snapshots::table(info.snapshots.as_deref().unwrap_or_default()));
    specific_lines(info, &mut text);
    text
}

fn specific_lines(info: &InfoReport, text: &mut String) {
    let Some(Value::Object(data)) = info.format_specific.as_ref().map(specific_data) else {
        return;
    };
    if !data.is_empty() {
        text.push_str("Format specific information:\n");
        dump_object(&data, 1, text);
    }
}

fn specific_data(specific: &SpecificInfo) -> Value {
    // Plain structs of numbers and text always serialize.
    let mut value = serde_json::to_value(specific).unwrap_or_default();
    value["data"].take()
}

fn dump_object(map: &serde_json::Map<String, Value>, level: usize, text: &mut String) {
    for (key, value) in qemu_json::members(map) {
        dump(&key.replace('-', " "), value, level, text);
    }
}

fn dump(key: &str, value: &Value, level: usize, text: &mut String) {
    text.push_str(&format!("{:indent$}{key}:", "", indent = level * 4));
    match value {
        Value::Object(map) => {
            text.push('\n');
            dump_object(map, level + 1, text);
        }
        Value::Array(list) => {
            text.push('\n');
            for (i, item) in list.iter().enumerate() {
                dump(&format!("[{i}]"), item, level + 1, text);
            }
        }
        Value::String(s) => text.push_str(&format!(" {s}\n")),
        other => text.push_str(&format!(" {other}\n")),
    }
}

/// The name of a file or export: a path is written so that it is not taken for anything else.
fn protocol_name(info: &InfoReport) -> String {
    match info.format.as_str() {
        "file" | "host_device" | "host_cdrom" => filename::quote_path(&info.filename),
        _ => shown_name::filename_of(info.filename.clone()),
    }
}

fn to_value(info: &InfoReport) -> Value {
    let protocol = is_protocol(&info.format);
    let name =
        if protocol { protocol_name(info) } else { shown_name::filename_of(info.filename.clone()) };
    let mut value = json!({
        "filename": name,
        "format": info.format,
        "virtual-size": info.virtual_size,
        "children": info.children.iter().map(|c| json!({
            "name": c.name,
            "info": to_value(&c.info),
        })).collect::<Vec<_>>(),
    });
    let mut set = |name: &str, v: Option<Value>| {
        if let Some(v) = v {
            value[name] = v;
        }
    };
    set("dirty-flag", info.dirty_flag.map(Value::from));
    set("actual-size", info.actual_size.map(Value::from));
    set("cluster-size", info.cluster_size.map(Value::from));
    set("encrypted", info.encrypted.filter(|e| *e).map(Value::from));
    set("compressed", info.compressed.filter(|c| *c).map(Value::from));
    set("backing-filename", info.backing_filename.clone().map(Value::from));
    set("full-backing-filename", info.full_backing_filename.clone().map(Value::from));
    set("backing-filename-format", info.backing_filename_format.clone().map(Value::from));
    set("snapshots", info.snapshots.as_deref().filter(|s| !s.is_empty()).map(snapshots::json));
    set(
        "format-specific",
        info.format_specific.as_ref().and_then(|s| serde_json::to_value(s).ok()),
    );
    value
}

#[cfg(test)]
#[path = "info_test.rs"]
mod tests;
