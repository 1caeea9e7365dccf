//! Block ciphers behind one type: runs of blocks in place.

use cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, KeyInit};

use super::Cipher;
use crate::{Error, Result};

/// A block cipher with its key. The schedules are wiped when dropped.
pub(super) enum Blocks {
    Aes128(aes::Aes128),
    Aes192(aes::Aes192),
    Aes256(aes::Aes256),
    Cast5(Box<cast5::Cast5>),
    Serpent(Box<serpent::Serpent>),
    Twofish(Box<twofish::Twofish>),
}

fn key<C: KeyInit>(bytes: &[u8]) -> Result<C> {
    C::new_from_slice(bytes).map_err(|_| Error::invalid(format!("no key of {} bytes", bytes.len())))
}

fn encrypt<C: BlockCipherEncrypt>(with: &C, data: &mut [u8]) {
    let (blocks, _) = Array::<u8, <C as BlockSizeUser>::BlockSize>::slice_as_chunks_mut(data);
    with.encrypt_blocks(blocks);
}

fn decrypt<C: BlockCipherDecrypt>(with: &C, data: &mut [u8]) {
    let (blocks, _) = Array::<u8, <C as BlockSizeUser>::BlockSize>::slice_as_chunks_mut(data);
    with.decrypt_blocks(blocks);
}

impl Blocks {
    /// Sets a key of [`Cipher::key_len`] bytes.
    pub fn new(cipher: Cipher, bytes: &[u8]) -> Result<Self> {
        if bytes.len() != cipher.key_len() {
            return Err(Error::invalid(format!(
                "Cipher key length {} should be {}",
                bytes.len(),
                cipher.key_len()
            )));
        }
        Ok(match cipher {
            Cipher::Aes128 => Blocks::Aes128(key(bytes)?),
            Cipher::Aes192 => Blocks::Aes192(key(bytes)?),
            Cipher::Aes256 => Blocks::Aes256(key(bytes)?),
            Cipher::Cast5 => Blocks::Cast5(Box::new(key(bytes)?)),
            Cipher::Serpent128 | Cipher::Serpent192 | Cipher::Serpent256 => {
                Blocks::Serpent(Box::new(key(bytes)?))
            }
            Cipher::Twofish128 | Cipher::Twofish192 | Cipher::Twofish256 => {
                Blocks::Twofish(Box::new(key(bytes)?))
            }
        })
    }

    /// Encrypts whole blocks, each by itself.
    pub fn encrypt(&self, data: &mut [u8]) {
        match self {
            Blocks::Aes128(c) => encrypt(c, data),
            Blocks::Aes192(c) => encrypt(c, data),
            Blocks::Aes256(c) => encrypt(c, data),
            Blocks::Cast5(c) => encrypt(&**c, data),
            Blocks::Serpent(c) => encrypt(&**c, data),
            Blocks::Twofish(c) => encrypt(&**c, data),
        }
    }

    /// Decrypts whole blocks, each by itself.
    pub fn decrypt(&self, data: &mut [u8]) {
        match self {
            Blocks::Aes128(c) => decrypt(c, data),
            Blocks::Aes192(c) => decrypt(c, data),
            Blocks::Aes256(c) => decrypt(c, data),
            Blocks::Cast5(c) => decrypt(&**c, data),
            Blocks::Serpent(c) => decrypt(&**c, data),
            Blocks::Twofish(c) => decrypt(&**c, data),
        }
    }
}
