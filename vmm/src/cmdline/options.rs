//! `key=value` lists: each parameter is taken once by whoever knows it; what is left over is an error.

use imgcore::opts::list::{self, FirstItem, Item};
use imgcore::opts::tree::{Flat, Scalar};
use imgcore::opts::{json, size};

use crate::{Error, Result};

/// The parameters of one option.
#[derive(Clone, Debug, Default)]
pub struct Options {
    items: Vec<Item>,
}

/// Parameters that are known and do not work yet, with what to do instead.
pub type Refusals = &'static [(&'static str, &'static str)];

impl Options {
    /// Splits a list; `first` names the parameter that may stand without its name at the beginning.
    pub fn parse(text: &str, first: Option<&'static str>) -> Self {
        let first = first.map_or(FirstItem::Flag, FirstItem::ValueOf);
        Options { items: list::parse(text, first) }
    }

    /// The same for an option that may also be a JSON object.
    ///
    /// # Errors
    /// When it begins like one and is none.
    pub fn parse_or_json(text: &str, first: &'static str) -> Result<Self> {
        if !text.trim_start().starts_with('{') {
            return Ok(Options::parse(text, Some(first)));
        }
        let flat = Flat::from_tree(json::parse(text)?)?;
        let item = |(key, value): (&str, &Scalar)| Item {
            key: key.to_owned(),
            value: value.text().to_owned(),
        };
        Ok(Options { items: flat.iter().map(item).collect() })
    }

    /// Takes parameters whose value is what is so anyway; others stay, to be refused.
    pub fn drop_usual(&mut self, usual: &[(&str, &[&str])]) {
        // Booleans have several spellings.
        let spelled = |value: &str| match boolean("", value) {
            Ok(true) => "on".to_owned(),
            Ok(false) => "off".to_owned(),
            Err(_) => value.to_owned(),
        };
        self.items.retain(|item| {
            let value = spelled(&item.value);
            !usual.iter().any(|(key, values)| *key == item.key && values.contains(&value.as_str()))
        });
    }

    /// The value of a parameter; the last one counts, as in QEMU.
    pub fn take(&mut self, key: &str) -> Option<String> {
        let mut found = None;
        self.items.retain(|i| {
            let hit = i.key == key;
            if hit {
                found = Some(i.value.clone());
            }
            !hit
        });
        found
    }

    /// All values of a parameter that may be repeated.
    pub fn take_all(&mut self, key: &str) -> Vec<String> {
        let all = self.items.iter().filter(|i| i.key == key).map(|i| i.value.clone()).collect();
        self.items.retain(|i| i.key != key);
        all
    }

    /// All parameters whose name passes, in order.
    pub fn take_where(&mut self, wanted: impl Fn(&str) -> bool) -> Vec<(String, String)> {
        let (taken, kept) =
            std::mem::take(&mut self.items).into_iter().partition(|i| wanted(&i.key));
        self.items = kept;
        let taken: Vec<Item> = taken;
        taken.into_iter().map(|i| (i.key, i.value)).collect()
    }

    /// A parameter that must be there.
    pub fn need(&mut self, key: &str) -> Result<String> {
        self.take(key).ok_or_else(|| Error::invalid(format!("Parameter '{key}' is missing")))
    }

    /// on or off.
    pub fn take_bool(&mut self, key: &str) -> Result<Option<bool>> {
        self.take(key).map(|v| boolean(key, &v)).transpose()
    }

    /// A number.
    pub fn take_number(&mut self, key: &str) -> Result<Option<u64>> {
        self.take(key).map(|v| number(key, &v)).transpose()
    }

    /// A small number.
    pub fn take_u32(&mut self, key: &str) -> Result<Option<u32>> {
        let Some(n) = self.take_number(key)? else { return Ok(None) };
        u32::try_from(n)
            .map(Some)
            .map_err(|_| Error::invalid(format!("Parameter '{key}' is too large: {n}")))
    }

    /// A size in bytes; without a unit it counts in `unit`.
    pub fn take_size(&mut self, key: &str, unit: u64) -> Result<Option<u64>> {
        self.take(key).map(|v| size_in(key, &v, unit)).transpose()
    }

    /// Whether a parameter is there.
    pub fn has(&self, key: &str) -> bool {
        self.items.iter().any(|i| i.key == key)
    }

    /// Refuses what does not work yet, then what nobody knows.
    pub fn finish(self, refusals: Refusals) -> Result<()> {
        let Some(item) = self.items.first() else { return Ok(()) };
        if let Some((name, why)) =
            refusals.iter().find(|(name, _)| *name == item.key || prefix(name, &item.key))
        {
            let shown = if prefix(name, &item.key) { &item.key } else { *name };
            return Err(Error::unsupported(format!(
                "parameter '{shown}={}' is not supported yet",
                item.value
            ))
            .hint(*why));
        }
        Err(Error::invalid(format!("Invalid parameter '{}'", item.key)))
    }
}

/// A refusal of `name.` is one of all parameters that begin so.
fn prefix(name: &str, key: &str) -> bool {
    name.ends_with('.') && key.starts_with(name)
}

/// QEMU's booleans.
pub fn boolean(key: &str, value: &str) -> Result<bool> {
    match value {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(Error::invalid(format!("Parameter '{key}' expects 'on' or 'off'"))),
    }
}

/// A number, decimal or after 0x.
pub fn number(key: &str, value: &str) -> Result<u64> {
    let parsed = match value.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => value.parse(),
    };
    parsed.map_err(|_| Error::invalid(format!("Parameter '{key}' expects a number")))
}

/// A size; digits alone count in `unit`.
pub fn size_in(key: &str, value: &str, unit: u64) -> Result<u64> {
    let wrong = || {
        Error::invalid(format!("Parameter '{key}' expects a size, like 512M or 2G, not '{value}'"))
    };
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        return value.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).ok_or_else(wrong);
    }
    size::parse(value).map_err(|_| wrong())
}
