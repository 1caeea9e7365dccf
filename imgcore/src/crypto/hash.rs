//! Hash functions.

use sha2::Digest;

/// A hash function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// SHA-1.
    Sha1,
    /// SHA-224.
    Sha224,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
    /// RIPEMD-160.
    Ripemd160,
}

const HASHES: &[(Hash, &str, usize)] = &[
    (Hash::Sha1, "sha1", 20),
    (Hash::Sha224, "sha224", 28),
    (Hash::Sha256, "sha256", 32),
    (Hash::Sha384, "sha384", 48),
    (Hash::Sha512, "sha512", 64),
    (Hash::Ripemd160, "ripemd160", 20),
];

impl Hash {
    /// Its name: `sha256`.
    #[must_use]
    pub fn name(self) -> &'static str {
        HASHES.iter().find(|h| h.0 == self).map_or("", |h| h.1)
    }

    /// By its name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        HASHES.iter().find(|h| h.1 == name).map(|h| h.0)
    }

    /// Bytes of a digest.
    #[must_use]
    pub fn size(self) -> usize {
        HASHES.iter().find(|h| h.0 == self).map_or(0, |h| h.2)
    }

    /// The digest of the parts, one after the other.
    #[must_use]
    pub fn digest(self, parts: &[&[u8]]) -> Vec<u8> {
        match self {
            Hash::Sha1 => digest::<sha1::Sha1>(parts),
            Hash::Sha224 => digest::<sha2::Sha224>(parts),
            Hash::Sha256 => digest::<sha2::Sha256>(parts),
            Hash::Sha384 => digest::<sha2::Sha384>(parts),
            Hash::Sha512 => digest::<sha2::Sha512>(parts),
            Hash::Ripemd160 => digest::<ripemd::Ripemd160>(parts),
        }
    }
}

fn digest<D: Digest>(parts: &[&[u8]]) -> Vec<u8> {
    let mut state = D::new();
    for part in parts {
        state.update(part);
    }
    state.finalize().to_vec()
}
