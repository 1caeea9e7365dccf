//! The header of LUKS1: from bytes to checked values and back.

use std::sync::Arc;

use zerocopy::{FromBytes, IntoBytes};

use super::layout::{ACTIVE, INACTIVE, MAGIC, RawHeader, RawKeySlot};
use crate::crypto::{Cipher, Hash, IvKind, Mode, SectorCipher};
use crate::format::info::{LuksInfo, LuksSlotInfo};
use crate::num::{len_u64, round_up};
use crate::storage::Storage;
use crate::{Error, Result};

/// Bytes of a sector, in which everything is counted.
pub const SECTOR: u64 = 512;
/// Key slots of a header.
pub const SLOTS: usize = 8;
/// Stripes of the anti-forensic splitter, the only number in use.
pub const STRIPES: u32 = 4000;
/// Sectors before the first key material.
const FIRST_MATERIAL: u64 = 8;

/// Where the encrypted disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Behind the header, in the same storage.
    Behind,
    /// Elsewhere: the header is by itself.
    Detached,
}

/// One key slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Holds a key.
    pub active: bool,
    /// Rounds of PBKDF2.
    pub iterations: u32,
    /// Salt of PBKDF2.
    pub salt: [u8; 32],
    /// Where its key material is, in sectors.
    pub material: u32,
}

/// A checked header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Luks1 {
    /// Cipher of the disk and of the key material.
    pub cipher: Cipher,
    /// Its mode.
    pub mode: Mode,
    /// Its initialization vectors.
    pub iv: IvKind,
    /// Mode, initialization vectors and their hash as written in the header.
    pub mode_text: String,
    /// Hash of PBKDF2 and of the splitter.
    pub hash: Hash,
    /// Where the encrypted disk begins, in sectors; 0 for a detached header.
    pub payload: u32,
    /// Digest of the master key.
    pub digest: [u8; 20],
    /// Its salt.
    pub digest_salt: [u8; 32],
    /// Its rounds of PBKDF2.
    pub digest_iterations: u32,
    /// Identifier, as text.
    pub uuid: String,
    /// Key slots.
    pub slots: [Slot; SLOTS],
}

fn bad(message: impl Into<String>, offset: u64) -> Error {
    Error::corrupt(message).at_offset(offset)
}

/// The text before the first NUL, which must be there.
fn text(field: &[u8], what: &str, offset: u64) -> Result<String> {
    let end = field
        .iter()
        .position(|&b| b == 0)
        .ok_or_else(|| bad(format!("LUKS header {what} is not NUL terminated"), offset))?;
    String::from_utf8(field[..end].to_vec())
        .map_err(|_| bad(format!("LUKS header {what} is not text"), offset))
}

/// Sectors that the key material of a slot needs.
fn material_sectors(key_bytes: usize) -> u64 {
    (len_u64(key_bytes) * u64::from(STRIPES)).div_ceil(SECTOR)
}

/// The parts of `mode-ivgen[:hash]`.
fn parse_mode(text: &str) -> Result<(Mode, IvKind)> {
    let at = 40;
    let (mode, iv) = match text.split_once('-') {
        Some((mode, iv)) => (mode, iv),
        None if text == "ecb" => (text, "null"),
        None => {
            return Err(Error::unsupported(format!(
                "Unexpected cipher mode string format '{text}'"
            ))
            .at_offset(at));
        }
    };
    let unknown = |what: &str, name: &str| {
        Error::unsupported(format!("{what} '{name}' of the LUKS header is not supported"))
            .at_offset(at)
    };
    let (iv, hash) = match iv.split_once(':') {
        Some((iv, hash)) => (iv, Some(Hash::from_name(hash).ok_or_else(|| unknown("Hash", hash))?)),
        None => (iv, None),
    };
    let mode = Mode::from_name(mode).ok_or_else(|| unknown("Cipher mode", mode))?;
    if iv == "essiv" && hash.is_none() {
        return Err(bad("Missing IV generator hash specification", at));
    }
    let iv = IvKind::from_name(iv, hash).ok_or_else(|| unknown("IV generator", iv))?;
    Ok((mode, iv))
}

impl Luks1 {
    /// Whether `head` begins with a LUKS header, and of which version.
    pub fn version(head: &[u8]) -> Option<u16> {
        let rest = head.strip_prefix(&MAGIC)?;
        Some(u16::from_be_bytes([*rest.first()?, *rest.get(1)?]))
    }

    /// Reads and checks the header at the beginning of `storage`.
    ///
    /// # Errors
    /// Not LUKS1, damaged, or a cipher or hash that is not known.
    pub fn read(storage: &dyn Storage, payload: Payload) -> Result<Self> {
        let mut bytes = [0u8; size_of::<RawHeader>()];
        storage.read_at(0, &mut bytes)?;
        Self::parse(&bytes, payload)
    }

    fn parse(bytes: &[u8], payload: Payload) -> Result<Self> {
        let raw = RawHeader::read_from_bytes(bytes).map_err(|_| bad("LUKS header too short", 0))?;
        if raw.magic != MAGIC {
            return Err(bad("Volume is not in LUKS format", 0));
        }
        let version = raw.version.get();
        if version != 1 {
            return Err(
                Error::unsupported(format!("LUKS version {version} is not supported")).at_offset(6)
            );
        }
        let name = text(&raw.cipher_name, "cipher name", 8)?;
        let mode_text = text(&raw.cipher_mode, "cipher mode", 40)?;
        let hash = text(&raw.hash_spec, "hash spec", 72)?;
        let start = u64::from(raw.payload_offset.get());
        if payload == Payload::Behind && start < FIRST_MATERIAL {
            return Err(bad("LUKS payload is overlapping with the header", 104).hint(
                "a detached header is opened with its disk: --image-opts \
                 driver=luks,file.filename=DISK,header.filename=HEADER,key-secret=ID",
            ));
        }
        if raw.mk_digest_iterations.get() == 0 {
            return Err(bad("LUKS key iteration count is zero", 164));
        }
        let (mode, iv) = parse_mode(&mode_text)?;
        let key_bytes = raw.key_bytes.get() as usize;
        let cipher = Cipher::of_family(&name, key_bytes / mode.keys())
            .filter(|c| c.key_len() * mode.keys() == key_bytes)
            .ok_or_else(|| {
                Error::unsupported(format!(
                    "Algorithm '{name}' with key size {} bits not supported",
                    u64::from(raw.key_bytes.get()) * 8
                ))
                .at_offset(108)
            })?;
        let hash = Hash::from_name(&hash).ok_or_else(|| {
            Error::unsupported(format!("Hash '{hash}' of the LUKS header is not supported"))
                .at_offset(72)
        })?;
        let slots = check_slots(&raw.key_slots, key_bytes, start, payload)?;
        let uuid = String::from_utf8_lossy(&raw.uuid);
        Ok(Luks1 {
            cipher,
            mode,
            iv,
            mode_text,
            hash,
            payload: raw.payload_offset.get(),
            digest: raw.mk_digest,
            digest_salt: raw.mk_digest_salt,
            digest_iterations: raw.mk_digest_iterations.get(),
            uuid: uuid.split('\0').next().unwrap_or_default().to_owned(),
            slots,
        })
    }

    /// Bytes of the master key.
    pub fn key_bytes(&self) -> usize {
        self.cipher.key_len() * self.mode.keys()
    }

    /// Bytes of a slot's key material on disk, whole sectors.
    pub fn material_len(&self) -> u64 {
        material_sectors(self.key_bytes()) * SECTOR
    }

    /// Bytes from the beginning of the header to the encrypted disk.
    pub fn payload_offset(&self) -> u64 {
        u64::from(self.payload) * SECTOR
    }

    /// Bytes of header and key material together, as a new header lays them out: each slot's material
    /// begins at a multiple of 4096 bytes.
    pub fn area_len(key_bytes: usize) -> u64 {
        (FIRST_MATERIAL + round_up(material_sectors(key_bytes), FIRST_MATERIAL) * len_u64(SLOTS))
            * SECTOR
    }

    /// Where the key material of a slot begins in a new header, in sectors.
    pub fn material_place(key_bytes: usize, slot: usize) -> u32 {
        let at = FIRST_MATERIAL + round_up(material_sectors(key_bytes), 8) * len_u64(slot);
        u32::try_from(at).unwrap_or(u32::MAX)
    }

    /// The cipher of the disk, for a master key.
    ///
    /// # Errors
    /// When the combination of the header makes no cipher.
    pub fn disk_cipher(&self, key: &[u8]) -> Result<Arc<SectorCipher>> {
        SectorCipher::new(self.cipher, self.mode, self.iv, key, 512).map(Arc::new)
    }

    /// As bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        fn field<const N: usize>(text: &str) -> [u8; N] {
            let mut out = [0u8; N];
            let len = text.len().min(N - 1);
            out[..len].copy_from_slice(&text.as_bytes()[..len]);
            out
        }
        let mut key_slots = [RawKeySlot::default(); SLOTS];
        for (raw, slot) in key_slots.iter_mut().zip(&self.slots) {
            *raw = RawKeySlot {
                active: if slot.active { ACTIVE } else { INACTIVE }.into(),
                iterations: slot.iterations.into(),
                salt: slot.salt,
                key_material_offset: slot.material.into(),
                stripes: STRIPES.into(),
            };
        }
        RawHeader {
            magic: MAGIC,
            version: 1.into(),
            cipher_name: field(self.cipher.family()),
            cipher_mode: field(&self.mode_text),
            hash_spec: field(self.hash.name()),
            payload_offset: self.payload.into(),
            key_bytes: u32::try_from(self.key_bytes()).unwrap_or(0).into(),
            mk_digest: self.digest,
            mk_digest_salt: self.digest_salt,
            mk_digest_iterations: self.digest_iterations.into(),
            uuid: field(&self.uuid),
            key_slots,
        }
        .as_bytes()
        .to_vec()
    }

    /// Writes the header, its second sector first, and waits for the disk.
    ///
    /// # Errors
    /// Of the storage.
    pub fn write(&self, storage: &dyn Storage) -> Result<()> {
        let bytes = self.to_bytes();
        let (first, second) = bytes.split_at(512);
        storage.write_at(SECTOR, second)?;
        storage.flush()?;
        storage.write_at(0, first)?;
        storage.flush()
    }

    /// What `info` shows.
    pub fn info(&self, payload: Payload) -> LuksInfo {
        let essiv = match self.iv {
            IvKind::Essiv(hash) => Some(hash.name().to_owned()),
            _ => None,
        };
        LuksInfo {
            cipher_alg: self.cipher.name().to_owned(),
            cipher_mode: self.mode.name().to_owned(),
            ivgen_alg: self.iv.name().to_owned(),
            ivgen_hash_alg: essiv,
            hash_alg: Some(self.hash.name().to_owned()),
            detached_header: payload == Payload::Detached,
            uuid: self.uuid.clone(),
            payload_offset: self.payload_offset(),
            master_key_iters: Some(self.digest_iterations),
            slots: self
                .slots
                .iter()
                .map(|slot| LuksSlotInfo {
                    active: slot.active,
                    iters: slot.active.then_some(slot.iterations),
                    stripes: slot.active.then_some(STRIPES),
                    key_offset: u64::from(slot.material) * SECTOR,
                    ..LuksSlotInfo::default()
                })
                .collect(),
            ..LuksInfo::default()
        }
    }
}

/// Checks key slots one by one and against each other, with QEMU's words.
fn check_slots(
    raw: &[RawKeySlot; SLOTS],
    key_bytes: usize,
    payload_start: u64,
    payload: Payload,
) -> Result<[Slot; SLOTS]> {
    let sectors = material_sectors(key_bytes);
    let at = |index: usize| 208 + len_u64(index) * 48;
    for (i, slot) in raw.iter().enumerate() {
        let start = u64::from(slot.key_material_offset.get());
        let active = slot.active.get();
        if slot.stripes.get() != STRIPES {
            return Err(bad(
                format!(
                    "Keyslot {i} is corrupted (stripes {} != {STRIPES})",
                    slot.stripes.get().cast_signed()
                ),
                at(i) + 44,
            ));
        }
        if start < FIRST_MATERIAL {
            return Err(bad(
                format!("Keyslot {i} is overlapping with the LUKS header"),
                at(i) + 40,
            ));
        }
        if active != ACTIVE && active != INACTIVE {
            return Err(bad(format!("Keyslot {i} state (active/disable) is corrupted"), at(i)));
        }
        if active == ACTIVE && slot.iterations.get() == 0 {
            return Err(bad(format!("Keyslot {i} iteration count is zero"), at(i) + 4));
        }
        if payload == Payload::Behind && start + sectors > payload_start {
            return Err(bad(
                format!("Keyslot {i} is overlapping with the encrypted payload"),
                at(i) + 40,
            ));
        }
        for (j, other) in raw.iter().enumerate().skip(i + 1) {
            let other = u64::from(other.key_material_offset.get());
            if start < other + sectors && other < start + sectors {
                return Err(bad(
                    format!("Keyslots {i} and {j} are overlapping in the header"),
                    at(j) + 40,
                ));
            }
        }
    }
    Ok(std::array::from_fn(|i| Slot {
        active: raw[i].active.get() == ACTIVE,
        iterations: raw[i].iterations.get(),
        salt: raw[i].salt,
        material: raw[i].key_material_offset.get(),
    }))
}
