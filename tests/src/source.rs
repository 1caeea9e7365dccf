//! Rust source as far as the tests that read it need: comments and strings blanked, test code left out.

use std::path::{Path, PathBuf};

/// One source file of a crate.
#[derive(Debug, Clone)]
pub struct Source {
    /// On disk.
    pub path: PathBuf,
    /// Module path within the crate: `["format", "qcow2", "layout"]`, empty for the root.
    pub module: Vec<String>,
    /// The text with comments, strings and test modules blanked; lines keep their numbers.
    pub code: String,
}

/// Reads all sources of the crate whose `src` folder is given; test files are left out.
///
/// # Errors
/// A sentence naming the file.
pub fn sources(src: &Path) -> Result<Vec<Source>, String> {
    let mut found = Vec::new();
    let mut todo = vec![src.to_path_buf()];
    while let Some(dir) = todo.pop() {
        let entries = std::fs::read_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path)
                    .map_err(|e| format!("{}: {e}", path.display()))?;
                let module = module_of(src, &path);
                if !module.iter().any(|name| is_test_name(name)) {
                    let code = without_tests(&blank(&text));
                    found.push(Source { path, module, code });
                }
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn is_test_name(name: &str) -> bool {
    matches!(name, "tests" | "test" | "testing")
        || name.ends_with("_test")
        || name.ends_with("_tests")
}

fn module_of(src: &Path, path: &Path) -> Vec<String> {
    let relative = path.strip_prefix(src).unwrap_or(path).with_extension("");
    let mut module: Vec<String> =
        relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let last = module.last().map(String::as_str);
    if last == Some("mod") || (module.len() == 1 && matches!(last, Some("lib" | "main"))) {
        module.pop();
    }
    module
}

/// Replaces comments and the insides of strings by spaces; line ends stay.
#[must_use]
pub fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = skipped(&chars, at);
        if end > at {
            out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        } else {
            out.push(chars[at]);
            at += 1;
        }
    }
    out
}

/// The end of the comment, string or character that starts at `at`; `at` itself where none does.
fn skipped(chars: &[char], at: usize) -> usize {
    let peek = |n: usize| chars.get(at + n).copied().unwrap_or('\0');
    let inside_word = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    match chars[at] {
        '/' if peek(1) == '/' => {
            chars[at..].iter().position(|c| *c == '\n').map_or(chars.len(), |n| at + n)
        }
        '/' if peek(1) == '*' => end_of_block(chars, at),
        '"' => end_of_string(chars, at + 1),
        'r' if !inside_word && (peek(1) == '"' || peek(1) == '#') => end_of_raw(chars, at + 1),
        'b' if !inside_word && peek(1) == 'r' => end_of_raw(chars, at + 2),
        // A character, not a lifetime: 'x' or '\…'.
        '\'' if peek(1) == '\\' => {
            chars[at + 3..].iter().position(|c| *c == '\'').map_or(chars.len(), |n| at + 4 + n)
        }
        '\'' if peek(2) == '\'' => at + 3,
        _ => at,
    }
}

fn end_of_block(chars: &[char], start: usize) -> usize {
    let mut depth = 0;
    let mut at = start;
    while at + 1 < chars.len() {
        match (chars[at], chars[at + 1]) {
            ('/', '*') => depth += 1,
            ('*', '/') => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return at;
        }
    }
    chars.len()
}

fn end_of_string(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    chars.len()
}

/// `at` is behind the `r`. Raw identifiers (`r#type`) are no strings.
fn end_of_raw(chars: &[char], at: usize) -> usize {
    let hashes = chars[at.min(chars.len())..].iter().take_while(|c| **c == '#').count();
    if chars.get(at + hashes) != Some(&'"') {
        return at - 1;
    }
    let mut end = at + hashes + 1;
    while end < chars.len() {
        let closes = chars[end] == '"'
            && chars.len() > end + hashes
            && chars[end + 1..=end + hashes].iter().all(|c| *c == '#');
        if closes {
            return end + hashes + 1;
        }
        end += 1;
    }
    chars.len()
}

/// Blanks every item behind `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    let mut from = 0;
    while let Some(at) = out[from..].find("#[cfg(test)]").map(|at| at + from) {
        let end = end_of_item(&out, at);
        let blanked: String =
            out[at..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        out.replace_range(at..end, &blanked);
        from = at;
    }
    out
}

/// The end of the item at `at`: its matching brace, or a semicolon before any brace.
fn end_of_item(code: &str, at: usize) -> usize {
    let mut depth = 0;
    for (index, c) in code[at..].char_indices() {
        match c {
            ';' if depth == 0 => return at + index + 1,
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                if depth <= 0 {
                    return at + index + 1;
                }
            }
            _ => {}
        }
    }
    code.len()
}

/// Paths named by the code, made absolute from the crate's root: line number and segments. `use` groups are
/// unfolded; `self` and `super` are resolved; paths into other crates begin with that crate's name.
#[must_use]
pub fn paths(source: &Source, crates: &[&str]) -> Vec<(usize, Vec<String>)> {
    let words = words(&source.code);
    let mut found = Vec::new();
    let mut at = 0;
    while at < words.len() {
        let (line, word) = &words[at];
        let starts =
            matches!(word.as_str(), "crate" | "super" | "self") || crates.contains(&word.as_str());
        let follows = at > 0 && matches!(words[at - 1].1.as_str(), "::" | ".");
        if starts && !follows && words.get(at + 1).is_some_and(|(_, w)| w == "::") {
            let mut prefix = Vec::new();
            at = unfold(&words, at, &mut prefix, *line, &mut found);
        } else {
            at += 1;
        }
    }
    for (_, path) in &mut found {
        *path = absolute(&source.module, path);
    }
    found
}

/// Reads one path, with its groups, from `at`; the position behind it comes back.
fn unfold(
    words: &[(usize, String)],
    mut at: usize,
    prefix: &mut Vec<String>,
    line: usize,
    found: &mut Vec<(usize, Vec<String>)>,
) -> usize {
    let depth = prefix.len();
    loop {
        match words.get(at).map(|(_, word)| word.as_str()) {
            Some("{") => {
                at += 1;
                while words.get(at).is_some_and(|(_, word)| word != "}") {
                    at = unfold(words, at, prefix, line, found).max(at + 1);
                    // An alias is no part of the path.
                    while words.get(at).is_some_and(|(_, word)| word != "," && word != "}") {
                        at += 1;
                    }
                    if words.get(at).is_some_and(|(_, word)| word == ",") {
                        at += 1;
                    }
                }
                prefix.truncate(depth);
                return at + 1;
            }
            Some(word) if word.starts_with(|c: char| c.is_alphabetic() || c == '_' || c == '*') => {
                prefix.push(word.to_owned());
                at += 1;
            }
            _ => break,
        }
        if words.get(at).is_none_or(|(_, word)| word != "::") {
            break;
        }
        at += 1;
    }
    if prefix.len() > depth {
        found.push((line, prefix.clone()));
    }
    prefix.truncate(depth);
    at
}

fn absolute(module: &[String], path: &[String]) -> Vec<String> {
    let mut base = match path.first().map(String::as_str) {
        Some("crate") => vec!["crate".to_owned()],
        Some("self" | "super") => {
            let mut base = vec!["crate".to_owned()];
            base.extend_from_slice(module);
            base
        }
        _ => return path.to_vec(),
    };
    for segment in path {
        match segment.as_str() {
            "crate" | "self" => {}
            "super" => {
                if base.len() > 1 {
                    base.pop();
                }
            }
            name => base.push(name.to_owned()),
        }
    }
    base
}

/// Identifiers, `::` and single signs, with line numbers.
fn words(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (index, line) in code.lines().enumerate() {
        let mut chars = line.char_indices().peekable();
        while let Some((start, c)) = chars.next() {
            if c.is_whitespace() {
                continue;
            }
            let mut end = start + c.len_utf8();
            if c.is_alphanumeric() || c == '_' {
                while let Some((at, next)) = chars.peek().copied() {
                    if !(next.is_alphanumeric() || next == '_') {
                        break;
                    }
                    end = at + next.len_utf8();
                    chars.next();
                }
            } else if c == ':' && chars.peek().is_some_and(|(_, next)| *next == ':') {
                end += 1;
                chars.next();
            }
            found.push((index + 1, line[start..end].to_owned()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(module: &[&str], text: &str) -> Source {
        Source {
            path: PathBuf::new(),
            module: module.iter().map(|s| (*s).to_owned()).collect(),
            code: without_tests(&blank(text)),
        }
    }

    fn named(module: &[&str], text: &str) -> Vec<String> {
        let all = paths(&source(module, text), &["imgcore"]);
        all.into_iter().map(|(_, path)| path.join("::")).collect()
    }

    #[test]
    fn groups_and_relative_paths_become_absolute() {
        assert_eq!(
            named(&["format", "qcow2"], "use crate::{graph::Node, storage::{self, File as F}};"),
            ["crate::graph::Node", "crate::storage", "crate::storage::File"]
                .map(|s| s.replace("storage::self", "storage"))
        );
        assert_eq!(named(&["format", "qcow2"], "use super::vmdk::X;"), ["crate::format::vmdk::X"]);
        assert_eq!(
            named(&["format", "qcow2"], "let x = super::super::ops::go();"),
            ["crate::ops::go"]
        );
        assert_eq!(named(&[], "imgcore::ops::convert(a)"), ["imgcore::ops::convert"]);
    }

    #[test]
    fn comments_strings_and_tests_do_not_count() {
        let text = "// crate::ops\n/* crate::ops /* x */ */ \"crate::ops\" r#\"crate::\"ops\"#; 'c'; '\\''\n\
                    #[cfg(test)]\nmod tests { use crate::ops; }\nuse crate::error;";
        assert_eq!(named(&["graph"], text), ["crate::error"]);
        assert_eq!(blank("a\"b\nc\"d").lines().count(), 2);
    }
}
