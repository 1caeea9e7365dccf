//! The options of a new image: what a format offers, what was asked for, how it is shown.
//!
//! A format's table lists its options in the order in which `create` prints them. Values are
//! checked for their type here; what they mean is the format's business.

use super::OptError;
use super::list::Item;
use super::value;

/// What kind of value an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionKind {
    /// Any text.
    Text,
    /// `on` or `off`.
    Bool,
    /// A number.
    Number,
    /// A size with an optional suffix.
    Size,
}

/// One option of a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionDesc {
    /// Its name.
    pub name: &'static str,
    /// The kind of its value.
    pub kind: OptionKind,
    /// What it is for.
    pub help: &'static str,
    /// What it is when not given, if `create` shows that.
    pub default: Option<&'static str>,
}

/// A checked value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OptionValue {
    /// Any text.
    Text(String),
    /// A boolean and how it was written.
    Bool(bool, String),
    /// A number.
    Number(u64),
    /// A size in bytes.
    Size(u64),
}

/// The options asked for, each known and of the right kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CreationOptions {
    descs: Vec<OptionDesc>,
    values: Vec<(&'static str, OptionValue)>,
}

impl CreationOptions {
    /// No values yet, for a format with these options and a storage with those; where both have an
    /// option of one name, the format's counts.
    pub fn new(format: &[OptionDesc], storage: &[OptionDesc]) -> Self {
        let mut descs = format.to_vec();
        for d in storage {
            if !descs.iter().any(|known| known.name == d.name) {
                descs.push(*d);
            }
        }
        CreationOptions { descs, values: Vec::new() }
    }

    /// Checks and takes the items of `-o`.
    pub fn absorb(&mut self, items: &[Item]) -> Result<(), OptError> {
        items.iter().try_for_each(|item| self.set(&item.key, &item.value))
    }

    /// Sets one option from text.
    pub fn set(&mut self, name: &str, text: &str) -> Result<(), OptError> {
        let Some(desc) = self.descs.iter().find(|d| d.name == name).copied() else {
            return Err(OptError::unknown(name));
        };
        let value = match desc.kind {
            OptionKind::Text => OptionValue::Text(text.to_owned()),
            OptionKind::Bool => OptionValue::Bool(value::boolean(name, text)?, text.to_owned()),
            OptionKind::Number => OptionValue::Number(value::number(name, text)?),
            OptionKind::Size => OptionValue::Size(value::size(name, text)?),
        };
        self.values.retain(|(n, _)| *n != desc.name);
        self.values.push((desc.name, value));
        Ok(())
    }

    /// Whether the format or the storage has this option.
    pub fn offers(&self, name: &str) -> bool {
        self.descs.iter().any(|d| d.name == name)
    }

    /// What was given, without defaults.
    pub fn given(&self, name: &str) -> Option<&OptionValue> {
        self.values.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    /// All that was given, in order.
    pub fn all_given(&self) -> impl Iterator<Item = (&'static str, &OptionValue)> {
        self.values.iter().map(|(n, v)| (*n, v))
    }

    fn default_text(&self, name: &str) -> Option<&'static str> {
        self.descs.iter().find(|d| d.name == name).and_then(|d| d.default)
    }

    /// A text, or its default.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.given(name) {
            Some(OptionValue::Text(t) | OptionValue::Bool(_, t)) => Some(t),
            Some(_) => None,
            None => self.default_text(name),
        }
    }

    /// A boolean, or its default, or false.
    pub fn flag(&self, name: &str) -> bool {
        match self.given(name) {
            Some(OptionValue::Bool(on, _)) => *on,
            Some(_) => false,
            None => self.default_text(name) == Some("on"),
        }
    }

    /// A number or size, or its default.
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.given(name) {
            Some(OptionValue::Number(n) | OptionValue::Size(n)) => Some(*n),
            Some(_) => None,
            None => self.default_text(name).and_then(|t| t.parse().ok()),
        }
    }

    /// Forgets an option.
    pub fn remove(&mut self, name: &str) {
        self.values.retain(|(n, _)| *n != name);
    }

    /// ` name=value` for everything given or with a default, in the table's order.
    pub fn describe(&self) -> String {
        let mut line = String::new();
        for d in &self.descs {
            let text = match self.given(d.name) {
                Some(OptionValue::Text(t)) => quote(t),
                Some(OptionValue::Bool(_, t)) => t.clone(),
                // As a signed number, which is what a minus became on the way in.
                Some(OptionValue::Number(n)) => n.cast_signed().to_string(),
                Some(OptionValue::Size(n)) => n.to_string(),
                None => match d.default {
                    Some(t) => t.to_owned(),
                    None => continue,
                },
            };
            line.push(' ');
            line.push_str(d.name);
            line.push('=');
            line.push_str(&text);
        }
        line
    }

    /// The table for people, sorted by name: what `-o help` prints below its heading.
    pub fn help_lines(&self) -> Vec<String> {
        help_lines(&self.descs)
    }
}

/// Doubles commas, so that the printed line can be read back.
fn quote(text: &str) -> String {
    super::list::escape(text)
}

/// One line for each option, sorted by name.
pub fn help_lines(descs: &[OptionDesc]) -> Vec<String> {
    let mut sorted = descs.to_vec();
    sorted.sort_by_key(|d| d.name);
    sorted
        .iter()
        .map(|d| {
            let kind = match d.kind {
                OptionKind::Text => "str",
                OptionKind::Bool => "bool (on/off)",
                OptionKind::Number => "num",
                OptionKind::Size => "size",
            };
            format!("  {:<22} - {}", format!("{}=<{kind}>", d.name), d.help)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::list::{FirstItem, parse};
    use super::super::tables;
    use super::*;

    fn qcow2(list: &str) -> Result<CreationOptions, OptError> {
        let mut o = CreationOptions::new(tables::create("qcow2").unwrap(), tables::FILE);
        o.absorb(&parse(list, FirstItem::Flag))?;
        Ok(o)
    }

    /// Observed: `Formatting 'x', fmt=qcow2` and this.
    #[test]
    fn formatting_line() {
        assert_eq!(
            qcow2("size=1M").unwrap().describe(),
            " cluster_size=65536 extended_l2=off compression_type=zlib size=1048576 \
             lazy_refcounts=off refcount_bits=16"
        );
        assert_eq!(
            qcow2(
                "size=1M,backing_file=a.raw,backing_fmt=raw,lazy_refcounts=true,refcount_bits=-1"
            )
            .unwrap()
            .describe(),
            " cluster_size=65536 extended_l2=off compression_type=zlib size=1048576 \
             backing_file=a.raw backing_fmt=raw lazy_refcounts=true refcount_bits=-1"
        );
        let all = "encryption=off,encrypt.format=luks,encrypt.key-secret=s,\
            encrypt.cipher-alg=aes-256,encrypt.cipher-mode=xts,encrypt.ivgen-alg=plain64,\
            encrypt.ivgen-hash-alg=sha256,encrypt.hash-alg=sha256,encrypt.iter-time=10,\
            cluster_size=4096,extended_l2=off,preallocation=off,compression_type=zlib,size=1048576,\
            compat=1.1,backing_file=a.raw,backing_fmt=raw,data_file=a,data_file_raw=off,\
            lazy_refcounts=on,refcount_bits=16,nocow=off,extent_size_hint=1048576";
        assert_eq!(qcow2(all).unwrap().describe(), format!(" {}", all.replace(',', " ")));
    }

    #[test]
    fn refusals() {
        assert_eq!(qcow2("foo=1").unwrap_err().message, "Invalid parameter 'foo'");
        assert_eq!(
            qcow2("refcount_bits=16k").unwrap_err().message,
            "Parameter 'refcount_bits' expects a number"
        );
    }

    #[test]
    fn help() {
        let lines = help_lines(tables::create("raw").unwrap());
        assert_eq!(lines, ["  size=<size>            - Virtual disk size"]);
        let lines = help_lines(tables::create("qcow2").unwrap());
        assert_eq!(lines.len(), 21);
        assert_eq!(
            lines[13],
            "  encrypt.ivgen-hash-alg=<str> - Name of IV generator hash algorithm"
        );
    }
}
