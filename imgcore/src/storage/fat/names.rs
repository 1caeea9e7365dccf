//! Short names, and the entries that hold long ones (FAT specification, "FAT Long Directory Entries").

use std::collections::{HashMap, HashSet};

/// Bytes of an entry of a folder.
pub(super) const ENTRY: usize = 32;
/// Longest name, in units of UTF-16.
const MAX_NAME: usize = 255;
/// Units of a name that one entry holds.
const UNITS: usize = 13;
/// Where they are in it.
const PLACES: [usize; UNITS] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];

/// A name on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    /// Padded with spaces, without a dot.
    pub short: [u8; 11],
    /// The entries of the long name, in their order on the disk; none where the short name says all.
    pub long: Vec<[u8; ENTRY]>,
}

/// Names of one folder.
#[derive(Debug, Default)]
pub(super) struct Names {
    short: HashSet<[u8; 11]>,
    folded: HashSet<String>,
    /// The last number that was tried behind a `~`.
    tails: HashMap<Vec<u8>, u32>,
}

impl Names {
    /// The next name; `Err` says why it cannot be one.
    pub fn add(&mut self, name: &str) -> Result<Name, String> {
        let units: Vec<u16> = name.encode_utf16().collect();
        if units.len() > MAX_NAME {
            return Err(format!("has a name longer than {MAX_NAME} characters"));
        }
        if let Some(c) = name.chars().find(|c| c.is_control() || "\"*/:<>?\\|".contains(*c)) {
            return Err(format!("has a name with '{}'", c.escape_default()));
        }
        if name.ends_with(['.', ' ']) || name.starts_with(' ') {
            return Err(
                "has a name that begins or ends with a space, or ends with a dot".to_owned()
            );
        }
        if !self.folded.insert(name.to_uppercase()) {
            return Err("has the name of another file but for capitals".to_owned());
        }
        if let Some(short) = plain_short(name)
            && self.short.insert(short)
        {
            return Ok(Name { short, long: Vec::new() });
        }
        let short = self.numbered(name)?;
        Ok(Name { short, long: long_entries(&units, checksum(&short)) })
    }

    /// A short name with a number, which no other one of the folder has.
    fn numbered(&mut self, name: &str) -> Result<[u8; 11], String> {
        let trimmed = name.trim_start_matches('.');
        let (base, extension) = trimmed.rsplit_once('.').unwrap_or((trimmed, ""));
        let fit = |text: &str, len: usize| -> Vec<u8> {
            text.chars()
                .filter(|c| *c != ' ' && *c != '.')
                .map(|c| c.to_ascii_uppercase())
                .map(|c| if is_short(c) { u8::try_from(c).unwrap_or(b'_') } else { b'_' })
                .take(len)
                .collect()
        };
        let (base, extension) = (fit(base, 6), fit(extension, 3));
        let key = [&base[..], b".", &extension[..]].concat();
        let last = self.tails.entry(key).or_insert(0);
        loop {
            *last += 1;
            let tail = format!("~{last}");
            if tail.len() > 7 {
                return Err("is one of too many with similar names".to_owned());
            }
            let keep = base.len().min(8 - tail.len());
            let mut short = [b' '; 11];
            short[..keep].copy_from_slice(&base[..keep]);
            short[keep..keep + tail.len()].copy_from_slice(tail.as_bytes());
            short[8..8 + extension.len()].copy_from_slice(&extension);
            if self.short.insert(short) {
                return Ok(short);
            }
        }
    }
}

fn is_short(c: char) -> bool {
    c.is_ascii_uppercase() || c.is_ascii_digit() || "$%'-_@~`!(){}^#&".contains(c)
}

/// A name that is a short one as it stands.
fn plain_short(name: &str) -> Option<[u8; 11]> {
    let (base, extension) = name.split_once('.').unwrap_or((name, ""));
    let dotless = name.contains('.') && extension.is_empty();
    let fits = (1..=8).contains(&base.len()) && extension.len() <= 3 && !dotless;
    if !fits || !base.chars().chain(extension.chars()).all(is_short) {
        return None;
    }
    let mut short = [b' '; 11];
    short[..base.len()].copy_from_slice(base.as_bytes());
    short[8..8 + extension.len()].copy_from_slice(extension.as_bytes());
    Some(short)
}

/// Ties the entries of a long name to the short one.
fn checksum(short: &[u8; 11]) -> u8 {
    short.iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
}

fn long_entries(units: &[u16], sum: u8) -> Vec<[u8; ENTRY]> {
    let count = units.len().div_ceil(UNITS);
    let entries = units.chunks(UNITS).enumerate().map(|(n, chunk)| {
        let mut entry = [0u8; ENTRY];
        let last = if n + 1 == count { 0x40 } else { 0 };
        entry[0] = u8::try_from(n + 1).unwrap_or(u8::MAX) | last;
        entry[11] = 0x0f;
        entry[13] = sum;
        for (i, place) in PLACES.iter().enumerate() {
            // One zero ends the name, the rest is all ones.
            let unit = match i.cmp(&chunk.len()) {
                std::cmp::Ordering::Less => chunk[i],
                std::cmp::Ordering::Equal => 0,
                std::cmp::Ordering::Greater => 0xffff,
            };
            entry[*place..*place + 2].copy_from_slice(&unit.to_le_bytes());
        }
        entry
    });
    let mut all: Vec<_> = entries.collect();
    all.reverse();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shorts(names: &[&str]) -> Vec<String> {
        let mut all = Names::default();
        names
            .iter()
            .map(|n| match all.add(n) {
                Ok(name) => format!("{}+{}", String::from_utf8_lossy(&name.short), name.long.len()),
                Err(why) => why,
            })
            .collect()
    }

    #[test]
    fn short_names() {
        assert_eq!(
            shorts(&[
                "README.TXT",
                "readme.md",
                "a long name.text",
                "a long name.texts",
                "x",
                "X~1",
                "é",
                ".profile"
            ]),
            [
                "README  TXT+0",
                "README~1MD +1",
                "ALONGN~1TEX+2",
                "ALONGN~2TEX+2",
                "X~1        +1",
                "X~1~1      +1",
                "_~1        +1",
                "PROFIL~1   +1"
            ]
        );
        assert!(shorts(&["a", "A"])[1].contains("but for capitals"));
        assert!(shorts(&["a:b"])[0].contains("':'"));
        assert!(shorts(&["a."])[0].contains("dot"));
        assert!(shorts(&[&"x".repeat(256)])[0].contains("longer"));
    }

    #[test]
    fn many_similar_names() {
        let mut names = Names::default();
        let all: HashSet<_> =
            (0..20_000).map(|n| names.add(&format!("similar name {n}")).unwrap().short).collect();
        assert_eq!(all.len(), 20_000);
    }
}
