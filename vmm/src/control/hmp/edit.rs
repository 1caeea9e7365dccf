//! The line that is being typed: editing keys, history.
//!
//! Knows nothing of monitors: bytes go in; what to send to the terminal comes out, and now and then a
//! whole line or the wish to complete one.

/// Longest line in bytes; what is typed beyond is ignored.
pub const MOST: usize = 4095;
/// Lines that are kept.
const HISTORY: usize = 64;

/// What a byte led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// Nothing that concerns others.
    Nothing,
    /// A line is complete.
    Line(String),
    /// Somebody presses Tab: what could follow the text before the cursor?
    Complete(String),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    /// After ESC.
    Begun,
    /// After ESC [; the number so far.
    Csi(u16),
    /// After ESC O.
    Ss3,
}

/// The line.
#[derive(Debug, Default)]
pub struct Editor {
    line: Vec<u8>,
    cursor: usize,
    escape: Escape,
    history: Vec<Vec<u8>>,
    /// Which line of the history is shown; its length for the one being typed.
    place: usize,
    /// The line being typed, while one of the history is shown.
    kept: Vec<u8>,
    after_return: bool,
}

impl Editor {
    /// Takes a byte; what the terminal is to show goes behind `out`.
    pub fn feed(&mut self, byte: u8, out: &mut Vec<u8>) -> Done {
        let after_return = std::mem::take(&mut self.after_return);
        match self.escape {
            Escape::None => {}
            _ => {
                self.escaped(byte, out);
                return Done::Nothing;
            }
        }
        match byte {
            b'\n' if after_return => {}
            b'\r' | b'\n' => {
                self.after_return = byte == b'\r';
                return self.enter(out);
            }
            b'\t' => {
                return Done::Complete(
                    String::from_utf8_lossy(&self.line[..self.cursor]).into_owned(),
                );
            }
            0x1b => self.escape = Escape::Begun,
            // Ctrl- A, B, C, D, E, F, H, K, L, N, P, U, W.
            1 => self.go(0, out),
            2 => self.go(self.cursor.saturating_sub(1), out),
            3 => self.replace(Vec::new(), out),
            4 => self.delete(self.cursor, self.cursor + 1, out),
            5 => self.go(self.line.len(), out),
            6 => self.go((self.cursor + 1).min(self.line.len()), out),
            8 | 0x7f => self.delete(self.cursor.saturating_sub(1), self.cursor, out),
            11 => self.delete(self.cursor, self.line.len(), out),
            14 => self.leaf(true, out),
            16 => self.leaf(false, out),
            21 => self.delete(0, self.cursor, out),
            23 => self.delete(self.word_start(), self.cursor, out),
            0..=31 => {}
            _ => self.insert(&[byte], out),
        }
        Done::Nothing
    }

    /// Puts text at the cursor.
    pub fn insert(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let bytes = &bytes[..bytes.len().min(MOST.saturating_sub(self.line.len()))];
        self.line.splice(self.cursor..self.cursor, bytes.iter().copied());
        self.cursor += bytes.len();
        out.extend_from_slice(bytes);
        let behind = &self.line[self.cursor..];
        if !behind.is_empty() {
            out.extend_from_slice(behind);
            back(behind.len(), out);
        }
    }

    /// Shows the line once more, behind a new prompt.
    pub fn show(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.line);
        back(self.line.len() - self.cursor, out);
    }

    /// Forgets what was typed; the history stays.
    pub fn clear(&mut self) {
        self.line.clear();
        self.cursor = 0;
        self.escape = Escape::None;
    }

    fn enter(&mut self, out: &mut Vec<u8>) -> Done {
        out.extend_from_slice(b"\r\n");
        let line = std::mem::take(&mut self.line);
        self.cursor = 0;
        let text = String::from_utf8_lossy(&line).into_owned();
        if !line.is_empty() {
            self.history.retain(|l| *l != line);
            self.history.push(line);
            if self.history.len() > HISTORY {
                self.history.remove(0);
            }
        }
        self.place = self.history.len();
        Done::Line(text)
    }

    fn escaped(&mut self, byte: u8, out: &mut Vec<u8>) {
        let before = std::mem::take(&mut self.escape);
        match (before, byte) {
            (Escape::Begun, b'[') => self.escape = Escape::Csi(0),
            (Escape::Begun, b'O') => self.escape = Escape::Ss3,
            (Escape::Csi(n), b'0'..=b'9') => {
                self.escape =
                    Escape::Csi(n.saturating_mul(10).saturating_add(u16::from(byte - b'0')));
            }
            (Escape::Csi(n), b';') => self.escape = Escape::Csi(n),
            (Escape::Csi(_) | Escape::Ss3, b'A') => self.leaf(false, out),
            (Escape::Csi(_) | Escape::Ss3, b'B') => self.leaf(true, out),
            (Escape::Csi(_) | Escape::Ss3, b'C') => {
                self.go((self.cursor + 1).min(self.line.len()), out);
            }
            (Escape::Csi(_) | Escape::Ss3, b'D') => self.go(self.cursor.saturating_sub(1), out),
            (Escape::Csi(_) | Escape::Ss3, b'H') | (Escape::Csi(1 | 7), b'~') => self.go(0, out),
            (Escape::Csi(_) | Escape::Ss3, b'F') | (Escape::Csi(4 | 8), b'~') => {
                self.go(self.line.len(), out);
            }
            (Escape::Csi(3), b'~') => self.delete(self.cursor, self.cursor + 1, out),
            _ => {}
        }
    }

    fn go(&mut self, to: usize, out: &mut Vec<u8>) {
        if to < self.cursor {
            back(self.cursor - to, out);
        } else {
            out.extend_from_slice(&self.line[self.cursor..to]);
        }
        self.cursor = to;
    }

    fn delete(&mut self, from: usize, to: usize, out: &mut Vec<u8>) {
        let to = to.min(self.line.len());
        if from >= to {
            return;
        }
        self.go(from, out);
        self.line.drain(from..to);
        let behind = &self.line[from..];
        out.extend_from_slice(behind);
        out.extend_from_slice(b"\x1b[K");
        back(behind.len(), out);
    }

    /// Shows another line in the place of this one.
    fn replace(&mut self, line: Vec<u8>, out: &mut Vec<u8>) {
        self.go(0, out);
        out.extend_from_slice(&line);
        out.extend_from_slice(b"\x1b[K");
        self.cursor = line.len();
        self.line = line;
    }

    /// To the next or the previous line of the history.
    fn leaf(&mut self, forward: bool, out: &mut Vec<u8>) {
        let last = self.history.len();
        self.place = self.place.min(last);
        let to = if forward { (self.place + 1).min(last) } else { self.place.saturating_sub(1) };
        if to == self.place {
            return;
        }
        if self.place == last {
            self.kept = self.line.clone();
        }
        self.place = to;
        let line = self.history.get(to).cloned().unwrap_or_else(|| std::mem::take(&mut self.kept));
        self.replace(line, out);
    }

    fn word_start(&self) -> usize {
        let before = &self.line[..self.cursor];
        let trimmed = before.trim_ascii_end();
        trimmed.iter().rposition(|b| *b == b' ').map_or(0, |i| i + 1)
    }
}

/// Moves the terminal's cursor to the left.
fn back(columns: usize, out: &mut Vec<u8>) {
    if columns > 0 {
        out.extend_from_slice(format!("\x1b[{columns}D").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A terminal that understands what the editor sends: the row, and where its cursor is.
    fn screen(sent: &[u8]) -> (String, usize) {
        let (mut row, mut at): (Vec<u8>, usize) = (Vec::new(), 0);
        let mut bytes = sent.iter().copied().peekable();
        while let Some(b) = bytes.next() {
            if b != 0x1b {
                row.truncate(row.len().max(at));
                if at == row.len() {
                    row.push(b);
                } else {
                    row[at] = b;
                }
                at += 1;
                continue;
            }
            assert_eq!(bytes.next(), Some(b'['));
            let mut n = 0;
            while let Some(d) = bytes.peek().filter(|d| d.is_ascii_digit()) {
                n = n * 10 + usize::from(d - b'0');
                bytes.next();
            }
            match bytes.next() {
                Some(b'D') => at -= n,
                Some(b'K') => row.truncate(at),
                other => panic!("{other:?}"),
            }
        }
        (String::from_utf8(row).unwrap(), at)
    }

    fn typed(keys: &[u8]) -> (String, usize) {
        let (mut e, mut out) = (Editor::default(), Vec::new());
        for k in keys {
            e.feed(*k, &mut out);
        }
        let shown = screen(&out);
        assert_eq!(shown.0.as_bytes(), e.line, "what is seen is what is there");
        assert_eq!(shown.1, e.cursor);
        shown
    }

    #[test]
    fn editing_keys() {
        for (keys, line, cursor) in [
            (&b"info status"[..], "info status", 11),
            (b"nfo\x01i", "info", 1),
            (b"info stat\x01\x05us", "info status", 11),
            (b"abc\x1b[D\x1b[DX", "aXbc", 2),
            (b"abc\x1b[D\x1b[D\x1b[C\x7f", "ac", 1),
            (b"abc def\x17", "abc ", 4),
            (b"abc def \x17x", "abc x", 5),
            (b"abcdef\x02\x02\x0b", "abcd", 4),
            (b"abcdef\x02\x02\x15", "ef", 0),
            (b"abc\x01\x04", "bc", 0),
            (b"abc\x01\x1b[3~\x1b[4~d", "bcd", 3),
            (b"abc\x03d", "d", 1),
            (b"\x7f\x04\x0b\x15\x17\x02\x06", "", 0),
        ] {
            assert_eq!(typed(keys), (line.into(), cursor), "{keys:?}");
        }
    }

    #[test]
    fn lines_and_history() {
        let (mut e, mut out) = (Editor::default(), Vec::new());
        let mut lines = Vec::new();
        for b in b"one\r\ntwo\n\rone\r" {
            if let Done::Line(l) = e.feed(*b, &mut out) {
                lines.push(l);
            }
        }
        assert_eq!(lines, ["one", "two", "", "one"]);
        for b in b"new" {
            e.feed(*b, &mut out);
        }
        let mut press = |key: u8| {
            e.feed(key, &mut out);
            String::from_utf8(e.line.clone()).unwrap()
        };
        assert_eq!(
            [16, 16, 16, 14, 14, 14].map(&mut press),
            ["one", "two", "two", "one", "new", "new"]
        );
        let mut e = Editor::default();
        for _ in 0..10_000 {
            e.feed(b'x', &mut out);
        }
        assert_eq!(e.line.len(), MOST);
        assert_eq!(e.feed(b'\t', &mut out), Done::Complete("x".repeat(MOST)));
    }
}
