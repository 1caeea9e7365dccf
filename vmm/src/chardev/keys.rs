//! The keys behind the escape character of a shared back end.

/// The usual escape character: Ctrl-a.
pub const CTRL_A: u8 = 1;

/// What a key behind the escape character asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// `x`: end the machine.
    Quit,
    /// `h`, `?`: list the keys.
    Help,
    /// `c`: to the monitor and back.
    Switch,
    /// `b`: a break on the serial line.
    Break,
    /// `s`: write disks' data back.
    Flush,
    /// `t`: time stamps on the console.
    Timestamps,
}

/// Splits keys from characters.
#[derive(Clone, Copy, Debug)]
pub struct Keys {
    escape: u8,
    escaped: bool,
}

impl Keys {
    /// With this escape character.
    pub fn new(escape: u8) -> Self {
        Keys { escape, escaped: false }
    }

    /// One byte: a character for the front end, a key, or nothing yet.
    pub fn feed(&mut self, byte: u8) -> (Option<u8>, Option<Key>) {
        if !std::mem::take(&mut self.escaped) {
            if byte == self.escape {
                self.escaped = true;
                return (None, None);
            }
            return (Some(byte), None);
        }
        match byte {
            b if b == self.escape => (Some(self.escape), None),
            b'x' => (None, Some(Key::Quit)),
            b'h' | b'?' => (None, Some(Key::Help)),
            b'c' => (None, Some(Key::Switch)),
            b'b' => (None, Some(Key::Break)),
            b's' => (None, Some(Key::Flush)),
            b't' => (None, Some(Key::Timestamps)),
            _ => (None, None),
        }
    }

    /// What `h` shows.
    pub fn help(&self) -> String {
        let name = match self.escape {
            c @ 1..=26 => format!("C-{}", char::from(c + 0x60)),
            c => format!("C-0x{c:02x}"),
        };
        [
            ("h    ", "print this help"),
            ("x    ", "exit"),
            ("s    ", "save disk data back to file"),
            ("t    ", "toggle console timestamps"),
            ("b    ", "send break (magic sysrq)"),
            ("c    ", "switch between console and monitor"),
            (&format!("{name}  "), &format!("sends {name}")),
        ]
        .iter()
        .fold(String::from("\r\n"), |text, (key, what)| text + &format!("{name} {key}{what}\r\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_split_from_characters() {
        let mut k = Keys::new(CTRL_A);
        let all: Vec<_> = b"a\x01xb\x01\x01\x01q".iter().map(|b| k.feed(*b)).collect();
        let characters: Vec<u8> = all.iter().filter_map(|(c, _)| *c).collect();
        let keys: Vec<Key> = all.iter().filter_map(|(_, k)| *k).collect();
        assert_eq!((characters.as_slice(), keys.as_slice()), (&b"ab\x01"[..], &[Key::Quit][..]));
        assert!(k.help().contains("C-a C-a  sends C-a"));
        let mut k = Keys::new(0x14);
        assert_eq!(k.feed(1), (Some(1), None));
        assert_eq!((k.feed(0x14), k.feed(b'c').1), ((None, None), Some(Key::Switch)));
    }
}
