//! Words of a kernel line (admin-guide/kernel-parameters.rst, `next_arg` in lib/cmdline.c).

use crate::error::{Error, Result};

/// Options that may stand several times on a line, each adding to the others.
const REPEATED: [&str; 5] =
    ["console", "earlycon", "hugepagesz", "hugepages", "default_hugepagesz"];

fn key(word: &str) -> &str {
    word.split('=').next().unwrap_or(word)
}

/// The words of a line: blanks separate them unless they are between double quotes.
pub fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    for c in line.chars() {
        quoted ^= c == '"';
        if c.is_ascii_whitespace() && !quoted {
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
        } else {
            word.push(c);
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Replaces options with the keys of the wanted ones where they stand, each key once. Gives what was not there.
fn replace(words: &mut Vec<String>, wanted: &[String]) -> Vec<String> {
    let mut missing = Vec::new();
    for new in wanted {
        if REPEATED.contains(&key(new)) {
            if !words.contains(new) {
                missing.push(new.clone());
            }
            continue;
        }
        let Some(first) = words.iter().position(|word| key(word) == key(new)) else {
            missing.push(new.clone());
            continue;
        };
        words[first].clone_from(new);
        // The kernel takes the last of several; a later one would win over ours.
        let mut index = 0;
        words.retain(|word| {
            index += 1;
            index - 1 <= first || key(word) != key(new)
        });
    }
    missing
}

/// A kernel line with the wanted words: same keys are replaced, new ones appended. What follows `--` is for init,
/// not for the kernel, and stays at the end.
pub fn merge(line: &str, wanted: &[String]) -> String {
    let mut words = split(line);
    let rest = words.iter().position(|word| word == "--").map(|at| words.split_off(at));
    let missing = replace(&mut words, wanted);
    words.extend(missing);
    words.extend(rest.unwrap_or_default());
    words.join(" ")
}

/// A kernel line in which options with the keys of the wanted ones are replaced, and nothing is added.
pub fn overrule(line: &str, wanted: &[String]) -> String {
    let mut words = split(line);
    let before = words.clone();
    replace(&mut words, wanted);
    // Unchanged words keep their own spacing.
    if words == before { line.to_owned() } else { words.join(" ") }
}

/// Whether a kernel line holds the wanted words, so that they count.
pub fn hold(line: &[String], wanted: &[String]) -> bool {
    let own = line.iter().take_while(|word| *word != "--");
    let own: Vec<&String> = own.collect();
    wanted.iter().all(|new| {
        if REPEATED.contains(&key(new)) {
            return own.contains(&new);
        }
        own.iter().rfind(|word| key(word) == key(new)).is_some_and(|last| *last == new)
    })
}

/// Whether a word can stand on a kernel line and in the loaders' files without quoting.
pub fn check_word(word: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "=-_.,:/@+~".contains(c);
    if !word.is_empty() && word.chars().all(plain) && !word.starts_with(['=', '-']) {
        return Ok(());
    }
    Err(Error::usage(format!("'{}' is not a kernel option", word.escape_debug()))
        .remedy("write NAME or NAME=VALUE without blanks and quotes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn merging() {
        for (line, wanted, merged) in [
            ("", "a=1", "a=1"),
            ("quiet a=0 b", "a=1", "quiet a=1 b"),
            ("a=0 b a=2", "a=1", "a=1 b"),
            ("a hugepagesz=2M", "hugepagesz=1G", "a hugepagesz=2M hugepagesz=1G"),
            ("console=tty0", "console=ttyS0", "console=tty0 console=ttyS0"),
            ("dyndbg=\"file x  +p\" q", "a=1", "dyndbg=\"file x  +p\" q a=1"),
            ("quiet -- single a=0", "a=1", "quiet a=1 -- single a=0"),
        ] {
            assert_eq!(merge(line, &words(wanted)), merged);
            assert_eq!(merge(merged, &words(wanted)), merged);
            assert!(hold(&split(merged), &words(wanted)), "{merged}");
        }
        assert!(!hold(&words("a=1 a=2"), &words("a=1")));
        assert!(!hold(&words("quiet -- a=1"), &words("a=1")));
        assert_eq!(overrule("x  y", &words("a=1")), "x  y");
        assert_eq!(overrule("x a=0", &words("a=1 b=2")), "x a=1");
    }

    #[test]
    fn plain_words() {
        for bad in ["", "a b", "x=\"y\"", "a;b", "$(x)", "=x", "a\nb", "--"] {
            assert!(check_word(bad).is_err(), "{bad}");
        }
    }
}
