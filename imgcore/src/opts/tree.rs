//! Option trees, and their flat form with dotted keys.
//!
//! `file.driver=nbd,file.host=x` and `{"file": {"driver": "nbd", "host": "x"}}` mean the same.
//! Both become a [`Flat`]: scalars under dotted keys, in the order they were given. Consumers take
//! what they know out of it; what remains is unknown and refused.

use super::OptError;
use super::list::Item;

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub enum Tree {
    /// `null`, a boolean, a number, a string.
    Leaf(Scalar),
    /// An object, in the order of the text.
    Dict(Vec<(String, Tree)>),
    /// An array.
    List(Vec<Tree>),
}

/// A value without parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// JSON `null`.
    Null,
    /// JSON `true` or `false`.
    Bool(bool),
    /// A JSON number, as it was written.
    Number(String),
    /// A string, or any value of a `key=value` list.
    Text(String),
}

impl Scalar {
    /// The value as the text that a `key=value` list would have.
    pub fn text(&self) -> &str {
        match self {
            Scalar::Null => "",
            Scalar::Bool(true) => "on",
            Scalar::Bool(false) => "off",
            Scalar::Number(t) | Scalar::Text(t) => t,
        }
    }
}

/// Scalars under dotted keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flat(Vec<(String, Scalar)>);

impl Flat {
    /// From the items of a list; the last of equal keys counts.
    pub fn from_items(items: &[Item]) -> Self {
        let mut flat = Flat::default();
        for item in items {
            flat.set(&item.key, Scalar::Text(item.value.clone()));
        }
        flat
    }

    /// From a JSON object. An array's elements are numbered from 0.
    pub fn from_tree(tree: Tree) -> Result<Self, OptError> {
        let Tree::Dict(entries) = tree else {
            return Err(OptError::new("Invalid JSON object given"));
        };
        let mut flat = Flat::default();
        for (key, value) in entries {
            flat.absorb(&key, value);
        }
        Ok(flat)
    }

    fn absorb(&mut self, key: &str, value: Tree) {
        match value {
            Tree::Leaf(s) => self.set(key, s),
            Tree::Dict(entries) => {
                for (k, v) in entries {
                    self.absorb(&format!("{key}.{k}"), v);
                }
            }
            Tree::List(values) => {
                for (i, v) in values.into_iter().enumerate() {
                    self.absorb(&format!("{key}.{i}"), v);
                }
            }
        }
    }

    /// Sets a key, replacing what it had.
    pub fn set(&mut self, key: &str, value: Scalar) {
        match self.0.iter_mut().find(|(k, _)| k == key) {
            Some((_, v)) => *v = value,
            None => self.0.push((key.to_owned(), value)),
        }
    }

    /// Takes a scalar out.
    pub fn take(&mut self, key: &str) -> Option<Scalar> {
        let at = self.0.iter().position(|(k, _)| k == key)?;
        Some(self.0.remove(at).1)
    }

    /// Takes a scalar out as text.
    pub fn take_text(&mut self, key: &str) -> Option<String> {
        self.take(key).map(|s| s.text().to_owned())
    }

    /// Takes all keys `prefix.*` out, without the prefix.
    pub fn take_below(&mut self, prefix: &str) -> Flat {
        let mut below = Flat::default();
        self.0.retain(|(k, v)| match k.strip_prefix(prefix).and_then(|r| r.strip_prefix('.')) {
            Some(rest) => {
                below.0.push((rest.to_owned(), v.clone()));
                false
            }
            None => true,
        });
        below
    }

    /// True if nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is left, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Scalar)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::opts::json;
    use crate::opts::list::{FirstItem, parse};

    #[test]
    fn lists_and_objects_agree() {
        let a = Flat::from_items(&parse("driver=raw,file.driver=nbd,file.host=x", FirstItem::Flag));
        let b = Flat::from_tree(
            json::parse(r#"{"driver":"raw","file":{"driver":"nbd","host":"x"}}"#).unwrap(),
        )
        .unwrap();
        let c = Flat::from_tree(
            json::parse(r#"{"driver":"raw","file.driver":"nbd","file.host":"x"}"#).unwrap(),
        )
        .unwrap();
        assert_eq!(a, b);
        assert_eq!(a, c);
    }

    #[test]
    fn taking() {
        let mut f = Flat::from_items(&parse("a.b=1,a.c.d=2,ab=3,a=4", FirstItem::Flag));
        let below = f.take_below("a");
        assert_eq!(below.iter().map(|(k, _)| k).collect::<Vec<_>>(), ["b", "c.d"]);
        assert_eq!(f.take_text("ab").as_deref(), Some("3"));
        assert_eq!(f.take_text("a").as_deref(), Some("4"));
        assert!(f.is_empty());
    }

    #[test]
    fn only_objects() {
        let e = Flat::from_tree(json::parse("[]").unwrap()).unwrap_err();
        assert_eq!(e.message, "Invalid JSON object given");
    }
}
