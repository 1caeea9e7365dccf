//! Names of ciphers, modes and initialization vectors, as LUKS and QEMU write them.

use super::Hash;

/// A block cipher with a key length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    /// AES, 128 bits.
    Aes128,
    /// AES, 192 bits.
    Aes192,
    /// AES, 256 bits.
    Aes256,
    /// CAST5 (RFC 2144), 128 bits; blocks of 8 bytes.
    Cast5,
    /// Serpent, 128 bits.
    Serpent128,
    /// Serpent, 192 bits.
    Serpent192,
    /// Serpent, 256 bits.
    Serpent256,
    /// Twofish, 128 bits.
    Twofish128,
    /// Twofish, 192 bits.
    Twofish192,
    /// Twofish, 256 bits.
    Twofish256,
}

/// Every cipher: QEMU's name, the family's name in LUKS headers, bytes of the key.
const CIPHERS: &[(Cipher, &str, &str, usize)] = &[
    (Cipher::Aes128, "aes-128", "aes", 16),
    (Cipher::Aes192, "aes-192", "aes", 24),
    (Cipher::Aes256, "aes-256", "aes", 32),
    (Cipher::Cast5, "cast5-128", "cast5", 16),
    (Cipher::Serpent128, "serpent-128", "serpent", 16),
    (Cipher::Serpent192, "serpent-192", "serpent", 24),
    (Cipher::Serpent256, "serpent-256", "serpent", 32),
    (Cipher::Twofish128, "twofish-128", "twofish", 16),
    (Cipher::Twofish192, "twofish-192", "twofish", 24),
    (Cipher::Twofish256, "twofish-256", "twofish", 32),
];

impl Cipher {
    fn row(self) -> &'static (Cipher, &'static str, &'static str, usize) {
        CIPHERS.iter().find(|row| row.0 == self).unwrap_or(&CIPHERS[0])
    }

    /// QEMU's name: `aes-256`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The family's name in LUKS headers: `aes`.
    #[must_use]
    pub fn family(self) -> &'static str {
        self.row().2
    }

    /// Bytes of the key (half of what XTS takes).
    #[must_use]
    pub fn key_len(self) -> usize {
        self.row().3
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_len(self) -> usize {
        if self == Cipher::Cast5 { 8 } else { 16 }
    }

    /// By QEMU's name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        CIPHERS.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// The one of a family with this key length.
    #[must_use]
    pub fn of_family(family: &str, key_len: usize) -> Option<Self> {
        CIPHERS.iter().find(|row| row.2 == family && row.3 == key_len).map(|row| row.0)
    }

    /// Whether any cipher of this family is known.
    #[must_use]
    pub fn knows_family(family: &str) -> bool {
        CIPHERS.iter().any(|row| row.2 == family)
    }
}

/// How blocks of a sector are chained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each by itself.
    Ecb,
    /// Cipher block chaining.
    Cbc,
    /// XEX with tweak (IEEE 1619); two keys.
    Xts,
    /// Counter.
    Ctr,
}

const MODES: &[(Mode, &str)] =
    &[(Mode::Ecb, "ecb"), (Mode::Cbc, "cbc"), (Mode::Xts, "xts"), (Mode::Ctr, "ctr")];

impl Mode {
    /// Its name: `xts`.
    #[must_use]
    pub fn name(self) -> &'static str {
        MODES.iter().find(|m| m.0 == self).map_or("", |m| m.1)
    }

    /// By its name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        MODES.iter().find(|m| m.1 == name).map(|m| m.0)
    }

    /// Keys of the cipher that the mode takes.
    #[must_use]
    pub fn keys(self) -> usize {
        if self == Mode::Xts { 2 } else { 1 }
    }
}

/// How the number of a sector becomes an initialization vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IvKind {
    /// The low 32 bits, little endian.
    Plain,
    /// 64 bits, little endian.
    Plain64,
    /// 64 bits, encrypted with the hash of the key.
    Essiv(Hash),
    /// Number of the first block of the cipher, counted from 1, big endian (dm-crypt).
    Benbi,
    /// Always zero (dm-crypt's `null`).
    Null,
}

impl IvKind {
    /// QEMU's name, without the hash.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            IvKind::Plain => "plain",
            IvKind::Plain64 => "plain64",
            IvKind::Essiv(_) => "essiv",
            IvKind::Benbi => "benbi",
            IvKind::Null => "null",
        }
    }

    /// By its name; `hash` is what follows the colon.
    #[must_use]
    pub fn from_name(name: &str, hash: Option<Hash>) -> Option<Self> {
        Some(match (name, hash) {
            ("plain", _) => IvKind::Plain,
            ("plain64", _) => IvKind::Plain64,
            ("benbi", _) => IvKind::Benbi,
            ("null", _) => IvKind::Null,
            ("essiv", Some(hash)) => IvKind::Essiv(hash),
            _ => return None,
        })
    }
}
