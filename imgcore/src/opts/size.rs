//! Sizes: `1G`, `1.5k`, `0x10`.
//!
//! The grammar: blanks, an optional `+`, then either a hexadecimal integer with `0x` (no suffix, no
//! fraction) or a decimal integer, an optional fraction, an optional suffix out of
//! `b k K m M g G t T p P e E` (powers of 1024). A fraction other than zero needs a suffix above
//! bytes. A leading zero does not make a number octal. The integer part may be missing before a
//! fraction (`.5k`), the digits of the fraction may be missing after an integer (`1.k`).

use super::OptError;

/// Why a text is no size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeError {
    /// Not in the grammar.
    Malformed,
    /// In the grammar, but negative or 2^64 and more.
    OutOfRange,
}

/// The largest size a signed 64-bit offset can hold.
pub const MAX_OFFSET: u64 = i64::MAX as u64;

/// Parses a size into bytes.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        return parse_hex(hex, negative);
    }
    let int_len = digits.bytes().take_while(u8::is_ascii_digit).count();
    let (int, rest) = digits.split_at(int_len);
    let (fraction, suffix) = split_fraction(rest);
    if int.is_empty() && (fraction.is_none_or(str::is_empty) || negative) {
        return Err(SizeError::Malformed);
    }
    let whole = if int.is_empty() { Some(0) } else { int.parse::<u64>().ok() };
    let Some(whole) = whole.filter(|_| !negative) else {
        // Out of range only when the bad number is all there is.
        return Err(if rest.is_empty() { SizeError::OutOfRange } else { SizeError::Malformed });
    };
    let shift = suffix_shift(suffix).ok_or(SizeError::Malformed)?;
    let extra = fraction_bytes(fraction.unwrap_or(""), shift)?;
    if shift > 0 && whole > (u64::MAX >> shift) {
        return Err(SizeError::OutOfRange);
    }
    (whole << shift).checked_add(extra).ok_or(SizeError::OutOfRange)
}

fn parse_hex(hex: &str, negative: bool) -> Result<u64, SizeError> {
    if hex.is_empty() || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(SizeError::Malformed);
    }
    match u64::from_str_radix(hex, 16) {
        Ok(n) if !negative => Ok(n),
        _ => Err(SizeError::OutOfRange),
    }
}

/// Splits `.25k` into `Some("25")` and `k`; a text without a point has no fraction.
fn split_fraction(rest: &str) -> (Option<&str>, &str) {
    match rest.strip_prefix('.') {
        None => (None, rest),
        Some(after) => {
            let n = after.bytes().take_while(u8::is_ascii_digit).count();
            (Some(&after[..n]), &after[n..])
        }
    }
}

fn suffix_shift(suffix: &str) -> Option<u32> {
    Some(match suffix {
        "" | "b" | "B" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ => return None,
    })
}

/// The bytes a fraction adds, rounded to the nearest byte as a double would have it.
fn fraction_bytes(digits: &str, shift: u32) -> Result<u64, SizeError> {
    let significant = digits.bytes().any(|b| b != b'0');
    if !significant {
        return Ok(0);
    }
    if shift == 0 {
        return Err(SizeError::Malformed);
    }
    let value: f64 = format!("0.{digits}").parse().map_err(|_| SizeError::Malformed)?;
    // At most 2^60 + 1/2: inside u64 and never negative.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let bytes = (value * (1u64 << shift) as f64 + 0.5) as u64;
    Ok(bytes)
}

/// A size or number given as an argument of its own (`-S 4k`, `create x 1G`, `bs=512`), between
/// `min` and `max`. `what` names it in messages: `image size`, `bs`, `buffer size`.
pub fn argument(what: &str, text: &str, min: u64, max: u64) -> Result<u64, OptError> {
    match parse(text) {
        Ok(n) if n >= min && n <= max => Ok(n),
        Ok(_) | Err(SizeError::OutOfRange) => Err(OptError::new(format!(
            "Invalid {what} specified. Must be between {min} and {max}."
        ))),
        Err(SizeError::Malformed) => {
            Err(OptError::new(format!("Invalid {what} specified: '{text}'.")))
        }
    }
}

/// A size or offset argument between 0 and the largest file offset.
pub fn size_argument(what: &str, text: &str) -> Result<u64, OptError> {
    argument(what, text, 0, MAX_OFFSET)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every line was observed with qemu-img 10.0.2 (`create x SIZE`).
    #[test]
    fn as_the_reference_tool() {
        let good: &[(&str, u64)] = &[
            ("9223372036854775807", MAX_OFFSET),
            ("7E", 8_070_450_532_247_928_832),
            ("1.5k", 1536),
            ("0x10", 16),
            ("1.0000001k", 1024),
            (".5k", 512),
            (" 5", 5),
            ("+5", 5),
            ("0b", 0),
            ("0x1b", 27),
            ("1.1E", 1_268_213_655_067_531_680),
            ("010", 10),
            ("1.", 1),
            ("1.k", 1024),
            ("1.0", 1),
            ("1.0b", 1),
            ("1.99999999999999999999k", 2048),
            ("0X10", 16),
            ("0x1e", 30),
            ("1.5m", 1_572_864),
            ("1.5t", 1_649_267_441_664),
            ("+0x5", 5),
        ];
        for (text, value) in good {
            assert_eq!(parse(text), Ok(*value), "{text}");
        }
        for text in [
            "10Q",
            "1.5",
            "0x10k",
            "1e3",
            "10kk",
            "",
            "1KiB",
            "1kB",
            "0x",
            "0x1.5k",
            "1.1b",
            "inf",
            "nan",
            ".",
            ".k",
            "1.5e1k",
            "18446744073709551616E",
            "0.5b",
            "1.00000000000000000000000001",
            "-5k",
            "-1x",
            "0x1p3",
            "5 ",
            "1.5B",
            "-",
            "+-5",
            "1. 5k",
            "1.+5k",
            "-.5k",
            "1é",
        ] {
            assert_eq!(parse(text), Err(SizeError::Malformed), "{text}");
        }
        for text in ["-1", "-0", "99999999999999999999", "16E", "20E", "18446744073709551616"] {
            assert_eq!(parse(text), Err(SizeError::OutOfRange), "{text}");
        }
    }

    #[test]
    fn wording() {
        let message = |t| size_argument("image size", t).map_err(|e| e.message);
        assert_eq!(message("10Q"), Err("Invalid image size specified: '10Q'.".into()));
        let range = "Invalid image size specified. Must be between 0 and 9223372036854775807.";
        assert_eq!(message("8E"), Err(range.into()));
        assert_eq!(message("-1"), Err(range.into()));
        assert_eq!(
            argument("bs", "3G", 1, 2_147_483_647).map_err(|e| e.message),
            Err("Invalid bs specified. Must be between 1 and 2147483647.".into())
        );
    }
}
