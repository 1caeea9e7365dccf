//! Options of `create` and `amend`: each driver's table, and checked values.

use crate::storage::Preallocation;
use crate::{Error, Result};

/// What kind of value an option takes; decides parsing and help text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionKind {
    /// Bytes with an optional suffix.
    Size,
    /// A number.
    Number,
    /// `on` or `off`.
    Bool,
    /// Text.
    Text,
}

/// One row of a driver's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionSpec {
    /// Name.
    pub name: &'static str,
    /// Kind of value.
    pub kind: OptionKind,
    /// One line, as `-o help` prints it.
    pub help: &'static str,
    /// Value shown by `create` when not given.
    pub default: Option<&'static str>,
}

/// A checked value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OptionValue {
    /// Of `Size` and `Number`.
    Number(u64),
    /// Of `Bool`.
    Bool(bool),
    /// Of `Text`.
    Text(String),
}

/// Checked options: names are in the driver's table, values are of the right kind. The last of two
/// values for one name wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CreateOptions {
    values: Vec<(&'static str, OptionValue)>,
}

impl CreateOptions {
    /// Checks `given` (name, text) against `table`; sizes and numbers in QEMU's spelling.
    pub fn parse(table: &'static [OptionSpec], given: &[(String, String)]) -> Result<Self> {
        let mut options = CreateOptions::default();
        for (name, text) in given {
            let spec = table
                .iter()
                .find(|s| s.name == name)
                .ok_or_else(|| Error::invalid(format!("Invalid parameter '{name}'")))?;
            let value = match spec.kind {
                OptionKind::Size => OptionValue::Number(crate::opts::size_option(name, text)?),
                OptionKind::Number => OptionValue::Number(crate::opts::number_option(name, text)?),
                OptionKind::Bool => OptionValue::Bool(crate::opts::bool_option(name, text)?),
                OptionKind::Text => OptionValue::Text(text.clone()),
            };
            options.set(spec.name, value);
        }
        Ok(options)
    }

    /// Sets a value, replacing an earlier one.
    pub fn set(&mut self, name: &'static str, value: OptionValue) {
        self.values.retain(|(n, _)| *n != name);
        self.values.push((name, value));
    }

    /// Removes a value.
    pub fn remove(&mut self, name: &str) {
        self.values.retain(|(n, _)| *n != name);
    }

    /// The value of `name`, if given.
    pub fn get(&self, name: &str) -> Option<&OptionValue> {
        self.values.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    /// A text.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.get(name) {
            Some(OptionValue::Text(t)) => Some(t),
            _ => None,
        }
    }

    /// A size or number.
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.get(name) {
            Some(OptionValue::Number(n)) => Some(*n),
            _ => None,
        }
    }

    /// A switch.
    pub fn flag(&self, name: &str) -> Option<bool> {
        match self.get(name) {
            Some(OptionValue::Bool(b)) => Some(*b),
            _ => None,
        }
    }

    /// All names given.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.values.iter().map(|(n, _)| *n)
    }
}

/// Error for an option that a driver does not know at opening.
pub fn unknown(driver: &str, name: &str) -> Error {
    Error::invalid(format!("Block format '{driver}' does not support the option '{name}'"))
}

/// The name of a mode, as the `preallocation` option has it.
pub fn preallocation_name(how: Preallocation) -> &'static str {
    match how {
        Preallocation::Off => "off",
        Preallocation::Metadata => "metadata",
        Preallocation::Falloc => "falloc",
        Preallocation::Full => "full",
    }
}

/// The `preallocation` option; only the `allowed` modes (and off) are accepted.
pub fn preallocation(options: &CreateOptions, allowed: &[Preallocation]) -> Result<Preallocation> {
    let Some(text) = options.text("preallocation") else { return Ok(Preallocation::Off) };
    let how = match text {
        "off" => Preallocation::Off,
        "metadata" => Preallocation::Metadata,
        "falloc" => Preallocation::Falloc,
        "full" => Preallocation::Full,
        _ => {
            return Err(Error::invalid(format!("invalid parameter value: {text}")));
        }
    };
    if how != Preallocation::Off && !allowed.contains(&how) {
        return Err(Error::unsupported(format!("Unsupported preallocation mode: {text}")));
    }
    Ok(how)
}
