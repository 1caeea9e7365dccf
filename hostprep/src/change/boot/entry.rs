//! Type 1 entries of the Boot Loader Specification (UAPI.1): what systemd-boot, and GRUB of Fedora's family, list.

use super::words;

/// An entry that boots a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootEntry {
    /// As the menu shows it.
    pub title: String,
    /// Words of all `options` lines.
    pub words: Vec<String>,
}

fn fields(text: &str) -> impl Iterator<Item = (usize, &str, &str)> {
    text.lines().enumerate().filter_map(|(index, line)| {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return None;
        }
        let (key, value) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        Some((index + 1, key, value.trim()))
    })
}

/// Reads an entry; None when it boots no kernel (a firmware tool, another loader).
///
/// The error says which line is none of an entry.
pub fn parse(text: &str) -> Result<Option<BootEntry>, String> {
    let mut title = String::new();
    let mut kernel = None;
    let mut words = Vec::new();
    for (line, key, value) in fields(text) {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if !key.chars().all(plain) {
            return Err(format!("line {line}: '{}' is no key", key.escape_debug()));
        }
        match key {
            "title" => value.clone_into(&mut title),
            "linux" | "uki" | "initrd" if value.is_empty() => {
                return Err(format!("line {line}: {key} names nothing"));
            }
            "linux" if kernel.is_some() => {
                return Err(format!("line {line}: a second kernel"));
            }
            "linux" => kernel = Some(value),
            "options" => words.extend(words::split(value)),
            _ => {}
        }
    }
    Ok(kernel.map(|_| BootEntry { title, words }))
}

/// An entry with the words added to its options; None when it boots no kernel.
///
/// Errors as [`parse`], also when the changed entry would not hold the words.
pub fn edit(old: &str, wanted: &[String]) -> Result<Option<String>, String> {
    if parse(old)?.is_none() {
        return Ok(None);
    }
    let mut lines: Vec<String> = old.lines().map(str::to_owned).collect();
    let options: Vec<(usize, String)> = fields(old)
        .filter(|(_, key, _)| *key == "options")
        .map(|(line, _, value)| (line - 1, value.to_owned()))
        .collect();
    for (index, (line, value)) in options.iter().enumerate() {
        let text = if index + 1 == options.len() {
            words::merge(value, wanted)
        } else {
            words::overrule(value, wanted)
        };
        if text != *value {
            lines[*line] = format!("options {text}");
        }
    }
    if options.is_empty() {
        lines.push(format!("options {}", words::merge("", wanted)));
    }
    let text = lines.join("\n") + "\n";
    match parse(&text)? {
        Some(entry) if words::hold(&entry.words, wanted) => Ok(Some(text)),
        _ => Err("the changed entry would not hold the words".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits() {
        let wanted = ["nohz_full=2".to_owned()];
        for (old, new) in [
            (
                "title Arch\nlinux /vmlinuz\noptions root=x rw\n",
                "title Arch\nlinux /vmlinuz\noptions root=x rw nohz_full=2\n",
            ),
            ("# c\nlinux\t/v\n", "# c\nlinux\t/v\noptions nohz_full=2\n"),
            (
                "linux /v\noptions  nohz_full=1  a\noptions b\n",
                "linux /v\noptions nohz_full=2 a\noptions b nohz_full=2\n",
            ),
        ] {
            assert_eq!(edit(old, &wanted).unwrap().unwrap(), new);
            assert_eq!(edit(new, &wanted).unwrap().unwrap(), new, "not idempotent");
        }
        assert_eq!(edit("title Memtest\nefi /memtest.efi\n", &wanted).unwrap(), None);
        for bad in ["linux\n", "linux /a\nlinux /b\n", "li\u{1}nux /a\n", "linux /a\ninitrd\n"] {
            assert!(edit(bad, &wanted).unwrap_err().contains("line "), "{bad}");
        }
    }
}
