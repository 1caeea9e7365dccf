//! Who may use whom. Dependencies point one way:
//!
//! ```text
//! bins -> vmm, imgcore, hostprep        vmm -> imgcore        hostprep alone
//! within imgcore: hostile (tests only) -> ops -> guest -> graph -> format -> storage
//! ```
//!
//! No format uses another format. No library prints, exits, or reads arguments or the environment.

use crate::source::{Source, paths, sources};
use std::path::Path;

/// Floors of `imgcore`, lowest first. A module that is not named here is ground: everybody may use it, and
/// it may use no floor.
pub const FLOORS: &[&str] = &["storage", "format", "graph", "guest", "ops", "hostile"];

/// What each library may use of the workspace.
pub const LIBRARIES: &[(&str, &[&str])] =
    &[("imgcore", &[]), ("vmm", &["imgcore"]), ("hostprep", &[])];

/// Modules of `imgcore::format` that are formats. A folder is one anyway; other files are shared helpers.
const FORMATS: &[&str] = &[
    "raw",
    "qcow2",
    "qcow",
    "vmdk",
    "vdi",
    "vpc",
    "vhdx",
    "qed",
    "parallels",
    "luks",
    "dmg",
    "cloop",
    "bochs",
    "cow",
];

/// What a library never says.
const FORBIDDEN: &[(&str, &str)] = &[
    ("println!", "prints"),
    ("eprintln!", "prints"),
    ("print!", "prints"),
    ("eprint!", "prints"),
    ("dbg!", "prints"),
    ("process::exit", "exits"),
    ("process::abort", "exits"),
    ("env::args", "reads the arguments"),
    ("env::var", "reads the environment"),
    ("todo!", "is unfinished"),
    ("unimplemented!", "is unfinished"),
];

/// Everything in the libraries below `workspace` that points the wrong way.
///
/// # Errors
/// A sentence when a source cannot be read.
pub fn wrong_arrows(workspace: &Path) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    for (library, allowed) in LIBRARIES {
        for source in sources(&workspace.join(library).join("src"))? {
            found.extend(between_crates(library, allowed, &source));
            found.extend(forbidden(&source));
            if *library == "imgcore" {
                found.extend(between_floors(&source));
            }
        }
    }
    Ok(found)
}

fn between_crates(library: &str, allowed: &[&str], source: &Source) -> Vec<String> {
    let others: Vec<&str> =
        LIBRARIES.iter().map(|(name, _)| *name).filter(|n| *n != library).collect();
    let wrong = |name: &str| others.contains(&name) && !allowed.contains(&name);
    paths(source, &others)
        .into_iter()
        .filter(|(_, path)| path.first().is_some_and(|name| wrong(name)))
        .map(|(line, path)| complaint(source, line, &format!("{library} uses {}", path.join("::"))))
        .collect()
}

/// Arrows within `imgcore`.
#[must_use]
pub fn between_floors(source: &Source) -> Vec<String> {
    let floor =
        |name: Option<&String>| name.and_then(|name| FLOORS.iter().position(|floor| floor == name));
    // The crate's root only declares and re-exports.
    let Some(own) = source.module.first() else { return Vec::new() };
    let here = floor(Some(own));
    let mut found = Vec::new();
    for (line, path) in paths(source, &[]) {
        let there = floor(path.get(1));
        let up = match (here, there) {
            (Some(here), Some(there)) => there > here,
            (None, there) => there.is_some(),
            _ => false,
        };
        if up {
            let what = format!("{own} uses {}, which is above it", path.join("::"));
            found.push(complaint(source, line, &what));
        }
        if let (Some(mine), Some(other)) = (format_of(&source.module), format_of(&path[1..]))
            && mine != other
        {
            let what = format!("format {mine} uses format {other}");
            found.push(complaint(source, line, &what));
        }
    }
    found
}

/// The format a module path `format::X…` is in.
fn format_of(module: &[String]) -> Option<&str> {
    match module {
        [floor, name, ..] if floor == "format" && FORMATS.contains(&name.as_str()) => Some(name),
        _ => None,
    }
}

fn forbidden(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    for (index, line) in source.code.lines().enumerate() {
        for (word, does) in FORBIDDEN {
            let whole =
                |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            if line.match_indices(word).any(|(at, _)| whole(at)) {
                found.push(complaint(source, index + 1, &format!("a library {does}: {word}")));
            }
        }
    }
    found
}

fn complaint(source: &Source, line: usize, what: &str) -> String {
    format!("{}:{line}: {what}", source.path.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::blank;
    use std::path::PathBuf;

    fn source(module: &[&str], text: &str) -> Source {
        let module = module.iter().map(|s| (*s).to_owned()).collect();
        Source { path: PathBuf::from("x.rs"), module, code: blank(text) }
    }

    #[test]
    fn an_arrow_that_turns_round_is_found() {
        let up = source(&["format", "raw"], "use crate::graph::Node;");
        assert_eq!(between_floors(&up).len(), 1);
        let down =
            source(&["graph", "node"], "use crate::{format::Map, storage::File, error::Error};");
        assert!(between_floors(&down).is_empty());
        let sideways = source(&["format", "qcow2", "snapshot"], "use crate::format::vmdk::Extent;");
        assert_eq!(between_floors(&sideways).len(), 1);
        let own = source(
            &["format", "qcow2", "snapshot"],
            "use super::layout::Header; crate::format::probe::x();",
        );
        assert!(between_floors(&own).is_empty());
        let ground = source(&["error"], "use crate::ops::Job;");
        assert_eq!(between_floors(&ground).len(), 1);
    }

    #[test]
    fn a_library_that_talks_is_found() {
        assert_eq!(forbidden(&source(&[], "fn f() { eprintln!(); std::env::var(x); }")).len(), 2);
        assert!(forbidden(&source(&[], "sprintln!(); // println!()")).is_empty());
    }

    #[test]
    fn crates_point_one_way() {
        let text = "use imgcore::ops::convert;";
        assert_eq!(between_crates("hostprep", &[], &source(&[], text)).len(), 1);
        assert!(between_crates("vmm", &["imgcore"], &source(&[], text)).is_empty());
    }
}
