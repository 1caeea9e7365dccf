//! `null-co://` and `null-aio://`: a disk that keeps nothing, to measure everything above it.

use std::time::Duration;

use serde_json::{Map, Value};

use super::OptError;
use super::filter::{Shown, given};
use super::tree::{Flat, Scalar};
use super::value;

/// Where no size is given.
const DEFAULT_SIZE: u64 = 1 << 30;

/// A disk that keeps nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NullTarget {
    /// `null-co` or `null-aio`; they are the same here.
    pub driver: &'static str,
    /// Bytes.
    pub size: u64,
    /// How long every request takes.
    pub latency: Duration,
    /// Whether it says that it is nothing but zeroes; otherwise it is read, and is zeroes all the same.
    pub read_zeroes: bool,
    /// Options as they were given, for the name.
    shown: Vec<(String, Scalar)>,
}

impl NullTarget {
    fn new(driver: &str) -> Self {
        let driver = if driver == "null-aio" { "null-aio" } else { "null-co" };
        let shown = Vec::new();
        NullTarget {
            driver,
            size: DEFAULT_SIZE,
            latency: Duration::ZERO,
            read_zeroes: false,
            shown,
        }
    }

    /// From a file name.
    pub fn parse(driver: &str, name: &str) -> Result<Self, OptError> {
        let target = NullTarget::new(driver);
        if name != format!("{driver}://") {
            return Err(OptError::new(format!(
                "The only allowed filename for this driver is '{driver}://'"
            )));
        }
        Ok(target)
    }

    /// From the options of its driver, and its `filename` if there is one.
    pub fn from_options(
        driver: &str,
        filename: Option<&str>,
        options: &[(String, Scalar)],
    ) -> Result<Self, OptError> {
        let mut target = match filename {
            Some(name) => NullTarget::parse(driver, name)?,
            None => NullTarget::new(driver),
        };
        let mut flat = Flat::default();
        for (key, value) in options {
            flat.set(key, value.clone());
        }
        if let Some(text) = flat.take_text("size") {
            target.size = value::size("size", &text)?;
            if target.size > i64::MAX.unsigned_abs() {
                return Err(OptError::new("size is invalid"));
            }
        }
        if let Some(text) = flat.take_text("latency-ns") {
            let nanoseconds =
                value::number("latency-ns", &text).ok().filter(|n| *n <= i64::MAX.unsigned_abs());
            let nanoseconds = nanoseconds.ok_or_else(|| OptError::new("latency-ns is invalid"))?;
            target.latency = Duration::from_nanos(nanoseconds);
        }
        if let Some(text) = flat.take_text("read-zeroes") {
            target.read_zeroes = value::boolean("read-zeroes", &text)?;
        }
        if let Some((key, _)) = flat.iter().next() {
            return Err(OptError::new(format!(
                "Block protocol '{driver}' doesn't support the option '{key}'"
            )));
        }
        // How long it takes does not change what it is.
        target.shown = options.iter().filter(|(key, _)| key != "latency-ns").cloned().collect();
        Ok(target)
    }

    /// How it is shown.
    pub fn shown(&self) -> Shown {
        if self.shown.is_empty() {
            return Shown::Plain(format!("{}://", self.driver));
        }
        let mut tree: Map<String, Value> =
            self.shown.iter().map(|(k, v)| (k.clone(), given(v))).collect();
        tree.insert("driver".to_owned(), self.driver.into());
        Shown::Tree(tree.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_and_names() {
        let of = |pairs: &[(&str, &str)]| {
            let all: Vec<_> = pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), Scalar::Text((*v).to_owned())))
                .collect();
            NullTarget::from_options("null-co", None, &all)
        };
        let t = of(&[("size", "1M"), ("latency-ns", "5"), ("read-zeroes", "on")]).unwrap();
        assert_eq!((t.size, t.latency.as_nanos(), t.read_zeroes), (1 << 20, 5, true));
        assert_eq!(of(&[("latency-ns", "5")]).unwrap().shown().name(), "null-co://");
        assert_eq!(
            t.shown().name(),
            "json:{\"driver\":\"null-co\",\"read-zeroes\":\"on\",\"size\":\"1M\"}"
        );
        assert_eq!(of(&[("latency-ns", "-1")]).unwrap_err().message, "latency-ns is invalid");
        assert!(of(&[("foo", "-1")]).unwrap_err().message.contains("'foo'"));
        assert!(NullTarget::parse("null-co", "null-co://").is_ok());
        assert!(NullTarget::parse("null-co", "null-co:").is_err());
    }
}
