//! `help`, `info` without a word behind it, and completion.

use crate::control::command::{Command, Kind, Names};
use crate::control::steered::Steered;
use crate::control::table::TABLE;

/// What Tab leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// To be put at the cursor.
    pub insert: String,
    /// What it could be, when there is more than one possibility.
    pub choices: Vec<String>,
}

fn entry(c: &Command) -> String {
    format!("{} {} -- {}\n", c.hmp.join("|"), c.params, c.help)
}

/// Commands whose first name passes, by name.
fn list(pass: impl Fn(&str) -> bool) -> String {
    let mut all: Vec<&Command> =
        TABLE.iter().filter(|c| c.hmp.first().is_some_and(|n| pass(n))).collect();
    all.sort_by_key(|c| c.hmp[0]);
    all.into_iter().map(entry).collect()
}

/// The text of `help`, of `help WORD` and of `help info WORD`.
pub fn help(words: &str) -> String {
    let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.as_str() {
        "" => list(|name| !name.starts_with("info ")),
        "info" => info(),
        name => match TABLE.iter().find(|c| c.hmp.contains(&name)) {
            Some(c) => entry(c),
            None => format!("unknown command: '{name}'\n"),
        },
    }
}

/// All that `info` can show.
pub fn info() -> String {
    list(|name| name.starts_with("info "))
}

/// What could follow a text.
pub fn complete(text: &str, machine: &mut dyn Steered) -> Completion {
    let text = text.trim_start();
    let words: Vec<&str> = text.split_whitespace().collect();
    let (done, begun) = match (text.ends_with(char::is_whitespace), words.split_last()) {
        (_, None) => (&[][..], ""),
        (true, Some(_)) => (&words[..], ""),
        (false, Some((last, before))) => (before, *last),
    };
    let mut names = candidates(done, machine);
    names.retain(|n| n.starts_with(begun));
    names.sort();
    names.dedup();
    let Some(first) = names.first() else { return Completion::default() };
    let common = names.iter().fold(first.as_str(), |common, n| {
        let same = common.bytes().zip(n.bytes()).take_while(|(a, b)| a == b).count();
        common.get(..same).unwrap_or("")
    });
    let mut insert = common.get(begun.len()..).unwrap_or("").to_owned();
    if names.len() == 1 {
        insert.push(' ');
        names.clear();
    }
    Completion { insert, choices: names }
}

fn commands(prefix: &str) -> Vec<String> {
    let names = TABLE.iter().flat_map(|c| c.hmp);
    match prefix {
        "" => names.filter(|n| !n.contains(' ')).map(|n| (*n).to_owned()).collect(),
        p => names.filter_map(|n| n.strip_prefix(p)).map(str::to_owned).collect(),
    }
}

fn candidates(done: &[&str], machine: &mut dyn Steered) -> Vec<String> {
    let (name, given) = match done {
        [] => return commands(""),
        ["info"] | ["help" | "?", "info"] => return commands("info "),
        ["help" | "?"] => return commands(""),
        ["info", second, given @ ..] => (format!("info {second}"), given),
        [first, given @ ..] => ((*first).to_owned(), given),
    };
    let Some(command) = TABLE.iter().find(|c| c.hmp.contains(&name.as_str())) else {
        return Vec::new();
    };
    let plain = command.args.iter().filter(|a| !matches!(a.kind, Kind::Flag(_) | Kind::Any));
    let given = given.iter().filter(|w| !w.starts_with('-')).count();
    match plain.map(|a| a.kind).nth(given) {
        Some(Kind::Text(Names::Block)) => machine.blocks().into_iter().map(|b| b.id).collect(),
        Some(Kind::Text(Names::Net)) => {
            machine.nets().into_iter().flat_map(|n| [n.id, n.backend]).collect()
        }
        Some(Kind::Text(Names::Chardev)) => {
            machine.chardevs().into_iter().map(|c| c.label).collect()
        }
        Some(Kind::Bool) => vec!["on".into(), "off".into()],
        _ => Vec::new(),
    }
}
