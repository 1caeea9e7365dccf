//! Sizes for people: `1 GiB`, `196 KiB`, `0.977 MiB`.
//!
//! Three significant digits as C's `%0.3g` prints them, with the exponent form that appears between
//! 999.5 and 1000 of a unit (`1e+03 KiB`); the next unit begins at 1000, not at 1024.

const SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/// `val` bytes, in words.
pub fn size(val: u64) -> String {
    let mut unit = 0;
    // The unit changes where val reaches 1000 of the present one; u128 keeps 1000 << 60 exact.
    while unit + 1 < SUFFIXES.len() && u128::from(val) >= 1000u128 << (10 * unit) {
        unit += 1;
    }
    // A double is what C rounds here; the loss above 2^53 is part of the wanted text.
    #[allow(clippy::cast_precision_loss)]
    let value = val as f64 / (1u64 << (10 * unit)) as f64;
    format!("{} {}B", three_digits(value), SUFFIXES[unit])
}

/// C's `%.3g` for a finite, non-negative number.
pub fn three_digits(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let scientific = format!("{value:.2e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if !(-4..3).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", trim_zeroes(mantissa), exponent.unsigned_abs());
    }
    let decimals = usize::try_from(2 - exponent).unwrap_or(0);
    trim_zeroes(&format!("{value:.decimals$}")).to_owned()
}

fn trim_zeroes(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Observed with qemu-img 10.0.2 (`virtual size:` of sparse files; it rounds those up to 512).
    #[test]
    fn as_the_reference_tool() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (1_023_488, "1e+03 KiB"),
            (1_024_000, "0.977 MiB"),
            (1_048_064, "1 MiB"),
            (1_022_976, "999 KiB"),
            (1_048_576, "1 MiB"),
            (1_179_648, "1.12 MiB"),
            (1_153_536, "1.1 MiB"),
            (1_572_864, "1.5 MiB"),
            (1_605_632, "1.53 MiB"),
            (10_485_760, "10 MiB"),
            (10_813_440, "10.3 MiB"),
            (104_857_600, "100 MiB"),
            (107_479_040, "102 MiB"),
            (128_000, "125 KiB"),
            (131_072, "128 KiB"),
            (1_073_741_824, "1 GiB"),
            (1_075_838_976, "1 GiB"),
            (1_610_612_736, "1.5 GiB"),
            (1_100_585_369_600, "1 TiB"),
            (197_120, "192 KiB"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
        assert_eq!(size(u64::MAX), "16 EiB");
    }

    /// Ties go to the even digit, as in C.
    #[test]
    fn ties_round_to_even() {
        assert_eq!(three_digits(1.125), "1.12");
        assert_eq!(three_digits(1.375), "1.38");
        assert_eq!(three_digits(10.25), "10.2");
        assert_eq!(three_digits(10.75), "10.8");
        assert_eq!(three_digits(102.5), "102");
        assert_eq!(three_digits(103.5), "104");
        assert_eq!(three_digits(999.5), "1e+03");
        assert_eq!(three_digits(998.5), "998");
        assert_eq!(three_digits(0.976_562_5), "0.977");
        assert_eq!(three_digits(0.000_05), "5e-05");
    }
}
