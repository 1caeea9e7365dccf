//! Encrypting sectors.
//!
//! Work is done in batches of several sectors, so that the cipher always has many independent blocks
//! to run through the processor's AES pipelines: with XTS the tweaks of a batch are made first; CBC
//! encryption, serial within a sector, goes through the sectors of a batch side by side.

use super::block::Blocks;
use super::{Cipher, Hash, IvKind, Mode};
use crate::{Error, Result};

/// Bytes of a batch: the data and the tweaks stay in the first-level cache.
const BATCH: usize = 4096;
/// Smallest sector.
const SMALLEST: usize = 512;
/// Blocks of the largest cipher block size in a batch.
const BATCH_BLOCKS: usize = BATCH / 16;
/// Sectors in a batch, at most.
const BATCH_SECTORS: usize = BATCH / SMALLEST;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Encrypt,
    Decrypt,
}

/// A cipher, its mode, its initialization vectors and its key: encrypts sectors by their number.
pub struct SectorCipher {
    data: Blocks,
    /// ESSIV: encrypts the initialization vector.
    essiv: Option<Blocks>,
    /// XTS: encrypts the tweak.
    tweak: Option<Blocks>,
    mode: Mode,
    iv: IvKind,
    /// Bytes of a sector.
    sector: usize,
    /// Bytes of a block.
    block: usize,
    /// Step of the sector number from one sector to the next.
    step: u64,
}

impl std::fmt::Debug for SectorCipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SectorCipher({}-{}, {})", self.mode.name(), self.iv.name(), self.sector)
    }
}

impl SectorCipher {
    /// Sets a key of [`Cipher::key_len`] bytes (twice that for XTS) for sectors of `sector` bytes (512
    /// to 4096, a power of two). Sectors are numbered in units of 512 bytes, as dm-crypt does.
    ///
    /// # Errors
    /// A key of another length; a mode or an initialization vector that the cipher cannot have.
    pub fn new(cipher: Cipher, mode: Mode, iv: IvKind, key: &[u8], sector: usize) -> Result<Self> {
        if !sector.is_power_of_two() || !(SMALLEST..=BATCH).contains(&sector) {
            return Err(Error::unsupported(format!("sectors of {sector} bytes")));
        }
        let expected = cipher.key_len() * mode.keys();
        if key.len() != expected {
            return Err(Error::invalid(format!(
                "Cipher key length {} should be {expected}",
                key.len()
            )));
        }
        if mode == Mode::Xts && cipher.block_len() != 16 {
            return Err(Error::unsupported(format!(
                "Cipher {} is not supported with xts mode, which needs blocks of 16 bytes",
                cipher.name()
            )));
        }
        let (first, rest) = key.split_at(cipher.key_len());
        let essiv = match iv {
            IvKind::Essiv(hash) => {
                let key = super::SecretBytes::new(hash.digest(&[key]));
                Some(Blocks::new(essiv_cipher(cipher, hash)?, &key)?)
            }
            _ => None,
        };
        let tweak = if mode == Mode::Xts { Some(Blocks::new(cipher, rest)?) } else { None };
        Ok(SectorCipher {
            data: Blocks::new(cipher, first)?,
            essiv,
            tweak,
            mode,
            iv,
            sector,
            block: cipher.block_len(),
            step: crate::num::len_u64(sector / SMALLEST),
        })
    }

    /// Bytes of a sector.
    #[must_use]
    pub fn sector(&self) -> usize {
        self.sector
    }

    /// Encrypts whole sectors in place; `number` is that of the first, in units of 512 bytes.
    pub fn encrypt(&self, number: u64, data: &mut [u8]) {
        self.run(number, data, Direction::Encrypt);
    }

    /// Decrypts whole sectors in place; `number` is that of the first, in units of 512 bytes.
    pub fn decrypt(&self, number: u64, data: &mut [u8]) {
        self.run(number, data, Direction::Decrypt);
    }

    fn run(&self, mut number: u64, data: &mut [u8], direction: Direction) {
        let mut ivs = [0u8; BATCH_SECTORS * 16];
        for batch in data.chunks_mut(BATCH) {
            let count = batch.len() / self.sector;
            let batch = &mut batch[..count * self.sector];
            let ivs = &mut ivs[..count * self.block];
            if self.mode != Mode::Ecb {
                self.fill_ivs(number, ivs);
            }
            match (self.mode, direction) {
                (Mode::Xts, _) => self.xts(ivs, batch, direction),
                (Mode::Cbc, Direction::Encrypt) => self.cbc_encrypt(ivs, batch),
                (Mode::Cbc, Direction::Decrypt) => self.cbc_decrypt(ivs, batch),
                (Mode::Ctr, _) => self.ctr(ivs, batch),
                (Mode::Ecb, Direction::Encrypt) => self.data.encrypt(batch),
                (Mode::Ecb, Direction::Decrypt) => self.data.decrypt(batch),
            }
            number = number.wrapping_add(self.step * crate::num::len_u64(count));
        }
    }

    /// Initialization vectors of sectors from `number` on.
    fn fill_ivs(&self, number: u64, ivs: &mut [u8]) {
        ivs.fill(0);
        for (index, iv) in (0u64..).zip(ivs.chunks_exact_mut(self.block)) {
            let number = number.wrapping_add(index * self.step);
            match self.iv {
                IvKind::Plain => iv[..4].copy_from_slice(&number.to_le_bytes()[..4]),
                IvKind::Plain64 | IvKind::Essiv(_) => {
                    iv[..8].copy_from_slice(&number.to_le_bytes());
                }
                IvKind::Benbi => {
                    let blocks = crate::num::len_u64(SMALLEST / self.block);
                    let first = number.wrapping_mul(blocks).wrapping_add(1);
                    iv[self.block - 8..].copy_from_slice(&first.to_be_bytes());
                }
                IvKind::Null => {}
            }
        }
        for cipher in self.essiv.iter().chain(&self.tweak) {
            cipher.encrypt(ivs);
        }
    }

    /// XEX with tweaks that double from block to block (IEEE 1619, section 5.3).
    fn xts(&self, first: &[u8], batch: &mut [u8], direction: Direction) {
        let mut tweaks = [0u128; BATCH_BLOCKS];
        let per_sector = self.sector / 16;
        for (start, of_sector) in first.chunks_exact(16).zip(tweaks.chunks_mut(per_sector)) {
            let mut tweak = start.iter().rev().fold(0u128, |t, &b| t << 8 | u128::from(b));
            for slot in of_sector {
                *slot = tweak;
                tweak = tweak << 1 ^ ((tweak >> 127) * 0x87);
            }
        }
        xor_blocks(batch, &tweaks);
        match direction {
            Direction::Encrypt => self.data.encrypt(batch),
            Direction::Decrypt => self.data.decrypt(batch),
        }
        xor_blocks(batch, &tweaks);
    }

    fn cbc_decrypt(&self, ivs: &[u8], batch: &mut [u8]) {
        let mut before = [0u8; BATCH];
        let len = batch.len();
        before[self.block..len].copy_from_slice(&batch[..len - self.block]);
        for (start, iv) in (0..len).step_by(self.sector).zip(ivs.chunks_exact(self.block)) {
            before[start..start + self.block].copy_from_slice(iv);
        }
        self.data.decrypt(batch);
        for (byte, with) in batch.iter_mut().zip(&before[..len]) {
            *byte ^= with;
        }
    }

    /// Block by block, in all sectors of the batch at the same time.
    fn cbc_encrypt(&self, chain: &mut [u8], batch: &mut [u8]) {
        for at in (0..self.sector).step_by(self.block) {
            let starts = (at..batch.len()).step_by(self.sector);
            for (start, link) in starts.clone().zip(chain.chunks_exact_mut(self.block)) {
                for (c, byte) in link.iter_mut().zip(&batch[start..start + self.block]) {
                    *c ^= byte;
                }
            }
            self.data.encrypt(chain);
            for (start, link) in starts.zip(chain.chunks_exact(self.block)) {
                batch[start..start + self.block].copy_from_slice(link);
            }
        }
    }

    /// The initialization vector is the first counter, big endian.
    fn ctr(&self, ivs: &[u8], batch: &mut [u8]) {
        let mut stream = [0u8; BATCH];
        let len = batch.len();
        for (iv, of_sector) in
            ivs.chunks_exact(self.block).zip(stream[..len].chunks_exact_mut(self.sector))
        {
            let bits = 8 * self.block;
            let mut counter = iv.iter().fold(0u128, |c, &b| c << 8 | u128::from(b));
            for block in of_sector.chunks_exact_mut(self.block) {
                block.copy_from_slice(&counter.to_be_bytes()[16 - self.block..]);
                counter = counter.wrapping_add(1) & (u128::MAX >> (128 - bits));
            }
        }
        self.data.encrypt(&mut stream[..len]);
        for (byte, with) in batch.iter_mut().zip(&stream[..len]) {
            *byte ^= with;
        }
    }
}

/// Decrypts whole blocks in CBC mode, outside of any sector.
///
/// # Errors
/// A key of a wrong length, or bytes that are no whole blocks.
pub fn raw_cbc_decrypt(
    cipher: Cipher,
    key: &[u8],
    iv: &[u8; 16],
    data: &[u8],
) -> Result<super::SecretBytes> {
    let with = Blocks::new(cipher, key)?;
    let block = cipher.block_len();
    if !data.len().is_multiple_of(block) {
        return Err(Error::invalid(format!(
            "Length of data {} must be multiple of block size {block}",
            data.len()
        )));
    }
    let mut out = super::SecretBytes::new(data.to_vec());
    with.decrypt(&mut out);
    for (i, byte) in out.iter_mut().enumerate() {
        *byte ^= if i < block { iv[i] } else { data[i - block] };
    }
    Ok(out)
}

/// The cipher that encrypts initialization vectors: of the same family, its key as long as the digest.
fn essiv_cipher(cipher: Cipher, hash: Hash) -> Result<Cipher> {
    let family = match cipher.family() {
        "aes" => "AES",
        "serpent" => "Serpent",
        "twofish" => "Twofish",
        _ => {
            return Err(Error::unsupported(format!(
                "Cipher {} not supported with essiv",
                cipher.name()
            )));
        }
    };
    Cipher::of_family(cipher.family(), hash.size()).ok_or_else(|| {
        Error::unsupported(format!("No {family} cipher with key size {} available", hash.size()))
    })
}

fn xor_blocks(data: &mut [u8], with: &[u128]) {
    for (block, tweak) in data.chunks_exact_mut(16).zip(with) {
        let mut value = [0u8; 16];
        value.copy_from_slice(block);
        block.copy_from_slice(&(u128::from_le_bytes(value) ^ tweak).to_le_bytes());
    }
}
