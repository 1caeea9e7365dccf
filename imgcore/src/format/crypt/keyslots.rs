//! Key slots of LUKS1: getting the master key with a passphrase, setting and erasing slots ("LUKS1
//! On-Disk Format Specification", sections 4.1 to 4.4).

use super::luks1::{Luks1, SECTOR, SLOTS, STRIPES};
use crate::crypto::pbkdf::{pbkdf2, rounds_per_second};
use crate::crypto::{self, SecretBytes, af};
use crate::num::small;
use crate::storage::Storage;
use crate::{Error, Result};

/// Fewest rounds of PBKDF2 of a new slot, whatever the time.
const FEWEST_ROUNDS: u64 = 1000;
/// How often erased key material is overwritten with random bytes.
const OVERWRITES: u32 = 4;

/// A passphrase that opens no slot.
pub fn wrong_passphrase() -> Error {
    Error::invalid("Invalid password, cannot unlock any keyslot")
}

/// Rounds of PBKDF2 that take `milliseconds` here for a key of `len` bytes; `divide` makes it cheaper.
///
/// # Errors
/// When they do not fit into the header.
pub fn rounds_for(hash: crypto::Hash, len: usize, milliseconds: u64, divide: u64) -> Result<u32> {
    let second = rounds_per_second(hash, len)?;
    let rounds = (second / divide).checked_mul(milliseconds).map(|n| n / 1000);
    match rounds.map(|n| u32::try_from(n.max(FEWEST_ROUNDS))) {
        Some(Ok(rounds)) => Ok(rounds),
        _ => Err(Error::invalid(format!(
            "PBKDF iterations {second} per second make no count for {milliseconds} milliseconds"
        ))
        .hint("give a shorter time: iter-time=2000 is usual")),
    }
}

impl Luks1 {
    /// The master key, and which slot the passphrase opened.
    ///
    /// # Errors
    /// A passphrase that opens no slot, key material beyond the end of the file.
    pub fn unlock(&self, storage: &dyn Storage, passphrase: &[u8]) -> Result<(SecretBytes, usize)> {
        let mut trouble = None;
        for index in (0..SLOTS).filter(|&i| self.slots[i].active) {
            match self.open_slot(storage, index, passphrase) {
                Ok(Some(key)) => return Ok((key, index)),
                Ok(None) => {}
                Err(e) => {
                    trouble.get_or_insert(e);
                }
            }
        }
        Err(trouble.unwrap_or_else(wrong_passphrase))
    }

    /// The master key from one slot; `None` when the passphrase is not that of this slot.
    ///
    /// # Errors
    /// As [`Luks1::unlock`].
    pub fn open_slot(
        &self,
        storage: &dyn Storage,
        index: usize,
        passphrase: &[u8],
    ) -> Result<Option<SecretBytes>> {
        let slot = &self.slots[index];
        let at = u64::from(slot.material) * SECTOR;
        if at + self.material_len() > storage.len()?.next_multiple_of(SECTOR) {
            return Err(Error::corrupt(format!(
                "the key material of keyslot {index} lies beyond the end of the file"
            ))
            .at_path(storage.name())
            .at_offset(at)
            .hint("the file is not complete; copy it again"));
        }
        let of_slot = |e: Error| e.context(format!("keyslot {index}")).at_path(storage.name());
        let len = self.key_bytes();
        let key =
            pbkdf2(self.hash, passphrase, &slot.salt, slot.iterations, len).map_err(of_slot)?;
        let mut material = SecretBytes::new(vec![0; small(self.material_len())]);
        storage.read_at(at, &mut material)?;
        self.disk_cipher(&key)?.decrypt(0, &mut material);
        let master = af::merge(self.hash, &material[..len * STRIPES as usize], len);
        let digest = self.digest_of(&master)?;
        Ok(crypto::same(&digest, &self.digest).then_some(master))
    }

    fn digest_of(&self, master: &[u8]) -> Result<SecretBytes> {
        let rounds = self.digest_iterations;
        pbkdf2(self.hash, master, &self.digest_salt, rounds, self.digest.len())
            .map_err(|e| e.context("digest of the master key"))
    }

    /// Records the digest of a new master key.
    ///
    /// # Errors
    /// When rounds cannot be timed or there are no random bytes.
    pub fn set_digest(&mut self, master: &[u8], milliseconds: u64) -> Result<()> {
        crypto::random(&mut self.digest_salt)?;
        // An eighth of the work, as cryptsetup does: it guards a random key, not a passphrase.
        self.digest_iterations = rounds_for(self.hash, self.digest.len(), milliseconds, 8)?;
        let digest = self.digest_of(master)?;
        self.digest.copy_from_slice(&digest);
        Ok(())
    }

    /// Puts the master key into a slot under a passphrase: the key material, then the header.
    ///
    /// # Errors
    /// Of the storage; the slot is inactive then.
    pub fn set_slot(
        &mut self,
        storage: &dyn Storage,
        index: usize,
        (master, passphrase): (&[u8], &[u8]),
        milliseconds: u64,
    ) -> Result<()> {
        let len = self.key_bytes();
        let mut salt = [0u8; 32];
        crypto::random(&mut salt)?;
        let rounds = rounds_for(self.hash, len, milliseconds, 1)?;
        let key = pbkdf2(self.hash, passphrase, &salt, rounds, len)?;
        let mut material = af::split(self.hash, master, STRIPES as usize)?;
        material.resize(small(self.material_len()), 0);
        self.disk_cipher(&key)?.encrypt(0, &mut material);
        let at = u64::from(self.slots[index].material) * SECTOR;
        storage.write_at(at, &material)?;
        storage.flush()?;
        let old = self.slots[index].clone();
        let slot = &mut self.slots[index];
        (slot.active, slot.iterations, slot.salt) = (true, rounds, salt);
        self.write(storage).inspect_err(|_| self.slots[index] = old)
    }

    /// Erases a slot: the header that says so, then the key material.
    ///
    /// # Errors
    /// Of the storage.
    pub fn erase_slot(&mut self, storage: &dyn Storage, index: usize) -> Result<()> {
        let slot = &mut self.slots[index];
        (slot.active, slot.iterations, slot.salt) = (false, 0, [0; 32]);
        self.write(storage)?;
        let at = u64::from(self.slots[index].material) * SECTOR;
        let mut noise = vec![0u8; small(self.material_len())];
        for _ in 0..OVERWRITES {
            crypto::random(&mut noise)?;
            storage.write_at(at, &noise)?;
            storage.flush()?;
        }
        Ok(())
    }

    /// Slots in use.
    pub fn active_slots(&self) -> usize {
        self.slots.iter().filter(|s| s.active).count()
    }

    /// All slots that a passphrase opens.
    ///
    /// # Errors
    /// As [`Luks1::open_slot`].
    pub fn matching_slots(&self, storage: &dyn Storage, passphrase: &[u8]) -> Result<Vec<usize>> {
        let mut found = Vec::new();
        for index in (0..SLOTS).filter(|&i| self.slots[i].active) {
            if self.open_slot(storage, index, passphrase)?.is_some() {
                found.push(index);
            }
        }
        Ok(found)
    }
}
