//! Numbers out of on-disk structures, checked: a structure that is cut off is an error, never a panic and
//! never a zero.
//!
//! File systems are read here for a few fields of many structures, so each reader names the offsets it
//! uses and the structure of the specification they belong to, instead of declaring all of it.

use crate::format::uuid::Uuid;
use crate::num::{len_u64, small};
use crate::{Error, Result};

/// A structure as it lies on the disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a>(pub &'a [u8]);

macro_rules! number {
    ($name:ident, $type:ty, $from:ident, $doc:literal) => {
        #[doc = $doc]
        pub(crate) fn $name(self, at: usize) -> Result<$type> {
            Ok(<$type>::$from(self.array(at)?))
        }
    };
}

impl<'a> Fields<'a> {
    /// `N` bytes from `at`.
    pub(crate) fn array<const N: usize>(self, at: usize) -> Result<[u8; N]> {
        self.slice(at, N)?.try_into().map_err(|_| cut_off())
    }

    /// `len` bytes from `at`.
    pub(crate) fn slice(self, at: usize, len: usize) -> Result<&'a [u8]> {
        at.checked_add(len).and_then(|end| self.0.get(at..end)).ok_or_else(cut_off)
    }

    /// `len` bytes from `at` as a structure of their own.
    pub(crate) fn part(self, at: usize, len: usize) -> Result<Fields<'a>> {
        self.slice(at, len).map(Fields)
    }

    /// What is left from `at` on.
    pub(crate) fn rest(self, at: usize) -> Result<Fields<'a>> {
        self.0.get(at..).map(Fields).ok_or_else(cut_off)
    }

    /// One byte.
    pub(crate) fn u8(self, at: usize) -> Result<u8> {
        self.0.get(at).copied().ok_or_else(cut_off)
    }

    number!(le16, u16, from_le_bytes, "Little endian, 16 bits.");
    number!(le32, u32, from_le_bytes, "Little endian, 32 bits.");
    number!(le64, u64, from_le_bytes, "Little endian, 64 bits.");
    number!(be16, u16, from_be_bytes, "Big endian, 16 bits.");
    number!(be32, u32, from_be_bytes, "Big endian, 32 bits.");
    number!(be64, u64, from_be_bytes, "Big endian, 64 bits.");

    /// Text up to the first NUL in `len` bytes from `at`, without blanks around it.
    pub(crate) fn text(self, at: usize, len: usize) -> Result<String> {
        let bytes = self.slice(at, len)?;
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(len);
        Ok(String::from_utf8_lossy(&bytes[..end]).trim().to_owned())
    }

    /// The 16 bytes of a UUID in the order they are written.
    pub(crate) fn uuid(self, at: usize) -> Result<String> {
        Ok(uuid(&self.array(at)?))
    }
}

/// A UUID in its usual form.
pub(crate) fn uuid(bytes: &[u8; 16]) -> String {
    Uuid::from_be(*bytes).to_string()
}

/// UTF-16, little endian, with a replacement for what is none.
pub(crate) fn utf16(bytes: &[u8]) -> String {
    let units = bytes.chunks_exact(2).map(|p| u16::from_le_bytes([p[0], p[1]]));
    String::from_utf16_lossy(&units.collect::<Vec<_>>())
}

/// A structure that ends too early.
pub(crate) fn cut_off() -> Error {
    Error::corrupt("a structure of the file system is cut off")
}

/// How much of `buf` a file of `size` bytes fills from `at` on.
pub(crate) fn share(size: u64, at: u64, buf: &[u8]) -> usize {
    small(size.saturating_sub(at).min(len_u64(buf.len())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn nothing_is_read_past_the_end() {
        let f = Fields(&[1, 2, 3, 4, 5]);
        assert_eq!(f.le16(0).unwrap(), 0x0201);
        assert_eq!(f.be32(1).unwrap(), 0x0203_0405);
        assert!(f.le32(2).is_err());
        assert!(f.u8(5).is_err());
        assert!(f.slice(usize::MAX, 2).is_err());
        assert!(f.rest(6).is_err());
    }

    #[test]
    fn texts() {
        assert_eq!(Fields(b"ab \0cd").text(0, 6).unwrap(), "ab");
        assert_eq!(utf16(&[0x41, 0, 0xe4, 0]), "Aä");
        let bytes = [0x11; 16];
        assert_eq!(uuid(&bytes), "11111111-1111-1111-1111-111111111111");
    }
}
