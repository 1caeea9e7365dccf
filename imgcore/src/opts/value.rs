//! Values inside `-o` lists and image specifications: sizes, booleans, numbers, choices.

use super::OptError;
use super::size::{self, SizeError};

/// A size such as `64k`.
pub fn size(name: &str, text: &str) -> Result<u64, OptError> {
    match size::parse(text) {
        Ok(n) => Ok(n),
        Err(SizeError::OutOfRange) => {
            Err(OptError::new(format!("Value '{text}' is out of range for parameter '{name}'")))
        }
        Err(SizeError::Malformed) => Err(OptError::new(format!(
            "Parameter '{name}' expects a non-negative number below 2^64"
        ))
        .hint(
            "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand \
             exabytes, respectively.",
        )),
    }
}

/// A boolean: `on yes true y` or `off no false n`, in lower case.
pub fn boolean(name: &str, text: &str) -> Result<bool, OptError> {
    match text {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(OptError::new(format!("Parameter '{name}' expects 'on' or 'off'"))),
    }
}

/// A number without a suffix. C's notation: `0x` is hexadecimal, a leading zero octal, and a minus
/// wraps around as it does in C.
pub fn number(name: &str, text: &str) -> Result<u64, OptError> {
    let bad = || OptError::new(format!("Parameter '{name}' expects a number"));
    let t = text.trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
    let (negative, digits) = match t.as_bytes().first() {
        Some(b'-') => (true, &t[1..]),
        Some(b'+') => (false, &t[1..]),
        _ => (false, t),
    };
    let (radix, digits) =
        if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
            (16, hex)
        } else if digits.len() > 1 && digits.starts_with('0') {
            (8, &digits[1..])
        } else {
            (10, digits)
        };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(bad());
    }
    let n = u64::from_str_radix(digits, radix).map_err(|_| {
        OptError::new(format!("Value '{text}' is too large for parameter '{name}'"))
    })?;
    Ok(if negative { n.wrapping_neg() } else { n })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans() {
        for t in ["on", "yes", "true", "y"] {
            assert_eq!(boolean("x", t), Ok(true));
        }
        for t in ["off", "no", "false", "n"] {
            assert_eq!(boolean("x", t), Ok(false));
        }
        let e = boolean("lazy_refcounts", "TRUE").unwrap_err();
        assert_eq!(e.message, "Parameter 'lazy_refcounts' expects 'on' or 'off'");
    }

    #[test]
    fn numbers() {
        assert_eq!(number("n", "0x10"), Ok(16));
        assert_eq!(number("n", "010"), Ok(8));
        assert_eq!(number("n", " 8"), Ok(8));
        assert_eq!(number("n", "+8"), Ok(8));
        assert_eq!(number("n", "0"), Ok(0));
        assert_eq!(number("n", "-1"), Ok(u64::MAX));
        for t in ["", "8 ", "0x", "1.5", "16k", "foo"] {
            assert_eq!(number("n", t).unwrap_err().message, "Parameter 'n' expects a number");
        }
        assert_eq!(
            number("n", "99999999999999999999999").unwrap_err().message,
            "Value '99999999999999999999999' is too large for parameter 'n'"
        );
    }

    #[test]
    fn sizes() {
        let e = size("size", "10Q").unwrap_err();
        assert_eq!(e.message, "Parameter 'size' expects a non-negative number below 2^64");
        assert_eq!(e.hints.join("").lines().count(), 2);
        let e = size("size", "-1").unwrap_err();
        assert_eq!(e.message, "Value '-1' is out of range for parameter 'size'");
    }
}
