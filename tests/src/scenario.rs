//! The case tables: plain text, read into scenarios.
//!
//! ```text
//! # a comment
//! == name of a scenario
//! ref create -f qcow2 a.qcow2 1M      the reference program on both sides; not compared
//! io -f qcow2 -c 'write 0 64k' a.qcow2   qemu-io on both sides
//! img info a.qcow2                    the program under test; compared
//! stderr~ img info missing            messages may differ, exit code may not
//! hold a.qcow2                        qemu-io keeps the image open (arguments are qemu-io's)
//! release                             and lets it go
//! poke a.qcow2 8 ffffffff             overwrites bytes (hexadecimal) at an offset
//! truncate -s 1M x.raw                anything else is a line for /bin/sh
//! ```
//!
//! Markers before `img`, any number: `stderr~` both streams empty or both not; `stdout~` the same for
//! standard output; `offset~` host offsets of a map are not compared (placement is the writer's choice).
//! `@no-images` in a scenario skips the comparison of the files it leaves.

use std::path::Path;

/// A fresh directory and the lines to run in it.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// `file: name`, unique.
    pub name: String,
    /// In order.
    pub lines: Vec<Line>,
    /// Whether the files left behind are compared.
    pub images: Images,
}

/// What happens to the files a scenario leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Images {
    /// Compared as images, across the two sides.
    Compared,
    /// Left alone.
    Ignored,
}

/// One line of a scenario.
#[derive(Debug, Clone)]
pub struct Line {
    /// Line number in the table.
    pub number: usize,
    /// Text after the markers.
    pub text: String,
    /// What it does.
    pub action: Action,
}

/// What a line does.
#[derive(Debug, Clone)]
pub enum Action {
    /// Runs the program under test; compared.
    Image(Relaxed),
    /// Runs the reference program on both sides.
    Reference,
    /// Runs `qemu-io`.
    Io,
    /// Lets `qemu-io` hold an image open.
    Hold,
    /// Ends all holders.
    Release,
    /// Overwrites bytes of a file.
    Poke {
        /// File name.
        file: String,
        /// Byte offset.
        offset: u64,
        /// New bytes.
        bytes: Vec<u8>,
    },
    /// A line for `/bin/sh`.
    Shell,
}

/// What is not compared exactly on one line.
#[derive(Debug, Clone, Copy, Default)]
pub struct Relaxed {
    /// Only emptiness of standard error.
    pub stderr: bool,
    /// Only emptiness of standard output.
    pub stdout: bool,
    /// Not the host offsets of a map.
    pub offsets: bool,
}

/// Reads every `*.txt` of a directory, in the order of names.
///
/// # Errors
/// A sentence with file and line for a table that does not read.
pub fn load(dir: &Path) -> Result<Vec<Scenario>, String> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .map_err(|e| format!("{}: {e}", dir.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "txt"))
        .collect();
    files.sort();
    let mut all = Vec::new();
    for file in files {
        let text =
            std::fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        all.extend(parse(&stem, &text)?);
    }
    let mut names: Vec<_> = all.iter().map(|s: &Scenario| s.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("two scenarios are called '{}'", pair[0])),
        None => Ok(all),
    }
}

/// Reads one table.
///
/// # Errors
/// A sentence with the line for a table that does not read.
pub fn parse(stem: &str, text: &str) -> Result<Vec<Scenario>, String> {
    let mut all: Vec<Scenario> = Vec::new();
    for (index, raw) in text.lines().enumerate() {
        let (number, line) = (index + 1, raw.trim());
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix("== ") {
            let name = format!("{stem}: {}", name.trim());
            all.push(Scenario { name, lines: Vec::new(), images: Images::Compared });
            continue;
        }
        let scenario =
            all.last_mut().ok_or_else(|| format!("{stem}:{number}: no '== name' yet"))?;
        if line == "@no-images" {
            scenario.images = Images::Ignored;
        } else {
            scenario
                .lines
                .push(parse_line(number, line).map_err(|why| format!("{stem}:{number}: {why}"))?);
        }
    }
    Ok(all)
}

fn parse_line(number: usize, line: &str) -> Result<Line, String> {
    let mut relaxed = Relaxed::default();
    let mut rest = line;
    let (word, tail) = loop {
        let (word, tail) = rest.split_once(' ').unwrap_or((rest, ""));
        match word {
            "stderr~" => relaxed.stderr = true,
            "stdout~" => relaxed.stdout = true,
            "offset~" => relaxed.offsets = true,
            _ => break (word, tail.trim()),
        }
        rest = tail.trim();
    };
    let action = match word {
        "img" => Action::Image(relaxed),
        "ref" => Action::Reference,
        "io" => Action::Io,
        "hold" => Action::Hold,
        "release" => Action::Release,
        "poke" => poke(tail)?,
        _ => return Ok(Line { number, text: rest.to_owned(), action: Action::Shell }),
    };
    Ok(Line { number, text: tail.to_owned(), action })
}

fn poke(tail: &str) -> Result<Action, String> {
    let words: Vec<&str> = tail.split_whitespace().collect();
    let [file, offset, hex] = words[..] else {
        return Err("poke needs FILE OFFSET HEX".to_owned());
    };
    let offset = offset.parse().map_err(|_| format!("poke offset '{offset}' is no number"))?;
    let bytes = (0..hex.len())
        .step_by(2)
        .map(|at| hex.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()))
        .collect::<Option<Vec<u8>>>()
        .ok_or_else(|| format!("poke bytes '{hex}' are not hexadecimal pairs"))?;
    Ok(Action::Poke { file: file.to_owned(), offset, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_markers_and_helpers() {
        let text = "== a\nstderr~ offset~ img map x\npoke x 8 00ff\ncp a b\n@no-images\n";
        let all = parse("t", text).unwrap();
        assert_eq!(all[0].name, "t: a");
        assert_eq!(all[0].images, Images::Ignored);
        let Action::Image(relaxed) = &all[0].lines[0].action else { panic!("not an img line") };
        assert!(relaxed.stderr && relaxed.offsets && !relaxed.stdout);
        assert_eq!(all[0].lines[0].text, "map x");
        assert!(matches!(&all[0].lines[1].action, Action::Poke { offset: 8, .. }));
        assert!(matches!(all[0].lines[2].action, Action::Shell));
        assert!(parse("t", "img info x").unwrap_err().contains("t:1"));
    }
}
