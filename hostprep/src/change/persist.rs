//! Texts of configuration files, old text in, new text out. What others wrote stays where it is.

/// First line of files that are ours alone.
pub const HEADER: &str = "# Written by rhostprep; `rhostprep undo` takes it back.\n";

/// Sets `key = value` in a file of such lines (sysctl.d): replaces the last line with that key, else appends.
pub fn set_assignment(old: &str, key: &str, value: &str) -> String {
    set_line(old, &format!("{key} = {value}"), |line| {
        line.split_once('=').is_some_and(|(name, _)| name.trim() == key)
    })
}

/// Puts `new` in place of the last line that `same` knows, or at the end.
pub fn set_line(old: &str, new: &str, same: impl Fn(&str) -> bool) -> String {
    let mut lines: Vec<&str> = old.lines().collect();
    let place = lines.iter().rposition(|line| {
        let line = line.trim();
        !line.starts_with('#') && !line.starts_with(';') && same(line)
    });
    match place {
        Some(place) if lines[place].trim() == new => return old.to_owned(),
        Some(place) => lines[place] = new,
        None => lines.push(new),
    }
    lines.join("\n") + "\n"
}

/// A text for a file of ours: the header, or what is there.
pub fn ours(old: Option<String>) -> String {
    old.unwrap_or_else(|| HEADER.to_owned())
}

/// tmpfiles.d(5): write a value at boot. Specifiers begin with a percent sign there.
pub fn set_tmpfile(old: &str, path: &str, value: &str) -> String {
    set_line(old, &format!("w {path} - - - - {value}"), |line| {
        let mut words = line.split_whitespace();
        words.next() == Some("w") && words.next() == Some(path)
    })
}

/// fstab(5): one line a mount point (or, for swap, a device).
pub fn set_fstab(old: &str, fields: [&str; 4]) -> String {
    let [source, point, kind, options] = fields;
    let new = format!("{source} {point} {kind} {options} 0 0");
    set_line(old, &new, |line| {
        let mut words = line.split_whitespace();
        let (device, place) = (words.next(), words.next());
        if kind == "swap" { device == Some(source) } else { place == Some(point) }
    })
}

/// modprobe.d(5): parameters of a module, merged with those that are there.
pub fn set_module_options(old: &str, module: &str, parameters: &[(String, String)]) -> String {
    let known = old.lines().rev().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("options") && words.next() == Some(module))
            .then(|| words.map(str::to_owned).collect::<Vec<_>>())
    });
    let mut words = known.unwrap_or_default();
    for (key, value) in parameters {
        let new = format!("{key}={value}");
        match words.iter_mut().find(|word| word.split('=').next() == Some(key)) {
            Some(word) => *word = new,
            None => words.push(new),
        }
    }
    set_line(old, &format!("options {module} {}", words.join(" ")), |line| {
        let mut words = line.split_whitespace();
        words.next() == Some("options") && words.next() == Some(module)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        assert_eq!(
            set_assignment("# c\nvm.swappiness=60\n", "vm.swappiness", "10"),
            "# c\nvm.swappiness = 10\n"
        );
        assert_eq!(set_assignment("", "a", "1"), "a = 1\n");
        let once = set_assignment("x = 1\n", "a", "1");
        assert_eq!(set_assignment(&once, "a", "1"), once);
        assert_eq!(
            set_module_options(
                "options kvm_intel ept=1 nested=0\n",
                "kvm_intel",
                &[("nested".into(), "1".into())]
            ),
            "options kvm_intel ept=1 nested=1\n"
        );
        assert_eq!(
            set_fstab("/dev/sda1 / ext4 defaults 0 1\n", ["/swapfile", "none", "swap", "defaults"]),
            "/dev/sda1 / ext4 defaults 0 1\n/swapfile none swap defaults 0 0\n"
        );
    }
}
