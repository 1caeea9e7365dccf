//! Ciphers for disks: what encrypts a sector, and how a passphrase becomes a key.
//!
//! Bytes in, bytes out: nothing here knows of files or formats.
//!
//! * [`SectorCipher`]: a block cipher in a mode with sector numbers as initialization vectors, the
//!   scheme of Linux's dm-crypt ("cipher[:keycount]-chainmode-ivmode", kernel documentation,
//!   `admin-guide/device-mapper/dm-crypt.rst`) that LUKS and qcow2 share.
//! * [`Hash`]: hash functions, [`pbkdf::pbkdf2`] (RFC 8018, section 5.2) with a bound on its time.
//! * [`af`]: the anti-forensic splitter of LUKS ("LUKS On-Disk Format Specification" 1.2.3, section 2.4).
//! * [`SecretBytes`]: key material, wiped when it is dropped.

pub mod af;
mod block;
pub mod cipher;
pub mod hash;
pub mod pbkdf;
pub mod sector;

pub use cipher::{Cipher, IvKind, Mode};
pub use hash::Hash;
pub use sector::{SectorCipher, raw_cbc_decrypt};

/// Key material: wiped when dropped.
pub type SecretBytes = zeroize::Zeroizing<Vec<u8>>;

/// Fills `buf` with random bytes fit for keys.
///
/// # Errors
/// When the kernel has none to give.
pub fn random(buf: &mut [u8]) -> crate::Result<()> {
    getrandom::fill(buf).map_err(|e| {
        let error = crate::Error::errno(e.raw_os_error().unwrap_or(libc::EIO));
        error.context("Unable to generate random bytes")
    })
}

/// Whether two digests are the same, in a time that does not tell where they differ.
#[must_use]
pub fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |d, (x, y)| d | (x ^ y)) == 0
}

#[cfg(test)]
mod tests;
