//! Cuts a stream into JSON values.
//!
//! A value ends with the bracket that closes it; numbers, words and texts on their own end where the next
//! thing begins. Texts may stand in single quotes, as QEMU allows. After an error that leaves unclear where
//! the next value begins, everything up to the end of the line is skipped.

use serde_json::Value;

/// Longest value in bytes.
pub const LONGEST: usize = 4 << 20;
/// Deepest nesting.
pub const DEEPEST: usize = 100;

/// The stream so far.
#[derive(Debug, Default)]
pub struct Stream {
    /// The value that is being read; texts in double quotes already.
    value: Vec<u8>,
    /// Brackets that are open, by what closes them.
    open: Vec<u8>,
    quote: Option<u8>,
    escaped: bool,
    skipping: bool,
}

impl Stream {
    /// Takes a byte; `Some` when it completes a value or shows that there is none.
    pub fn feed(&mut self, byte: u8) -> Option<Result<Value, String>> {
        if self.skipping {
            self.skipping = byte != b'\n';
            return None;
        }
        // Not possible in UTF-8: a client that has lost its place begins anew.
        if byte == 0xff {
            *self = Stream::default();
            return None;
        }
        if self.value.len() >= LONGEST {
            return Some(Err(self.give_up("JSON token size limit exceeded", byte)));
        }
        if let Some(quote) = self.quote {
            self.quoted(quote, byte);
            return (self.quote.is_none() && self.open.is_empty()).then(|| self.complete());
        }
        match byte {
            b'"' | b'\'' => {
                let before = self.finish_word();
                self.quote = Some(byte);
                self.value.push(b'"');
                before
            }
            b'{' | b'[' => {
                let before = self.finish_word();
                self.open.push(if byte == b'{' { b'}' } else { b']' });
                if self.open.len() > DEEPEST {
                    return Some(Err(self.give_up("JSON nesting depth limit exceeded", byte)));
                }
                self.value.push(byte);
                before
            }
            b'}' | b']' => {
                if self.open.is_empty() {
                    let before = self.finish_word();
                    return before
                        .or_else(|| Some(Err("JSON parse error, expecting value".into())));
                }
                if self.open.pop() != Some(byte) {
                    return Some(Err(self.give_up("JSON parse error, wrong bracket", byte)));
                }
                self.value.push(byte);
                self.open.is_empty().then(|| self.complete())
            }
            b' ' | b'\t' | b'\r' | b'\n' => {
                if !self.open.is_empty() {
                    self.value.push(byte);
                    return None;
                }
                self.finish_word()
            }
            b',' | b':' if self.open.is_empty() => {
                let before = self.finish_word();
                before.or_else(|| Some(Err("JSON parse error, expecting value".into())))
            }
            0..=31 | 127 => {
                Some(Err(self.give_up("JSON parse error, stray control character", byte)))
            }
            _ => {
                self.value.push(byte);
                None
            }
        }
    }

    fn quoted(&mut self, quote: u8, byte: u8) {
        if std::mem::take(&mut self.escaped) {
            // An apostrophe needs no backslash between double quotes, and may have none.
            if byte == b'\'' {
                self.value.pop();
            }
            self.value.push(byte);
        } else if byte == b'\\' {
            self.escaped = true;
            self.value.push(byte);
        } else if byte == quote {
            self.quote = None;
            self.value.push(b'"');
        } else {
            if byte == b'"' {
                self.value.push(b'\\');
            }
            self.value.push(byte);
        }
    }

    /// A number or word outside all brackets ends where something else begins.
    fn finish_word(&mut self) -> Option<Result<Value, String>> {
        (self.open.is_empty() && !self.value.is_empty()).then(|| self.complete())
    }

    fn complete(&mut self) -> Result<Value, String> {
        let bytes = std::mem::take(&mut self.value);
        serde_json::from_slice(&bytes).map_err(|e| describe(&bytes, &e))
    }

    fn give_up(&mut self, why: &str, byte: u8) -> String {
        *self = Stream { skipping: byte != b'\n', ..Stream::default() };
        why.to_owned()
    }
}

/// What is wrong, in QEMU's words where the place shows them.
fn describe(bytes: &[u8], e: &serde_json::Error) -> String {
    // The column counts bytes from 1 and stands at or behind what is wrong.
    let lines = bytes.split(|b| *b == b'\n');
    let line = lines.clone().nth(e.line().saturating_sub(1)).unwrap_or_default();
    let at = e.column().saturating_sub(1).min(line.len());
    let start = line[..at]
        .iter()
        .rposition(|b| !b.is_ascii_alphanumeric() && *b != b'_' && *b != b'-')
        .map_or(0, |i| i + 1);
    let word = line[start..]
        .iter()
        .position(|b| !b.is_ascii_alphanumeric() && *b != b'_' && *b != b'-')
        .map_or(&line[start..], |n| &line[start..start + n]);
    match word.first() {
        Some(b) if b.is_ascii_alphabetic() => format!(
            "JSON parse error, invalid keyword '{}'",
            String::from_utf8_lossy(&word[..word.len().min(64)])
        ),
        _ => {
            let text = e.to_string();
            format!("JSON parse error, {}", text.split(" at line").next().unwrap_or(&text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn all(text: &[u8]) -> Vec<Result<Value, String>> {
        let mut s = Stream::default();
        text.iter().filter_map(|b| s.feed(*b)).collect()
    }

    #[test]
    fn values_end_where_they_end() {
        let got = all(b"{\"a\": [1, {}]}{'b':'it\\'s \"x\"'} 12 [] \"q\" true\n");
        let want = [
            json!({"a": [1, {}]}),
            json!({"b": "it's \"x\""}),
            json!(12),
            json!([]),
            json!("q"),
            json!(true),
        ];
        assert_eq!(got.into_iter().map(Result::unwrap).collect::<Vec<_>>(), want);
        assert!(all(b"{\"a\": ").is_empty());
    }

    #[test]
    fn junk_becomes_errors_and_the_next_value_is_read() {
        for junk in [
            &b"}\n"[..],
            b"{\"execute\": nonsense}",
            b"nonsense\n",
            b"{\"a\" 1}",
            b"[1,,2]",
            b"{'a': '\xc3'}",
            b"\x01\x02 anything { \n",
            b",\n",
            b"{\"a\": [}\n",
        ] {
            let mut text = junk.to_vec();
            text.extend_from_slice(b"{\"ok\": 1}");
            let got = all(&text);
            assert!(got[0].is_err(), "{junk:?}: {got:?}");
            assert_eq!(got.last().unwrap(), &Ok(json!({"ok": 1})), "{junk:?}");
        }
        let e = all(b"{\"execute\": nonsense}");
        assert_eq!(e, [Err("JSON parse error, invalid keyword 'nonsense'".into())]);
        assert_eq!(all(b"}"), [Err("JSON parse error, expecting value".into())]);
        // A lost client begins anew.
        assert_eq!(all(b"{\"a\": \"\xff{\"b\": 1}"), [Ok(json!({"b": 1}))]);
    }

    #[test]
    fn limits() {
        let mut deep = b"[".repeat(DEEPEST + 50);
        deep.extend_from_slice(b"\n[1]");
        assert_eq!(all(&deep), [Err("JSON nesting depth limit exceeded".into()), Ok(json!([1]))]);
        let mut long = b"{\"a\": \"".to_vec();
        long.resize(LONGEST + 1000, b'x');
        long.extend_from_slice(b"\"}\n{}");
        assert_eq!(all(&long), [Err("JSON token size limit exceeded".into()), Ok(json!({}))]);
        let fits = b"["
            .repeat(DEEPEST - 1)
            .into_iter()
            .chain(b"]".repeat(DEEPEST - 1))
            .collect::<Vec<_>>();
        assert!(all(&fits)[0].is_ok());
    }
}
