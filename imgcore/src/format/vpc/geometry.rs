//! Cylinders, heads and sectors: the specification's appendix "CHS Calculation", and whether a disk's size
//! is what they say.
//!
//! Virtual PC shows its guest the size of the geometry, which is a little smaller than `Current Size`; other
//! programs show `Current Size`. QEMU decides by who made the image, and so does this.

use super::layout::{Footer, MAX_CHS, MAX_SECTORS, SECTOR};
use crate::{Error, Result};

/// A geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chs {
    pub cylinders: u16,
    pub heads: u8,
    pub sectors: u8,
}

impl Chs {
    /// The largest geometry, which says nothing about the size.
    pub const MAX: Chs = Chs { cylinders: 65535, heads: 16, sectors: 255 };

    /// The geometry of a disk of so many sectors; it covers no more than these.
    pub fn of(total: u64) -> Chs {
        let total = total.min(MAX_CHS);
        let (mut sectors, mut heads, mut tracks);
        if total >= 65535 * 16 * 63 {
            (sectors, heads) = (255, 16);
            tracks = total / sectors;
        } else {
            sectors = 17;
            tracks = total / sectors;
            heads = tracks.div_ceil(1024).max(4);
            if tracks >= heads * 1024 || heads > 16 {
                (sectors, heads) = (31, 16);
                tracks = total / sectors;
            }
            if tracks >= heads * 1024 {
                (sectors, heads) = (63, 16);
                tracks = total / sectors;
            }
        }
        Chs {
            cylinders: u16::try_from(tracks / heads).unwrap_or(u16::MAX),
            heads: u8::try_from(heads).unwrap_or(16),
            sectors: u8::try_from(sectors).unwrap_or(255),
        }
    }

    /// Sectors covered.
    pub fn total(self) -> u64 {
        u64::from(self.cylinders) * u64::from(self.heads) * u64::from(self.sectors)
    }

    /// The smallest geometry that covers `wanted` sectors, if there is one.
    pub fn covering(wanted: u64) -> Option<Chs> {
        // The geometry loses less than a cylinder.
        (wanted..=wanted + 16 * 255).map(Chs::of).find(|chs| chs.total() >= wanted)
    }
}

/// How the size is found out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum SizeRule {
    /// By the maker of the image.
    #[default]
    Maker,
    /// The geometry (`force_size_calc=chs`).
    Chs,
    /// `Current Size` (`force_size_calc=current_size`).
    CurrentSize,
}

impl SizeRule {
    /// The value of the option `force_size_calc`.
    pub fn parse(text: &str) -> Result<SizeRule> {
        match text {
            "chs" => Ok(SizeRule::Chs),
            "current_size" => Ok(SizeRule::CurrentSize),
            _ => Err(Error::invalid(format!("Invalid size calculation mode: '{text}'"))),
        }
    }

    /// Bytes of the guest's disk.
    pub fn size(self, footer: &Footer) -> Result<u64> {
        let chs =
            Chs { cylinders: footer.cylinders.get(), heads: footer.heads, sectors: footer.sectors };
        let by_chs = match self {
            SizeRule::Chs => true,
            SizeRule::CurrentSize => false,
            SizeRule::Maker => [*b"qemu", *b"vpc "].contains(&footer.creator),
        };
        // The largest geometry stands for anything larger, and an empty one for nothing at all.
        let by_chs = by_chs && chs.total() < MAX_CHS && chs.total() > 0;
        let sectors = if by_chs { chs.total() } else { footer.current_size.get() / SECTOR };
        if sectors > MAX_SECTORS {
            return Err(Error::errno(libc::EFBIG).at_offset(48));
        }
        Ok(sectors * SECTOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_qemu_img_makes() {
        let mib = 2048;
        for (wanted, made) in [
            (2, 34816),
            (mib, 1_079_296),
            (10 * mib, 10_514_432),
            (100 * mib, 104_865_792),
            (4096 * mib, 4_295_467_008u64),
        ] {
            assert_eq!(Chs::covering(wanted).unwrap().total() * 512, made, "{wanted}");
        }
        assert_eq!(Chs::covering(MAX_CHS + 1), None);
        assert_eq!(Chs::of(u64::MAX), Chs::MAX);
    }
}
