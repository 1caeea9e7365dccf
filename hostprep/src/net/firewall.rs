//! nftables through its own program: tables of ours as text in one transaction, others' chains by JSON.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::error::{Error, Result};

fn nft(arguments: &[&str], input: &str) -> Result<String> {
    let missing = || {
        Error::host("the program nft is not installed")
            .remedy("apt install nftables, or dnf install nftables")
    };
    let mut child = Command::new("nft")
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|_| missing())?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends early says why in its output.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| Error::host(format!("nft: {error}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::host(format!("nft refuses: {}", said.lines().next().unwrap_or("no reason given"))))
}

/// The table's text, None when there is none.
pub fn table(name: &str) -> Option<String> {
    nft(&["list", "table", "inet", name], "").ok()
}

/// Replaces the table in one transaction; an empty body removes it.
pub fn replace(name: &str, body: &str) -> Result<()> {
    // Declaring it first makes the deletion valid whether or not it was there.
    let mut script = format!("table inet {name}\ndelete table inet {name}\n");
    if !body.is_empty() {
        script.push_str(&format!("table inet {name} {{\n{body}}}\n"));
    }
    nft(&["-f", "-"], &script).map(drop)
}

/// Puts back what `table` gave.
pub fn restore(name: &str, text: Option<&str>) -> Result<()> {
    if table(name).is_none() && text.is_none() {
        return Ok(());
    }
    let script =
        format!("table inet {name}\ndelete table inet {name}\n{}", text.unwrap_or_default());
    nft(&["-f", "-"], &script).map(drop)
}

/// The comment that marks our rules among others'.
fn mark(bridge: &str) -> String {
    format!("rhostprep:{bridge}")
}

/// A chain as (family, table, chain).
type Chain = (String, String, String);

fn objects() -> Result<Vec<Value>> {
    let text = nft(&["-j", "list", "ruleset"], "")?;
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
pub fn accepted(bridge: &str) -> Result<bool> {
    Ok(!handles(&objects()?, bridge).is_empty())
}

/// Inserts accept rules for a bridge where others drop forwarded packets. Policies stay as they are.
pub fn accept(bridge: &str) -> Result<()> {
    let objects = objects()?;
    let there = handles(&objects, bridge);
    let mut script = String::new();
    for chain in chains(&objects) {
        if there.iter().any(|(other, _)| *other == chain) {
            continue;
        }
        let (family, table, name) = &chain;
        for direction in ["iifname", "oifname"] {
            script.push_str(&format!(
                "insert rule {family} {table} {name} {direction} \"{bridge}\" counter accept comment \"{}\"\n",
                mark(bridge)
            ));
        }
    }
    if script.is_empty() { Ok(()) } else { nft(&["-f", "-"], &script).map(drop) }
}

/// Takes them out again.
pub fn withdraw(bridge: &str) -> Result<()> {
    let mut script = String::new();
    for ((family, table, chain), handle) in handles(&objects()?, bridge) {
        script.push_str(&format!("delete rule {family} {table} {chain} handle {handle}\n"));
    }
    if script.is_empty() { Ok(()) } else { nft(&["-f", "-"], &script).map(drop) }
}
