//! The anti-forensic splitter of LUKS ("LUKS On-Disk Format Specification", section 2.4): a key is
//! spread over many times its length, so that losing any part of it on disk loses the key.

use super::{Hash, SecretBytes};
use crate::Result;

/// Spreads `key` over `stripes` times its length.
///
/// # Errors
/// When there are no random bytes.
pub fn split(hash: Hash, key: &[u8], stripes: usize) -> Result<SecretBytes> {
    let mut out = SecretBytes::new(vec![0; key.len() * stripes]);
    let mut block = SecretBytes::new(vec![0; key.len()]);
    let (random, last) = out.split_at_mut(key.len() * (stripes - 1));
    super::random(random)?;
    for stripe in random.chunks(key.len()) {
        xor(&mut block, stripe);
        diffuse(hash, &mut block);
    }
    last.copy_from_slice(&block);
    xor(last, key);
    Ok(out)
}

/// Gets a key of `len` bytes back from what [`split`] made.
#[must_use]
pub fn merge(hash: Hash, split: &[u8], len: usize) -> SecretBytes {
    let mut block = SecretBytes::new(vec![0; len]);
    let (random, last) = split.split_at(split.len().saturating_sub(len));
    for stripe in random.chunks(len) {
        xor(&mut block, stripe);
        diffuse(hash, &mut block);
    }
    xor(&mut block, last);
    block
}

fn xor(to: &mut [u8], with: &[u8]) {
    for (a, b) in to.iter_mut().zip(with) {
        *a ^= b;
    }
}

/// Replaces each piece of a digest's length by the digest of its number and itself.
fn diffuse(hash: Hash, block: &mut [u8]) {
    for (number, piece) in (0u32..).zip(block.chunks_mut(hash.size())) {
        let digest = SecretBytes::new(hash.digest(&[&number.to_be_bytes(), piece]));
        piece.copy_from_slice(&digest[..piece.len()]);
    }
}
