//! Identifiers of 16 bytes, as disk formats store them and as people read them.
//!
//! Two orders of bytes are in use: as written in the text (VHD), and with the first three groups little
//! endian (VDI, VHDX; Microsoft calls these GUIDs).

use std::fmt;

/// An identifier, its bytes in the order of the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Uuid([u8; 16]);

impl Uuid {
    /// No identifier.
    pub const NIL: Uuid = Uuid([0; 16]);

    /// From bytes stored in the order of the text.
    pub const fn from_be(bytes: [u8; 16]) -> Self {
        Uuid(bytes)
    }

    /// The bytes in the order of the text.
    pub const fn to_be(self) -> [u8; 16] {
        self.0
    }

    /// From bytes stored with the first three groups little endian.
    pub const fn from_le(bytes: [u8; 16]) -> Self {
        Uuid(swap(bytes))
    }

    /// The bytes with the first three groups little endian.
    pub const fn to_le(self) -> [u8; 16] {
        swap(self.0)
    }

    /// True for all zeroes.
    pub fn is_nil(self) -> bool {
        self == Uuid::NIL
    }

    /// A new random identifier (RFC 9562, version 4).
    pub fn random() -> Self {
        use std::hash::{BuildHasher, Hasher};
        // The keys of a RandomState come from the system's source of randomness.
        let half = |salt: u64| {
            let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
            hasher.write_u64(salt);
            hasher.finish().to_be_bytes()
        };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&half(1));
        bytes[8..].copy_from_slice(&half(2));
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Uuid(bytes)
    }

    /// Reads `8-4-4-4-12` hexadecimal digits, with or without braces.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let text = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(text);
        let groups: Vec<&str> = text.split('-').collect();
        if groups.iter().map(|g| g.len()).ne([8, 4, 4, 4, 12]) {
            return None;
        }
        let digits = groups.concat();
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().as_chunks::<2>().0) {
            if !pair.iter().all(u8::is_ascii_hexdigit) {
                return None;
            }
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Uuid(bytes))
    }
}

const fn swap(b: [u8; 16]) -> [u8; 16] {
    [
        b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13],
        b[14], b[15],
    ]
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_orders_and_the_text() {
        let text = "00112233-4455-6677-8899-aabbccddeeff";
        let id = Uuid::parse(text).unwrap();
        assert_eq!(id.to_string(), text);
        assert_eq!(id.to_le()[..8], [0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66]);
        assert_eq!(Uuid::from_le(id.to_le()), id);
        assert_eq!(Uuid::from_be(id.to_be()), id);
        assert_eq!(Uuid::parse(&format!(" {{{text}}}")), Some(id));
        for bad in
            ["", "x", "00112233-4455-6677-8899-aabbccddeef", "+0112233-4455-6677-8899-aabbccddeeff"]
        {
            assert_eq!(Uuid::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn random_ones_differ() {
        let (a, b) = (Uuid::random(), Uuid::random());
        assert_ne!(a, b);
        assert_eq!(&a.to_string()[14..15], "4");
    }
}
