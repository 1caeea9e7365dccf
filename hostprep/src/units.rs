//! Sizes in bytes and lists of CPUs, read and written the way users and the kernel write them.

use std::collections::BTreeSet;
use std::fmt;

use crate::error::{Error, Result};

/// One binary gigabyte.
pub const GIB: u64 = 1 << 30;
/// One binary megabyte.
pub const MIB: u64 = 1 << 20;

/// The largest CPU number believed in a list; beyond it a list is nonsense and would only cost memory.
const CPU_LIMIT: u32 = 65_535;

/// Reads `4G`, `512M`, `2048`, `1GiB`, `2MB`; a bare number has the unit `default_unit` (bytes a unit).
pub fn parse_size(text: &str, default_unit: u64) -> Result<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, suffix) = text.split_at(end);
    let bad = || Error::usage(format!("'{text}' is not a size; write it like 512M, 4G or 1.5T"));
    let mut letters = suffix.trim().chars();
    let unit = match letters.next().map(|c| c.to_ascii_lowercase()) {
        None => default_unit,
        Some('b') => 1,
        Some('k') => 1 << 10,
        Some('m') => MIB,
        Some('g') => GIB,
        Some('t') => 1 << 40,
        Some('p') => 1 << 50,
        Some(_) => return Err(bad()),
    };
    if !matches!(letters.as_str().to_ascii_lowercase().as_str(), "" | "b" | "ib") {
        return Err(bad());
    }
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let whole: u64 = whole.parse().map_err(|_| bad())?;
    let mut bytes = whole.checked_mul(unit).ok_or_else(bad)?;
    if !fraction.is_empty() {
        let places = u32::try_from(fraction.len()).map_err(|_| bad())?;
        let scale = 10_u64.checked_pow(places).ok_or_else(bad)?;
        let part: u64 = fraction.parse().map_err(|_| bad())?;
        let part = u128::from(part) * u128::from(unit) / u128::from(scale);
        bytes = bytes.checked_add(u64::try_from(part).map_err(|_| bad())?).ok_or_else(bad)?;
    }
    Ok(bytes)
}

/// `36 GiB`, `1.5 GiB`, `512 MiB`: one decimal where it is not whole.
pub fn show_size(bytes: u64) -> String {
    for (unit, name) in [(1_u64 << 40, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (1 << 10, "KiB")] {
        if bytes >= unit {
            let tenths = u128::from(bytes) * 10 / u128::from(unit);
            return if tenths.is_multiple_of(10) {
                format!("{} {name}", tenths / 10)
            } else {
                format!("{}.{} {name}", tenths / 10, tenths % 10)
            };
        }
    }
    format!("{bytes} bytes")
}

/// A set of CPU numbers in the kernel's list syntax (`0-3,8`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuSet(pub BTreeSet<u32>);

impl CpuSet {
    /// Reads the kernel's list syntax, including strides such as `0-10:2/4`. None when it is not a list.
    pub fn parse(text: &str) -> Option<Self> {
        let mut set = BTreeSet::new();
        let text = text.trim();
        if text.is_empty() || text == "(null)" {
            return Some(Self(set));
        }
        for part in text.split(',') {
            let (range, stride) = part.split_once(':').unwrap_or((part, ""));
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let first: u32 = first.trim().parse().ok()?;
            let last: u32 = last.trim().parse().ok()?;
            if last < first || last > CPU_LIMIT {
                return None;
            }
            let (used, group) = match stride.split_once('/') {
                Some((used, group)) => (used.parse().ok()?, group.parse().ok()?),
                None => (1_u32, 1_u32),
            };
            if group == 0 {
                return None;
            }
            set.extend((first..=last).filter(|cpu| (cpu - first) % group < used));
        }
        Some(Self(set))
    }

    /// Whether there is no CPU in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of CPUs.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether `cpu` is in it.
    pub fn contains(&self, cpu: u32) -> bool {
        self.0.contains(&cpu)
    }

    /// CPUs in both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self(self.0.intersection(&other.0).copied().collect())
    }

    /// CPUs here that are not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self(self.0.difference(&other.0).copied().collect())
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<T: IntoIterator<Item = u32>>(iter: T) -> Self {
        Self(iter.into_iter().collect())
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.iter().copied().peekable();
        let mut first_part = true;
        while let Some(start) = rest.next() {
            let mut end = start;
            while rest.peek() == Some(&(end + 1)) {
                end += 1;
                rest.next();
            }
            if !first_part {
                f.write_str(",")?;
            }
            first_part = false;
            if start == end { write!(f, "{start}")? } else { write!(f, "{start}-{end}")? }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("4G", 1).unwrap(), 4 * GIB);
        assert_eq!(parse_size("1024", MIB).unwrap(), GIB);
        assert_eq!(parse_size("1.5GiB", 1).unwrap(), 3 * GIB / 2);
        assert!(parse_size("4X", 1).is_err());
        assert!(parse_size("99999999999999999999G", 1).is_err());
        assert!(parse_size("18446744073709551615G", 1).is_err());
        assert_eq!(show_size(36 * GIB), "36 GiB");
        assert_eq!(show_size(3 * GIB / 2), "1.5 GiB");
    }

    #[test]
    fn cpu_lists() {
        let set = CpuSet::parse("0-3,8,10-11").unwrap();
        assert_eq!(set.to_string(), "0-3,8,10-11");
        assert_eq!(CpuSet::parse("0-10:1/4").unwrap().to_string(), "0,4,8");
        assert!(CpuSet::parse("3-1").is_none());
        assert!(CpuSet::parse("0-4294967295").is_none());
        assert!(CpuSet::parse("0-4:1/0").is_none());
        assert!(CpuSet::parse("").unwrap().is_empty());
    }
}
