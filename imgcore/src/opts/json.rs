//! The JSON of `json:{...}` names and `--object '{...}'`: RFC 8259, and strings in single quotes.
//!
//! A parser of its own because the dialect is wider than JSON's and because the messages are part
//! of the interface. Nesting is limited, so that a hostile backing file name cannot use up the
//! stack.

use super::OptError;
use super::tree::{Scalar, Tree};

const MAX_DEPTH: usize = 128;

/// Parses exactly one value.
pub fn parse(text: &str) -> Result<Tree, OptError> {
    let mut p = Parser { text, at: 0 };
    p.blanks();
    if p.peek().is_none() {
        return Err(OptError::new("Expecting a JSON value"));
    }
    let tree = p.value(0)?;
    p.blanks();
    match p.peek() {
        None => Ok(tree),
        Some(_) => Err(OptError::new("Expecting at most one JSON value")),
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

fn error(what: &str) -> OptError {
    OptError::new(format!("JSON parse error, {what}"))
}

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn need(&self) -> Result<u8, OptError> {
        self.peek().ok_or_else(|| error("premature EOI"))
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn value(&mut self, depth: usize) -> Result<Tree, OptError> {
        if depth > MAX_DEPTH {
            return Err(OptError::new("JSON nesting depth limit exceeded"));
        }
        self.blanks();
        match self.need()? {
            b'{' => self.dict(depth),
            b'[' => self.list(depth),
            b'"' | b'\'' => Ok(Tree::Leaf(Scalar::Text(self.string()?))),
            b'-' | b'0'..=b'9' => self.number(),
            b'a'..=b'z' => self.keyword(),
            _ => Err(error("expecting value")),
        }
    }

    fn dict(&mut self, depth: usize) -> Result<Tree, OptError> {
        self.at += 1;
        let mut entries: Vec<(String, Tree)> = Vec::new();
        self.blanks();
        if self.need()? == b'}' {
            self.at += 1;
            return Ok(Tree::Dict(entries));
        }
        loop {
            self.blanks();
            let key = match self.need()? {
                b'"' | b'\'' => self.string()?,
                b'{' | b'[' | b'-' | b'0'..=b'9' | b'a'..=b'z' => {
                    return Err(error("key is not a string in object"));
                }
                _ => return Err(error("expecting value")),
            };
            if entries.iter().any(|(k, _)| *k == key) {
                return Err(error("duplicate key"));
            }
            self.blanks();
            if self.need()? != b':' {
                return Err(error("missing : in object pair"));
            }
            self.at += 1;
            let value = self.value(depth + 1)?;
            entries.push((key, value));
            if self.separator(b'}', "expected separator in dict")? {
                return Ok(Tree::Dict(entries));
            }
        }
    }

    fn list(&mut self, depth: usize) -> Result<Tree, OptError> {
        self.at += 1;
        let mut values = Vec::new();
        self.blanks();
        if self.need()? == b']' {
            self.at += 1;
            return Ok(Tree::List(values));
        }
        loop {
            values.push(self.value(depth + 1)?);
            if self.separator(b']', "expected separator in list")? {
                return Ok(Tree::List(values));
            }
        }
    }

    /// Takes a comma (false) or the closing mark (true).
    fn separator(&mut self, close: u8, message: &str) -> Result<bool, OptError> {
        self.blanks();
        let c = self.need()?;
        if c != b',' && c != close {
            return Err(error(message));
        }
        self.at += 1;
        Ok(c == close)
    }

    fn number(&mut self) -> Result<Tree, OptError> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        let int = self.digits();
        let leading_zero = int > 1 && self.text.as_bytes()[self.at - int] == b'0';
        let mut good = int > 0 && !leading_zero;
        if self.peek() == Some(b'.') {
            self.at += 1;
            good &= self.digits() > 0;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            good &= self.digits() > 0;
        }
        let text = &self.text[start..self.at];
        if !good {
            return Err(error(&format!("stray '{text}'")));
        }
        Ok(Tree::Leaf(Scalar::Number(text.to_owned())))
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        self.at - start
    }

    fn keyword(&mut self) -> Result<Tree, OptError> {
        let start = self.at;
        while matches!(self.peek(), Some(b'a'..=b'z')) {
            self.at += 1;
        }
        match &self.text[start..self.at] {
            "true" => Ok(Tree::Leaf(Scalar::Bool(true))),
            "false" => Ok(Tree::Leaf(Scalar::Bool(false))),
            "null" => Ok(Tree::Leaf(Scalar::Null)),
            other => Err(error(&format!("invalid keyword '{other}'"))),
        }
    }

    fn string(&mut self) -> Result<String, OptError> {
        let start = self.at;
        let quote = self.need()?;
        self.at += 1;
        let mut out = String::new();
        loop {
            let rest = &self.text[self.at..];
            let Some(c) = rest.chars().next() else {
                return Err(error(&format!("stray '{}'", &self.text[start..])));
            };
            self.at += c.len_utf8();
            match c {
                '\\' => out.push(self.escape()?),
                c if c == char::from(quote) => return Ok(out),
                c if c < ' ' => return Err(error("control character in string")),
                c => out.push(c),
            }
        }
    }

    fn escape(&mut self) -> Result<char, OptError> {
        let c = self.need()?;
        self.at += 1;
        Ok(match c {
            b'"' | b'\'' | b'\\' | b'/' => char::from(c),
            b'b' => '\x08',
            b'f' => '\x0c',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let high = self.hex4()?;
                let code = if (0xd800..0xdc00).contains(&high) {
                    if self.text.as_bytes().get(self.at..self.at + 2) != Some(b"\\u") {
                        return Err(error("invalid Unicode sequence in string"));
                    }
                    self.at += 2;
                    let low = self.hex4()?;
                    if !(0xdc00..0xe000).contains(&low) {
                        return Err(error("invalid Unicode sequence in string"));
                    }
                    0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00)
                } else {
                    high
                };
                // NUL ends a C string: no name or option can contain it.
                char::from_u32(code)
                    .filter(|c| *c != '\0')
                    .ok_or_else(|| error("invalid Unicode sequence in string"))?
            }
            _ => return Err(error("invalid escape sequence in string")),
        })
    }

    fn hex4(&mut self) -> Result<u32, OptError> {
        let digits = self.text.get(self.at..self.at + 4);
        let value = digits
            .filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|d| u32::from_str_radix(d, 16).ok())
            .ok_or_else(|| error("invalid Unicode sequence in string"))?;
        self.at += 4;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(t: &str) -> Tree {
        Tree::Leaf(Scalar::Text(t.into()))
    }

    #[test]
    fn values() {
        let tree = parse(r#" {"a": 'b"c', 'd': [1, -2.5e3, true, null], "e": {}} "#).unwrap();
        let Tree::Dict(entries) = tree else { panic!() };
        assert_eq!(entries[0], ("a".into(), text("b\"c")));
        let Tree::List(list) = &entries[1].1 else { panic!() };
        assert_eq!(list[1], Tree::Leaf(Scalar::Number("-2.5e3".into())));
        assert_eq!(parse(r#""\u00e9\ud83d\ude00\/\n""#).unwrap(), text("é😀/\n"));
        assert_eq!(parse("\"é\"").unwrap(), text("é"));
    }

    #[test]
    fn errors() {
        for (input, message) in [
            ("", "Expecting a JSON value"),
            ("{", "JSON parse error, premature EOI"),
            ("{} x", "Expecting at most one JSON value"),
            (r#"{"a":1,}"#, "JSON parse error, expecting value"),
            (r#"{"a":1,"a":2}"#, "JSON parse error, duplicate key"),
            (r#"{"a" 1}"#, "JSON parse error, missing : in object pair"),
            (r#"{"qom"#, "JSON parse error, stray '\"qom'"),
            ("{1:2}", "JSON parse error, key is not a string in object"),
            ("[1 2]", "JSON parse error, expected separator in list"),
            ("nul", "JSON parse error, invalid keyword 'nul'"),
            ("\"\\u0000\"", "JSON parse error, invalid Unicode sequence in string"),
            ("\"\\ud800x\"", "JSON parse error, invalid Unicode sequence in string"),
            ("\"\\u12é4\"", "JSON parse error, invalid Unicode sequence in string"),
            ("01", "JSON parse error, stray '01'"),
        ] {
            assert_eq!(parse(input).unwrap_err().message, message, "{input}");
        }
    }

    #[test]
    fn deep_nesting_is_refused() {
        let e = parse(&"[".repeat(100_000)).unwrap_err();
        assert_eq!(e.message, "JSON nesting depth limit exceeded");
    }
}
