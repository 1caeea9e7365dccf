//! grub.cfg: the menu that grub-mkconfig generates (GRUB manual, "Writing full configuration files directly").
//!
//! What is read is the shape of a script: words with their quotes, commands, blocks in braces. Nothing is executed;
//! variables stay as they stand.

/// A menu entry that boots a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MenuEntry {
    /// As the menu shows it.
    pub title: String,
    /// The kernel and the words after it.
    pub words: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    End,
    Open,
    Close,
}

/// Splits a script; the error is the line at which it breaks off.
fn tokens(text: &str) -> Result<Vec<(usize, Token)>, usize> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    let mut line = 1;
    while let Some(c) = chars.next() {
        match c {
            '\n' => {
                tokens.push((line, Token::End));
                line += 1;
            }
            ';' => tokens.push((line, Token::End)),
            c if c.is_whitespace() => {}
            '#' => while chars.next_if(|c| *c != '\n').is_some() {},
            '{' if chars.peek().is_none_or(|c| c.is_whitespace()) => {
                tokens.push((line, Token::Open));
            }
            '}' => tokens.push((line, Token::Close)),
            first => {
                let start = line;
                let mut word = String::new();
                let mut next = Some(first);
                while let Some(c) = next {
                    match c {
                        '\'' | '"' => {
                            quoted(c, &mut chars, &mut word, &mut line).ok_or(start)?;
                        }
                        '\\' => match chars.next() {
                            Some('\n') => line += 1,
                            Some(c) => word.push(c),
                            None => return Err(start),
                        },
                        '$' if chars.peek() == Some(&'{') => {
                            word.push('$');
                            for c in chars.by_ref() {
                                word.push(c);
                                if c == '}' {
                                    break;
                                }
                            }
                            if !word.ends_with('}') {
                                return Err(start);
                            }
                        }
                        c => word.push(c),
                    }
                    next = chars.next_if(|c| !c.is_whitespace() && *c != ';');
                }
                tokens.push((start, Token::Word(word)));
            }
        }
    }
    Ok(tokens)
}

fn quoted(
    quote: char,
    chars: &mut std::iter::Peekable<std::str::Chars>,
    word: &mut String,
    line: &mut usize,
) -> Option<()> {
    loop {
        let c = chars.next()?;
        *line += usize::from(c == '\n');
        match c {
            c if c == quote => return Some(()),
            '\\' if quote == '"' => {
                let escaped = chars.next()?;
                *line += usize::from(escaped == '\n');
                // GRUB's quoting rules are a shell's: other backslashes stay.
                if !matches!(escaped, '"' | '\\' | '$' | '\n') {
                    word.push('\\');
                }
                word.push(escaped);
            }
            c => word.push(c),
        }
    }
}

/// The entries of a menu that boot a kernel, those of sub-menus included, in order.
///
/// The error says what does not parse: an open quote, or blocks that do not close.
pub fn entries(text: &str) -> Result<Vec<MenuEntry>, String> {
    let tokens = tokens(text).map_err(|line| format!("line {line}: a quote is not closed"))?;
    let mut entries = Vec::new();
    // Titles of the blocks we are in; None for blocks that are no entries.
    let mut blocks: Vec<(usize, Option<String>)> = Vec::new();
    let mut command: Vec<String> = Vec::new();
    for (line, token) in tokens {
        match token {
            Token::Word(word) => command.push(word),
            Token::End => {
                take(&mut command, &blocks, &mut entries);
            }
            Token::Open => {
                let is_entry = command.first().is_some_and(|word| word == "menuentry");
                let title = is_entry.then(|| command.get(1).cloned().unwrap_or_default());
                blocks.push((line, title));
                command.clear();
            }
            Token::Close => {
                take(&mut command, &blocks, &mut entries);
                if blocks.pop().is_none() {
                    return Err(format!("line {line}: a brace closes what was not opened"));
                }
            }
        }
    }
    match blocks.first() {
        Some((line, _)) => Err(format!("line {line}: the block is not closed")),
        None => Ok(entries),
    }
}

/// A command is complete: keeps it when it loads a kernel in an entry.
fn take(
    command: &mut Vec<String>,
    blocks: &[(usize, Option<String>)],
    entries: &mut Vec<MenuEntry>,
) {
    let loads = matches!(
        command.first().map(String::as_str),
        Some("linux" | "linux16" | "linuxefi" | "linux_console")
    );
    let title = blocks.iter().rev().find_map(|(_, title)| title.clone());
    if let (true, Some(title)) = (loads && command.len() > 1, title) {
        entries.push(MenuEntry { title, words: command.split_off(1) });
    }
    command.clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    const MENU: &str = r#"
set timeout=5 # not { here
if [ "${grub_platform}" = xen ]; then insmod xzio; fi
function gfxmode {
	set gfxpayload="${1}"
}
menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'gnulinux-simple-x' {
	load_video
	echo	'Loading Linux 6.1 ...'
	linux	/boot/vmlinuz-6.1 root=UUID=1-2 ro  quiet dyndbg=\"a\ b\"
	initrd	/boot/initrd.img-6.1
}
submenu 'Advanced {options}' {
	menuentry "It's \"old\"" {
		linux16 /vmlinuz root=UUID=1-2 single; boot
	}
}
menuentry 'UEFI Firmware Settings' { fwsetup }
"#;

    #[test]
    fn reads_a_menu() {
        let found = entries(MENU).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].title, "Debian GNU/Linux");
        assert_eq!(found[0].words[..4], ["/boot/vmlinuz-6.1", "root=UUID=1-2", "ro", "quiet"]);
        assert_eq!(found[0].words[4], "dyndbg=\"a b\"");
        assert_eq!(found[1].title, "It's \"old\"");
        assert_eq!(found[1].words[1..], ["root=UUID=1-2", "single"]);
    }

    #[test]
    fn every_cut_of_a_menu_is_no_menu_or_a_shorter_one() {
        let whole = entries(MENU).unwrap();
        for cut in 0..MENU.len() {
            if let Ok(found) = entries(&MENU[..cut]) {
                assert!(found.len() <= whole.len());
            }
        }
        for (bad, line) in [
            ("menuentry 'x {\n", "line 1"),
            ("a\nmenuentry x {\n linux /v\n", "line 2"),
            ("}\n", "line 1"),
            ("\nset x=${y\n", "line 2"),
        ] {
            assert!(entries(bad).unwrap_err().contains(line), "{bad}");
        }
    }
}
