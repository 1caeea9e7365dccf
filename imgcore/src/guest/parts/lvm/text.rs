//! The text in which LVM keeps its metadata: `key = value`, `name { ... }`, `# comments`.
//!
//! Values are numbers, quoted strings and lists of both. Bounded in depth and in the number of items.

use crate::{Error, Result};

const MAX_DEPTH: usize = 16;
/// Items (values and sections) of one text.
const MAX_ITEMS: usize = 2_000_000;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Number(i64),
    Text(String),
    List(Vec<Value>),
}

impl Value {
    /// Whether it is this string.
    pub fn is_text(&self, text: &str) -> bool {
        matches!(self, Value::Text(t) if t == text)
    }
}

/// What stands between braces, in its order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Section {
    values: Vec<(String, Value)>,
    sections: Vec<(String, Section)>,
}

impl Section {
    /// The sections in it.
    pub fn sections(&self) -> impl Iterator<Item = (&str, &Section)> {
        self.sections.iter().map(|(n, s)| (n.as_str(), s))
    }

    /// Names of its values.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.iter().map(|(n, _)| n.as_str())
    }

    /// All strings among its values, also those in lists.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let items = self.values.iter().flat_map(|(_, value)| match value {
            Value::List(list) => list.as_slice(),
            one => std::slice::from_ref(one),
        });
        items.filter_map(|value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A section by its name.
    pub fn section(&self, name: &str) -> Result<&Section> {
        self.sections()
            .find(|(n, _)| *n == name)
            .map(|(_, s)| s)
            .ok_or_else(|| Error::corrupt(format!("'{name}' is missing")))
    }

    fn value(&self, name: &str) -> Option<&Value> {
        self.values.iter().find(|(n, _)| n == name).map(|(_, v)| v)
    }

    /// A number that is not negative.
    pub fn number(&self, name: &str) -> Result<u64> {
        match self.value(name) {
            Some(Value::Number(n)) => u64::try_from(*n).ok(),
            _ => None,
        }
        .ok_or_else(|| Error::corrupt(format!("'{name}' is missing or no number")))
    }

    /// A string.
    pub fn text(&self, name: &str) -> Result<&str> {
        match self.value(name) {
            Some(Value::Text(t)) => Ok(t),
            _ => Err(Error::corrupt(format!("'{name}' is missing or no string"))),
        }
    }

    /// A list.
    pub fn list(&self, name: &str) -> Option<&[Value]> {
        match self.value(name) {
            Some(Value::List(l)) => Some(l),
            _ => None,
        }
    }

    /// A list of names and extents: `["pv0", 0, "pv1", 17]`. What is not such a pair is left out.
    pub fn areas(&self, name: &str) -> Vec<(String, u64)> {
        let pairs = self.list(name).unwrap_or_default().windows(2);
        pairs
            .filter_map(|pair| match pair {
                [Value::Text(name), Value::Number(n)] => {
                    Some((name.clone(), u64::try_from(*n).ok()?))
                }
                _ => None,
            })
            .collect()
    }
}

/// Parses a text.
pub(super) fn parse(bytes: &[u8]) -> Result<Section> {
    let mut parser = Parser { bytes, at: 0, items: 0 };
    let root = parser.section(0)?;
    Ok(root)
}

struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
    items: usize,
}

impl Parser<'_> {
    fn bad(&self, what: &str) -> Error {
        Error::corrupt(format!("{what} at byte {} of the text", self.at))
    }

    /// The next byte that is neither space nor comment.
    fn peek(&mut self) -> Option<u8> {
        loop {
            match *self.bytes.get(self.at)? {
                // The text ends with a zero.
                0 => return None,
                b'#' => {
                    while self.bytes.get(self.at).is_some_and(|&b| b != b'\n') {
                        self.at += 1;
                    }
                }
                b if b.is_ascii_whitespace() => self.at += 1,
                b => return Some(b),
            }
        }
    }

    fn count(&mut self) -> Result<()> {
        self.items += 1;
        if self.items > MAX_ITEMS { Err(self.bad("too many items")) } else { Ok(()) }
    }

    /// Up to the closing brace, or to the end on the outermost level.
    fn section(&mut self, depth: usize) -> Result<Section> {
        if depth > MAX_DEPTH {
            return Err(self.bad("sections are nested too deep"));
        }
        let mut section = Section::default();
        loop {
            match self.peek() {
                None if depth == 0 => return Ok(section),
                None => return Err(self.bad("a section does not end")),
                Some(b'}') if depth > 0 => {
                    self.at += 1;
                    return Ok(section);
                }
                Some(_) => {}
            }
            self.count()?;
            let name = self.word()?;
            match self.peek() {
                Some(b'{') => {
                    self.at += 1;
                    let inner = self.section(depth + 1)?;
                    section.sections.push((name, inner));
                }
                Some(b'=') => {
                    self.at += 1;
                    let value = self.value()?;
                    section.values.push((name, value));
                }
                _ => return Err(self.bad("a name is followed by neither '{' nor '='")),
            }
        }
    }

    fn word(&mut self) -> Result<String> {
        let start = self.at;
        let is_name = |b: &u8| b.is_ascii_alphanumeric() || b"_.+-/".contains(b);
        while self.bytes.get(self.at).is_some_and(is_name) {
            self.at += 1;
        }
        let word = self.bytes.get(start..self.at).unwrap_or_default();
        if word.is_empty() {
            return Err(self.bad("a name is expected"));
        }
        Ok(String::from_utf8_lossy(word).into_owned())
    }

    fn value(&mut self) -> Result<Value> {
        if self.peek() != Some(b'[') {
            return self.scalar();
        }
        self.at += 1;
        let mut list = Vec::new();
        loop {
            match self.peek() {
                Some(b']') => {
                    self.at += 1;
                    return Ok(Value::List(list));
                }
                Some(b',') => self.at += 1,
                _ => list.push(self.scalar()?),
            }
        }
    }

    fn scalar(&mut self) -> Result<Value> {
        self.count()?;
        if self.peek() == Some(b'"') {
            return self.quoted();
        }
        let word = self.word()?;
        match word.parse() {
            Ok(n) => Ok(Value::Number(n)),
            // Fractions and bare words do not occur in what is looked at.
            Err(_) => Ok(Value::Text(word)),
        }
    }

    fn quoted(&mut self) -> Result<Value> {
        self.at += 1;
        let mut text = Vec::new();
        loop {
            match self.bytes.get(self.at) {
                None | Some(0) => return Err(self.bad("a string does not end")),
                Some(b'"') => {
                    self.at += 1;
                    return Ok(Value::Text(String::from_utf8_lossy(&text).into_owned()));
                }
                Some(b'\\') => {
                    text.extend(self.bytes.get(self.at + 1));
                    self.at += 2;
                }
                Some(&b) => {
                    text.push(b);
                    self.at += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text() {
        let text = b"vg {\n# c\nid = \"a\\\"b\"\nn = 12 # x\nl = [\"pv0\", 0, \"pv1\", 7]\n\
            s { t = -1 }\n}\nversion = 1\n\0junk";
        let root = parse(text).unwrap();
        assert_eq!(root.number("version").unwrap(), 1);
        let vg = root.section("vg").unwrap();
        assert_eq!(vg.text("id").unwrap(), "a\"b");
        assert_eq!(vg.number("n").unwrap(), 12);
        assert_eq!(vg.areas("l"), [("pv0".to_owned(), 0), ("pv1".to_owned(), 7)]);
        assert!(vg.section("s").unwrap().number("t").is_err(), "negative");
    }

    #[test]
    fn bad_texts() {
        for text in ["a", "a {", "a = ", "a = \"x", "a = [1", "= 1", "a } ", "a = ]"] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        let deep = "a {".repeat(100);
        assert!(parse(deep.as_bytes()).is_err());
    }
}
