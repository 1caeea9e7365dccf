//! Whether everything that can be booted still parses, and holds the words.

use super::{entry, menu, words};
use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;

/// A way to boot this host, wherever it is written.
struct Bootable {
    path: String,
    title: String,
    words: Vec<String>,
}

impl Bootable {
    fn root(&self) -> Option<&str> {
        self.words.iter().find_map(|word| word.strip_prefix("root="))
    }
}

/// Whether a file is an entry of the Boot Loader Specification.
pub fn is_entry(path: &str) -> bool {
    path.contains("/loader/entries/") && path.ends_with(".conf")
}

/// Whether a file is a menu of GRUB.
fn is_menu(path: &str) -> bool {
    path.ends_with("/grub.cfg")
}

/// GRUB's environment block (GRUB manual, "The GRUB environment block"): 1024 bytes, a heading, lines of NAME=VALUE,
/// filled up with '#'. None when it is none.
fn environment(bytes: &[u8]) -> Option<Vec<(String, String)>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let rest = text.strip_prefix("# GRUB Environment Block\n")?;
    if bytes.len() != 1024 {
        return None;
    }
    let lines = rest.lines().filter(|line| !line.starts_with('#'));
    Some(
        lines
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
    )
}

/// Puts the values of the environment block in place of `$kernelopts` and its like.
fn expand(list: Vec<String>, values: &[(String, String)]) -> Vec<String> {
    let expand = |word: String| -> Vec<String> {
        let name = word.strip_prefix('$').map(|name| name.trim_matches(['{', '}']));
        match name.and_then(|name| values.iter().find(|(known, _)| known == name)) {
            Some((_, value)) => words::split(value),
            None => vec![word],
        }
    };
    list.into_iter().flat_map(expand).collect()
}

fn damaged(path: &str, what: String) -> Error {
    Error::new(ErrorKind::Damaged, what)
        .at(path)
        .remedy("repair the boot loader's files before the host is restarted")
}

fn bootables(host: &Host, files: &[String]) -> Result<Vec<Bootable>> {
    let mut values = Vec::new();
    for path in files.iter().filter(|path| path.ends_with("/grubenv") && host.exists(path)) {
        let bytes = host.bytes(path).unwrap_or_default();
        values = environment(&bytes)
            .ok_or_else(|| damaged(path, "is no environment block of GRUB".into()))?;
    }
    let mut found = Vec::new();
    for path in files.iter().filter(|path| is_entry(path) || is_menu(path)) {
        let Ok(text) = host.read(path) else { continue };
        let parsed = if is_entry(path) {
            let entry = entry::parse(&text).map_err(|what| damaged(path, what))?;
            entry.into_iter().map(|entry| (entry.title, entry.words)).collect::<Vec<_>>()
        } else {
            let entries = menu::entries(&text).map_err(|what| damaged(path, what))?;
            entries.into_iter().map(|entry| (entry.title, entry.words)).collect()
        };
        found.extend(parsed.into_iter().map(|(title, words)| Bootable {
            path: path.clone(),
            title,
            words: expand(words, &values),
        }));
    }
    Ok(found)
}

/// Checks that the files parse, that there is something to boot, and that every entry with the root file system of
/// the first one (others boot other systems) holds the words so that they count.
pub fn check(host: &Host, files: &[String], wanted: &[String]) -> Result<()> {
    let found = bootables(host, files)?;
    let Some(first) = found.first() else {
        return Err(Error::host(format!(
            "no entry that boots a kernel was found in {}",
            files.join(", ")
        )));
    };
    let ours = found.iter().filter(|entry| entry.root() == first.root());
    for entry in ours {
        if !words::hold(&entry.words, wanted) {
            return Err(Error::host(format!(
                "the entry '{}' does not hold {}",
                entry.title,
                wanted.join(" ")
            ))
            .at(entry.path.as_str()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_blocks() {
        let mut block = b"# GRUB Environment Block\nkernelopts=root=/dev/a ro\n".to_vec();
        assert!(environment(&block).is_none(), "too short");
        block.resize(1024, b'#');
        let values = environment(&block).unwrap();
        assert_eq!(values, [("kernelopts".to_owned(), "root=/dev/a ro".to_owned())]);
        let words = expand(vec!["$kernelopts".into(), "$tuned_params".into()], &values);
        assert_eq!(words, ["root=/dev/a", "ro", "$tuned_params"]);
    }
}
