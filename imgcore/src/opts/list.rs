//! `key=value,key=value` lists, as in `-o` and `--image-opts`.
//!
//! A comma inside a value is doubled. A key without `=` is a flag: `key` means `key=on` and `nokey`
//! means `key=off`; where a list has a default key, a first item without `=` is its value. The last
//! of several equal keys counts.

use super::OptError;

/// One `key=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The name before `=`.
    pub key: String,
    /// What follows, with doubled commas made single.
    pub value: String,
}

impl Item {
    /// From two texts.
    pub fn new(key: impl Into<String>, value: impl Into<String>) -> Self {
        Item { key: key.into(), value: value.into() }
    }
}

/// What a first item without `=` means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstItem {
    /// A flag like any other.
    Flag,
    /// The value of this key.
    ValueOf(&'static str),
}

/// Splits a list into its items, in order. An empty text has none.
pub fn parse(text: &str, first: FirstItem) -> Vec<Item> {
    let mut items = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let key_len = rest.find(['=', ',']).unwrap_or(rest.len());
        if rest[key_len..].starts_with('=') {
            let key = rest[..key_len].to_owned();
            let (value, tail) = take_value(&rest[key_len + 1..]);
            items.push(Item { key, value });
            rest = tail;
            continue;
        }
        match first {
            FirstItem::ValueOf(key) if items.is_empty() => {
                let (value, tail) = take_value(rest);
                items.push(Item::new(key, value));
                rest = tail;
            }
            _ => {
                let word = &rest[..key_len];
                items.push(match word.strip_prefix("no") {
                    Some(key) => Item::new(key, "off"),
                    None => Item::new(word, "on"),
                });
                rest = rest[key_len..].strip_prefix(',').unwrap_or("");
            }
        }
    }
    items
}

/// Takes a value up to a single comma; returns it and what follows that comma.
fn take_value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut rest = text;
    loop {
        let Some(comma) = rest.find(',') else {
            value.push_str(rest);
            return (value, "");
        };
        value.push_str(&rest[..comma]);
        match rest[comma + 1..].strip_prefix(',') {
            Some(after) => {
                value.push(',');
                rest = after;
            }
            None => return (value, &rest[comma + 1..]),
        }
    }
}

/// Doubles the commas of a value so that it can stand in a list.
pub fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

/// Joins several `-o` arguments into one list, refusing those that would join into nonsense.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accumulated(Option<String>);

impl Accumulated {
    /// Adds one `-o` argument.
    pub fn add(&mut self, text: &str) -> Result<(), OptError> {
        let trailing = text.len() - text.trim_end_matches(',').len();
        if text.is_empty() || text.starts_with(',') || trailing % 2 == 1 {
            return Err(OptError::new(format!("Invalid option list: {text}")));
        }
        match &mut self.0 {
            None => self.0 = Some(text.to_owned()),
            Some(all) => {
                all.push(',');
                all.push_str(text);
            }
        }
        Ok(())
    }

    /// True if there was at least one.
    pub fn given(&self) -> bool {
        self.0.is_some()
    }

    /// The joined text.
    pub fn text(&self) -> &str {
        self.0.as_deref().unwrap_or("")
    }

    /// True if `help` or `?` stands among the items.
    pub fn asks_for_help(&self) -> bool {
        asks_for_help(self.text())
    }

    /// The items of all arguments.
    pub fn items(&self) -> Vec<Item> {
        parse(self.text(), FirstItem::Flag)
    }
}

/// True if `help` or `?` stands among the items of a list, as a word of its own.
pub fn asks_for_help(text: &str) -> bool {
    let mut rest = text;
    while !rest.is_empty() {
        let (word, tail) = take_value(rest);
        if word == "help" || word == "?" {
            return true;
        }
        rest = tail;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str, first: FirstItem) -> Vec<(String, String)> {
        parse(text, first).into_iter().map(|i| (i.key, i.value)).collect()
    }

    fn own(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect()
    }

    #[test]
    fn lists() {
        let f = FirstItem::Flag;
        assert_eq!(pairs("a=b,c=d", f), own(&[("a", "b"), ("c", "d")]));
        assert_eq!(pairs("a=b,,c,d", f), own(&[("a", "b,c"), ("d", "on")]));
        assert_eq!(pairs("a=,,,b=c", f), own(&[("a", ","), ("b", "c")]));
        assert_eq!(pairs("lazy,nolazy", f), own(&[("lazy", "on"), ("lazy", "off")]));
        assert_eq!(pairs("=5", f), own(&[("", "5")]));
        assert_eq!(pairs("a=b=c", f), own(&[("a", "b=c")]));
        assert_eq!(pairs("", f), own(&[]));
        let v = FirstItem::ValueOf("file");
        assert_eq!(pairs("x,,y,file.driver=z", v), own(&[("file", "x,y"), ("file.driver", "z")]));
        assert_eq!(pairs("a=b,x", v), own(&[("a", "b"), ("x", "on")]));
    }

    #[test]
    fn accumulation() {
        let mut a = Accumulated::default();
        assert!(!a.given());
        a.add("cluster_size=4k").unwrap();
        a.add("cluster_size=8k,,").unwrap();
        assert_eq!(a.text(), "cluster_size=4k,cluster_size=8k,,");
        for bad in ["", ",", ",a=b", "a=b,", "a=b,,,"] {
            let e = a.add(bad).unwrap_err();
            assert_eq!(e.message, format!("Invalid option list: {bad}"));
        }
    }

    #[test]
    fn help() {
        for t in ["help", "?", "a=b,help", "a=b,?", "help,a=b"] {
            assert!(asks_for_help(t), "{t}");
        }
        for t in ["", "a=help", "helpme", "a=b,,help"] {
            assert!(!asks_for_help(t), "{t}");
        }
    }

    #[test]
    fn escaping_round_trips() {
        for t in ["a", "a,b", ",,", "x,"] {
            let list = format!("k={},l=m", escape(t));
            assert_eq!(pairs(&list, FirstItem::Flag), own(&[("k", t), ("l", "m")]));
        }
    }
}
