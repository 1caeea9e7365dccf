//! What a new LUKS header may be made of.

use super::keyslots::rounds_for;
use super::luks1::{Luks1, SLOTS, Slot};
use crate::crypto::{self, Cipher, Hash, IvKind, Mode, SecretBytes};
use crate::format::CreateOptions;
use crate::format::uuid::Uuid;
use crate::storage::Storage;
use crate::{Error, Result};

/// Checked wishes; the defaults are QEMU's.
#[derive(Clone, Debug)]
pub struct Choices {
    cipher: Cipher,
    mode: Mode,
    iv: IvKind,
    mode_text: String,
    hash: Hash,
    /// Milliseconds of PBKDF2.
    iter_time: u64,
}

fn not_accepted(name: &str, value: &str) -> Error {
    Error::invalid(format!("Parameter '{name}' does not accept value '{value}'"))
}

/// Values that QEMU takes and this program does not have.
const OTHER_CIPHERS: &[&str] = &["des", "3des", "sm4"];
const OTHER_HASHES: &[&str] = &["md5", "sm3"];

impl Choices {
    /// From `-o` options whose names begin with `prefix`.
    ///
    /// # Errors
    /// A value that is not known, or a combination that makes no cipher.
    pub fn parse(options: &CreateOptions, prefix: &str) -> Result<Self> {
        let text = |name: &str| options.text(&format!("{prefix}{name}"));
        let cipher = match text("cipher-alg") {
            None => Cipher::Aes256,
            Some(name) if OTHER_CIPHERS.contains(&name) => {
                return Err(Error::unsupported(format!("Algorithm '{name}' not supported")));
            }
            Some(name) => {
                Cipher::from_name(name).ok_or_else(|| not_accepted("cipher-alg", name))?
            }
        };
        let mode = match text("cipher-mode") {
            None => Mode::Xts,
            Some(name) => Mode::from_name(name).ok_or_else(|| not_accepted("cipher-mode", name))?,
        };
        let hash_named = |option: &str| match text(option) {
            None => Ok(None),
            Some(name) if OTHER_HASHES.contains(&name) => {
                Err(Error::unsupported(format!("Unsupported hash algorithm {name}")))
            }
            Some(name) => Hash::from_name(name).map(Some).ok_or_else(|| not_accepted(option, name)),
        };
        let hash = hash_named("hash-alg")?.unwrap_or(Hash::Sha256);
        let iv_hash = hash_named("ivgen-hash-alg")?;
        let iv = match text("ivgen-alg") {
            None | Some("plain64") => IvKind::Plain64,
            Some("plain") => IvKind::Plain,
            Some("essiv") => IvKind::Essiv(iv_hash.unwrap_or(Hash::Sha256)),
            Some(other) => return Err(not_accepted("ivgen-alg", other)),
        };
        let shown_hash = match iv {
            IvKind::Essiv(hash) => Some(hash),
            _ => iv_hash,
        };
        let hash_text = shown_hash.map(|h| format!(":{}", h.name())).unwrap_or_default();
        let choices = Choices {
            cipher,
            mode,
            iv,
            mode_text: format!("{}-{}{hash_text}", mode.name(), iv.name()),
            hash,
            iter_time: options.number(&format!("{prefix}iter-time")).unwrap_or(2000),
        };
        if mode == Mode::Xts && cipher.block_len() != 16 {
            return Err(Error::unsupported("Unsupported cipher mode xts"));
        }
        // Everything else that is no cipher.
        let key = vec![0; choices.key_bytes()];
        crypto::SectorCipher::new(cipher, mode, iv, &key, 512)?;
        Ok(choices)
    }

    /// Bytes of the master key.
    pub fn key_bytes(&self) -> usize {
        self.cipher.key_len() * self.mode.keys()
    }

    /// Bytes of header and key material.
    pub fn area_len(&self) -> u64 {
        Luks1::area_len(self.key_bytes())
    }

    /// A new header with a new master key, whose first slot the passphrase opens. `payload` is where
    /// the encrypted disk begins, in bytes from the header. `storage` must be there for
    /// [`Choices::area_len`] bytes.
    ///
    /// # Errors
    /// Of the storage, or when rounds cannot be timed.
    pub fn make(
        &self,
        storage: &dyn Storage,
        passphrase: &[u8],
        payload: u64,
    ) -> Result<(Luks1, SecretBytes)> {
        // Said before anything is written.
        rounds_for(self.hash, self.key_bytes(), self.iter_time, 1)?;
        let mut master = SecretBytes::new(vec![0; self.key_bytes()]);
        crypto::random(&mut master)?;
        let mut header = Luks1 {
            cipher: self.cipher,
            mode: self.mode,
            iv: self.iv,
            mode_text: self.mode_text.clone(),
            hash: self.hash,
            payload: u32::try_from(payload / 512).map_err(|_| Error::errno(libc::EFBIG))?,
            digest: [0; 20],
            digest_salt: [0; 32],
            digest_iterations: 0,
            uuid: Uuid::random().to_string(),
            slots: std::array::from_fn(|i| Slot {
                active: false,
                iterations: 0,
                salt: [0; 32],
                material: Luks1::material_place(self.key_bytes(), i),
            }),
        };
        debug_assert_eq!(header.slots.len(), SLOTS);
        header.set_digest(&master, self.iter_time)?;
        header.set_slot(storage, 0, (&master, passphrase), self.iter_time)?;
        Ok((header, master))
    }
}
