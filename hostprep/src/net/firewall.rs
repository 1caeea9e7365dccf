//! nftables through its own program: tables of ours as text in one transaction, others' chains by JSON.

use serde_json::Value;

use crate::change::Programs;
use crate::error::{Error, Result};

fn missing(error: Error) -> Error {
    if error.message().contains("is not installed") {
        return error.remedy("apt install nftables, or dnf install nftables");
    }
    error
}

/// Runs one script: an argument, as a program never sees half of one.
fn script(programs: &Programs, text: &str) -> Result<()> {
    // The kernel takes 128 KiB as one argument; tables of ours have a few lines for each forward.
    programs.run(&["nft".into(), text.into()]).map_err(|error| {
        if error.message().contains("is not installed") {
            return missing(error);
        }
        let said = error.message().rsplit("failed: ").next().unwrap_or_default();
        Error::host(format!("nft refuses: {}", said.lines().next().unwrap_or("no reason given")))
    })
}

/// The table's text, None when there is none.
pub fn table(programs: &Programs, name: &str) -> Option<String> {
    programs.output(&["nft", "list", "table", "inet", name].map(str::to_owned)).ok()
}

/// Replaces the table in one transaction; an empty body removes it.
pub fn replace(programs: &Programs, name: &str, body: &str) -> Result<()> {
    // Declaring it first makes the deletion valid whether or not it was there.
    let mut text = format!("table inet {name}\ndelete table inet {name}\n");
    if !body.is_empty() {
        text.push_str(&format!("table inet {name} {{\n{body}}}\n"));
    }
    script(programs, &text)
}

/// Puts back what `table` gave.
pub fn restore(programs: &Programs, name: &str, text: Option<&str>) -> Result<()> {
    if text.is_none() && table(programs, name).is_none() {
        return Ok(());
    }
    let text = format!("table inet {name}\ndelete table inet {name}\n{}", text.unwrap_or_default());
    script(programs, &text)
}

/// The comment that marks our rules among others'.
pub fn mark(bridge: &str) -> String {
    format!("rhostprep:{bridge}")
}

/// A chain as (family, table, chain).
type Chain = (String, String, String);

fn objects(programs: &Programs) -> Result<Vec<Value>> {
    let command = ["nft", "-j", "list", "ruleset"].map(str::to_owned);
    let text = programs.output(&command).map_err(missing)?;
    let value: Value = serde_json::from_str(&text)
        .map_err(|error| Error::host(format!("nft's answer cannot be read: {error}")))?;
    Ok(value.get("nftables").and_then(Value::as_array).cloned().unwrap_or_default())
}

fn word(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Chains of others where accept rules belong: DOCKER-USER of Docker when there is one, for each base chain that
/// hooks forwarding and drops by policy else that chain itself.
fn chains(objects: &[Value]) -> Vec<Chain> {
    let mut found = Vec::new();
    let all: Vec<&Value> = objects.iter().filter_map(|object| object.get("chain")).collect();
    for chain in &all {
        let drops = word(chain, "hook") == "forward" && word(chain, "policy") == "drop";
        let table = word(chain, "table");
        if !drops || table.starts_with("rhostprep_") {
            continue;
        }
        let family = word(chain, "family");
        let user = all.iter().any(|other| {
            word(other, "family") == family
                && word(other, "table") == table
                && word(other, "name") == "DOCKER-USER"
        });
        let name = if user { "DOCKER-USER".to_owned() } else { word(chain, "name") };
        found.push((family, table, name));
    }
    found
}

/// Handles of our rules: chain and handle.
fn handles(objects: &[Value], bridge: &str) -> Vec<(Chain, u64)> {
    let rules = objects.iter().filter_map(|object| object.get("rule"));
    let own = rules.filter(|rule| word(rule, "comment") == mark(bridge));
    own.filter_map(|rule| {
        let chain = (word(rule, "family"), word(rule, "table"), word(rule, "chain"));
        Some((chain, rule.get("handle")?.as_u64()?))
    })
    .collect()
}

/// Whether our accept rules are there.
pub fn accepted(programs: &Programs, bridge: &str) -> Result<bool> {
    Ok(!handles(&objects(programs)?, bridge).is_empty())
}

/// Inserts accept rules for a bridge where others drop forwarded packets. Policies stay as they are.
pub fn accept(programs: &Programs, bridge: &str) -> Result<()> {
    let objects = objects(programs)?;
    let there = handles(&objects, bridge);
    let mut text = String::new();
    for chain in chains(&objects) {
        if there.iter().any(|(other, _)| *other == chain) {
            continue;
        }
        let (family, table, name) = &chain;
        for direction in ["iifname", "oifname"] {
            text.push_str(&format!(
                "insert rule {family} {table} {name} {direction} \"{bridge}\" counter accept comment \"{}\"\n",
                mark(bridge)
            ));
        }
    }
    if text.is_empty() { Ok(()) } else { script(programs, &text) }
}

/// Takes them out again.
pub fn withdraw(programs: &Programs, bridge: &str) -> Result<()> {
    let mut text = String::new();
    for ((family, table, chain), handle) in handles(&objects(programs)?, bridge) {
        text.push_str(&format!("delete rule {family} {table} {chain} handle {handle}\n"));
    }
    if text.is_empty() { Ok(()) } else { script(programs, &text) }
}
