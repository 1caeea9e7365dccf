//! QEMU's option languages.

use crate::{Error, Result};

/// A size with an optional suffix.
pub fn size_option(name: &str, text: &str) -> Result<u64> {
    number_option(name, text)
}

/// A plain number.
pub fn number_option(name: &str, text: &str) -> Result<u64> {
    text.parse().map_err(|_| Error::invalid(format!("Parameter '{name}' expects a number")))
}

/// on or off.
pub fn bool_option(name: &str, text: &str) -> Result<bool> {
    match text {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(Error::invalid(format!("Parameter '{name}' expects 'on' or 'off'"))),
    }
}
