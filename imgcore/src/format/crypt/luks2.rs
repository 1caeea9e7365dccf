//! Reading LUKS2 ("LUKS2 On-Disk Format Specification" 1.1.4).
//!
//! Two copies of the header (binary part and JSON, each with a checksum) follow each other; the valid one
//! with the higher sequence number counts. The JSON names key slots, digests and the encrypted segment.
//! Nothing of it is believed: sizes and costs are bounded before memory or time is spent.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use zerocopy::FromBytes;

use super::keyslots::wrong_passphrase;
use super::layout::{MAGIC, MAGIC_2ND, RawHeader2};
use super::luks1::Payload;
use crate::crypto::pbkdf::pbkdf2;
use crate::crypto::{self, Cipher, Hash, IvKind, Mode, SecretBytes, SectorCipher, af};
use crate::format::info::{LuksInfo, LuksSlotInfo};
use crate::num::{len_u64, small};
use crate::storage::Storage;
use crate::{Error, ErrorKind, Result};

/// Sizes that a copy of the header may have (section 2.2), which are also places of the second one.
const SIZES: &[u64] =
    &[0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000];
/// Most memory for Argon2, in KiB: the largest cost that cryptsetup sets.
const MOST_MEMORY: u32 = 4 << 20;
/// Most passes of Argon2 over a GiB of memory.
const MOST_PASSES_OF_GIB: u64 = 64;
/// Most lanes of Argon2.
const MOST_LANES: u32 = 16;
/// Most stripes of a key slot, and most bytes of its key material.
const MOST_STRIPES: u32 = 16_384;
const MOST_MATERIAL: u64 = 4 << 20;
/// Largest master key.
const MOST_KEY: usize = 128;
/// Key slots of a header.
const MOST_SLOTS: usize = 32;

fn bad(message: impl Into<String>) -> Error {
    Error::corrupt(message)
}

/// A number that JSON writes as text.
fn number(text: &str, what: &str) -> Result<u64> {
    text.parse().map_err(|_| bad(format!("LUKS2: {what} '{text}' is not a number")))
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    keyslots: BTreeMap<String, RawSlot>,
    #[serde(default)]
    segments: BTreeMap<String, RawSegment>,
    #[serde(default)]
    digests: BTreeMap<String, RawDigest>,
    config: RawConfig,
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    requirements: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct RawSlot {
    #[serde(rename = "type")]
    kind: String,
    key_size: usize,
    area: RawArea,
    #[serde(default)]
    kdf: Option<RawKdf>,
    #[serde(default)]
    af: Option<RawAf>,
}

#[derive(Deserialize)]
struct RawArea {
    offset: String,
    size: String,
    #[serde(default)]
    encryption: Option<String>,
    #[serde(default)]
    key_size: usize,
}

#[derive(Deserialize)]
struct RawKdf {
    #[serde(rename = "type")]
    kind: String,
    salt: String,
    #[serde(default)]
    hash: Option<String>,
    #[serde(default)]
    iterations: Option<u32>,
    #[serde(default)]
    time: Option<u32>,
    #[serde(default)]
    memory: Option<u32>,
    #[serde(default)]
    cpus: Option<u32>,
}

#[derive(Deserialize)]
struct RawAf {
    stripes: u32,
    hash: String,
}

#[derive(Deserialize)]
struct RawSegment {
    #[serde(rename = "type")]
    kind: String,
    offset: String,
    size: String,
    #[serde(default)]
    iv_tweak: Option<String>,
    #[serde(default)]
    encryption: Option<String>,
    #[serde(default)]
    sector_size: Option<u64>,
    #[serde(default)]
    integrity: Option<serde_json::Value>,
    #[serde(default)]
    flags: Vec<String>,
}

#[derive(Deserialize)]
struct RawDigest {
    #[serde(rename = "type")]
    kind: String,
    keyslots: Vec<String>,
    segments: Vec<String>,
    salt: String,
    digest: String,
    hash: String,
    iterations: u32,
}

/// How a passphrase becomes the key of a slot.
#[derive(Debug)]
enum Kdf {
    Pbkdf2 { hash: Hash, rounds: u32 },
    Argon2 { kind: argon2::Algorithm, time: u32, memory: u32, lanes: u32 },
}

#[derive(Debug)]
struct Slot {
    number: u32,
    key_size: usize,
    offset: u64,
    scheme: Scheme,
    kdf: Kdf,
    salt: Vec<u8>,
    stripes: u32,
    af_hash: Hash,
}

#[derive(Debug)]
struct Digest {
    slots: Vec<u32>,
    salt: Vec<u8>,
    value: Vec<u8>,
    hash: Hash,
    rounds: u32,
}

/// Cipher, mode and initialization vectors of `aes-xts-plain64`.
#[derive(Clone, Copy, Debug)]
struct Scheme {
    cipher: Cipher,
    mode: Mode,
    iv: IvKind,
}

impl Scheme {
    fn parse(text: &str, key_bytes: usize) -> Result<Self> {
        let unknown = || Error::unsupported(format!("LUKS2: encryption '{text}' is not supported"));
        let mut parts = text.splitn(3, '-');
        let (family, mode, iv) = (parts.next(), parts.next(), parts.next());
        let (Some(family), Some(mode)) = (family, mode) else { return Err(unknown()) };
        let mode = Mode::from_name(mode).ok_or_else(unknown)?;
        let iv = iv.unwrap_or("null");
        let (iv, hash) = match iv.split_once(':') {
            Some((iv, hash)) => (iv, Some(Hash::from_name(hash).ok_or_else(unknown)?)),
            None => (iv, None),
        };
        let iv = IvKind::from_name(iv, hash).ok_or_else(unknown)?;
        let cipher = Cipher::of_family(family, key_bytes / mode.keys())
            .filter(|c| c.key_len() * mode.keys() == key_bytes)
            .ok_or_else(unknown)?;
        Ok(Scheme { cipher, mode, iv })
    }
}

/// A checked header.
#[derive(Debug)]
pub struct Luks2 {
    uuid: String,
    label: String,
    subsystem: String,
    sequence: u64,
    slots: Vec<Slot>,
    digest: Digest,
    scheme: Scheme,
    sector: u64,
    offset: u64,
    /// `None`: to the end of the device.
    len: Option<u64>,
    iv_tweak: u64,
}

/// The text before the first NUL.
fn text(field: &[u8]) -> String {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// Reads the copy of the header at `at` and checks its sum; the JSON comes with it.
fn read_copy(storage: &dyn Storage, at: u64) -> Result<(RawHeader2, Vec<u8>)> {
    let magic = if at == 0 { MAGIC } else { MAGIC_2ND };
    let mut bytes = vec![0u8; size_of::<RawHeader2>()];
    storage.read_at(at, &mut bytes)?;
    let damaged = |what: String| bad(format!("LUKS2 header: {what}")).at_offset(at);
    let raw = RawHeader2::read_from_bytes(&bytes).map_err(|_| damaged("too short".into()))?;
    if raw.magic != magic || raw.version.get() != 2 {
        return Err(damaged("no magic number".into()));
    }
    let size = raw.hdr_size.get();
    if !SIZES.contains(&size) || raw.hdr_offset.get() != at || (at != 0 && at != size) {
        return Err(damaged(format!("size {size} at {} makes no sense", raw.hdr_offset.get())));
    }
    if at + size > storage.len()? {
        return Err(damaged(format!("its {size} bytes reach beyond the end of the file")));
    }
    let mut json = vec![0u8; small(size) - bytes.len()];
    storage.read_at(at + len_u64(bytes.len()), &mut json)?;
    let alg = text(&raw.csum_alg);
    let hash = Hash::from_name(&alg)
        .ok_or_else(|| damaged(format!("checksum algorithm '{alg}' is not known")))?;
    // The sum is over everything, with its own field zero: bytes 448 to 512.
    bytes[448..512].fill(0);
    if !crypto::same(&hash.digest(&[&bytes, &json]), &raw.csum[..hash.size()]) {
        return Err(damaged("its checksum is wrong".into()));
    }
    let end = json.iter().position(|&b| b == 0).unwrap_or(json.len());
    json.truncate(end);
    Ok((raw, json))
}

impl Luks2 {
    /// Reads and checks the header at the beginning of `storage`, or its second copy.
    ///
    /// # Errors
    /// Both copies damaged, or something that is not known.
    pub fn read(storage: &dyn Storage, payload: Payload) -> Result<Self> {
        let first = read_copy(storage, 0);
        let second = match &first {
            Ok((raw, _)) => read_copy(storage, raw.hdr_size.get()),
            Err(_) => SIZES
                .iter()
                .map(|&at| read_copy(storage, at))
                .find(Result::is_ok)
                .unwrap_or_else(|| Err(bad("LUKS2: no second header"))),
        };
        let (raw, json) = match (first, second) {
            (Ok(a), Ok(b)) if b.0.seqid.get() > a.0.seqid.get() => b,
            (Ok(a), _) => a,
            (Err(_), Ok(b)) => b,
            (Err(e), Err(_)) => return Err(e),
        };
        let metadata: Metadata = serde_json::from_slice(&json)
            .map_err(|e| bad(format!("LUKS2: the JSON area is damaged: {e}")).at_offset(4096))?;
        Self::check(&raw, &metadata, storage, payload).map_err(|e| e.at_offset(4096))
    }

    fn check(
        raw: &RawHeader2,
        metadata: &Metadata,
        storage: &dyn Storage,
        payload: Payload,
    ) -> Result<Self> {
        if metadata.config.requirements.as_ref().is_some_and(|r| {
            r.get("mandatory").and_then(|m| m.as_array()).is_some_and(|m| !m.is_empty())
        }) {
            return Err(Error::unsupported(
                "LUKS2: the volume has requirements (an unfinished reencryption, for example) that \
                 are not supported",
            )
            .hint("finish it with cryptsetup first"));
        }
        let mut segments = metadata.segments.iter();
        let (Some((segment_id, segment)), None) = (segments.next(), segments.next()) else {
            return Err(Error::unsupported(format!(
                "LUKS2: {} segments; only one is supported",
                metadata.segments.len()
            )));
        };
        if segment.kind != "crypt" || segment.integrity.is_some() || !segment.flags.is_empty() {
            return Err(Error::unsupported(
                "LUKS2: a segment that is not simply encrypted (integrity or flags) is not \
                 supported",
            ));
        }
        if metadata.keyslots.len() > MOST_SLOTS {
            return Err(bad(format!("LUKS2: {} key slots", metadata.keyslots.len())));
        }
        let (_, raw_digest) = metadata
            .digests
            .iter()
            .find(|(_, d)| d.segments.contains(segment_id))
            .ok_or_else(|| bad("LUKS2: no digest of the segment's key"))?;
        let digest = Digest::parse(raw_digest)?;
        let mut slots = Vec::new();
        for (name, slot) in &metadata.keyslots {
            let number = u32::try_from(number(name, "key slot")?)
                .map_err(|_| bad(format!("LUKS2: key slot {name}")))?;
            if slot.kind == "luks2" && digest.slots.contains(&number) {
                slots.push(Slot::parse(number, slot, raw.hdr_size.get())?);
            }
        }
        slots.sort_by_key(|s| s.number);
        let key_size = slots.first().map_or(64, |s| s.key_size);
        let encryption = segment.encryption.as_deref().unwrap_or_default();
        let sector = segment.sector_size.unwrap_or(512);
        if !matches!(sector, 512 | 1024 | 2048 | 4096) {
            return Err(bad(format!("LUKS2: sectors of {sector} bytes")));
        }
        let offset = number(&segment.offset, "segment offset")?;
        let least = match payload {
            Payload::Behind => 2 * raw.hdr_size.get(),
            Payload::Detached => 0,
        };
        if !offset.is_multiple_of(512) || offset < least {
            return Err(
                bad(format!("LUKS2: a segment at {offset}")).at_path(storage.name().to_owned())
            );
        }
        let len = match segment.size.as_str() {
            "dynamic" => None,
            text => Some(number(text, "segment size")?),
        };
        Ok(Luks2 {
            uuid: text(&raw.uuid),
            label: text(&raw.label),
            subsystem: text(&raw.subsystem),
            sequence: raw.seqid.get(),
            scheme: Scheme::parse(encryption, key_size)?,
            slots,
            digest,
            sector,
            offset,
            len,
            iv_tweak: number(segment.iv_tweak.as_deref().unwrap_or("0"), "iv_tweak")?,
        })
    }

    /// Bytes from the header to the encrypted disk.
    pub fn payload_offset(&self) -> u64 {
        self.offset
    }

    /// Bytes of the disk, where `rest` lie behind the payload offset.
    ///
    /// # Errors
    /// When that is less than the header says.
    pub fn size(&self, rest: u64) -> Result<u64> {
        match self.len {
            Some(len) if len > rest => {
                Err(bad(format!("LUKS2: a segment of {len} bytes, of which the file has {rest}"))
                    .hint("the file is not complete; copy it again"))
            }
            Some(len) => Ok(len - len % self.sector),
            None => Ok(rest - rest % self.sector),
        }
    }

    /// Number of the disk's first sector, in units of 512 bytes.
    pub fn first_sector(&self) -> u64 {
        self.iv_tweak
    }

    /// The cipher of the disk, for a master key.
    ///
    /// # Errors
    /// When the combination makes no cipher.
    pub fn disk_cipher(&self, key: &[u8]) -> Result<Arc<SectorCipher>> {
        let Scheme { cipher, mode, iv } = self.scheme;
        SectorCipher::new(cipher, mode, iv, key, small(self.sector)).map(Arc::new)
    }

    /// The master key.
    ///
    /// # Errors
    /// A passphrase that opens no slot; a slot whose costs are beyond all bounds.
    pub fn unlock(&self, storage: &dyn Storage, passphrase: &[u8]) -> Result<SecretBytes> {
        let mut trouble = None;
        for slot in &self.slots {
            let opened = slot.open(storage, passphrase).and_then(|key| self.digest.fits(key));
            match opened {
                Ok(Some(key)) => return Ok(key),
                Ok(None) => {}
                Err(e) => {
                    let e = e.context(format!("keyslot {}", slot.number)).at_path(storage.name());
                    trouble.get_or_insert(e);
                }
            }
        }
        Err(trouble.unwrap_or_else(wrong_passphrase))
    }

    /// What `info` shows.
    pub fn info(&self, payload: Payload) -> LuksInfo {
        let essiv = match self.scheme.iv {
            IvKind::Essiv(hash) => Some(hash.name().to_owned()),
            _ => None,
        };
        LuksInfo {
            cipher_alg: self.scheme.cipher.name().to_owned(),
            cipher_mode: self.scheme.mode.name().to_owned(),
            ivgen_alg: self.scheme.iv.name().to_owned(),
            ivgen_hash_alg: essiv,
            hash_alg: None,
            detached_header: payload == Payload::Detached,
            payload_offset: self.offset,
            master_key_iters: Some(self.digest.rounds),
            uuid: self.uuid.clone(),
            slots: self.slots.iter().map(Slot::info).collect(),
            luks_version: Some(2),
            sector_size: Some(self.sector),
            label: Some(self.label.clone()).filter(|l| !l.is_empty()),
            subsystem: Some(self.subsystem.clone()).filter(|l| !l.is_empty()),
            sequence_number: Some(self.sequence),
        }
    }
}

fn base64(text: &str, what: &str) -> Result<Vec<u8>> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .map_err(|_| bad(format!("LUKS2: {what} is not base64")))
}

fn hash(name: &str) -> Result<Hash> {
    Hash::from_name(name)
        .ok_or_else(|| Error::unsupported(format!("LUKS2: hash '{name}' is not supported")))
}

impl Digest {
    fn parse(raw: &RawDigest) -> Result<Self> {
        if raw.kind != "pbkdf2" {
            return Err(Error::unsupported(format!(
                "LUKS2: digests of type '{}' are not supported",
                raw.kind
            )));
        }
        let slots = raw.keyslots.iter().filter_map(|s| s.parse().ok()).collect();
        Ok(Digest {
            slots,
            salt: base64(&raw.salt, "salt")?,
            value: base64(&raw.digest, "digest")?,
            hash: hash(&raw.hash)?,
            rounds: raw.iterations,
        })
    }

    /// The key, if it is the one of this digest.
    fn fits(&self, key: SecretBytes) -> Result<Option<SecretBytes>> {
        if self.value.is_empty() || self.value.len() > 64 {
            return Err(bad("LUKS2: a digest of no sensible length"));
        }
        let made = pbkdf2(self.hash, &key, &self.salt, self.rounds, self.value.len())?;
        Ok(crypto::same(&made, &self.value).then_some(key))
    }
}

impl Slot {
    fn parse(number_: u32, raw: &RawSlot, header: u64) -> Result<Self> {
        let wrong = |what: &str| bad(format!("LUKS2: key slot {number_}: {what}"));
        let kdf = raw.kdf.as_ref().ok_or_else(|| wrong("no kdf"))?;
        let split = raw.af.as_ref().ok_or_else(|| wrong("no af"))?;
        let offset = number(&raw.area.offset, "area offset")?;
        let size = number(&raw.area.size, "area size")?;
        if raw.key_size == 0 || raw.key_size > MOST_KEY {
            return Err(wrong("a master key of no sensible length"));
        }
        if split.stripes == 0 || split.stripes > MOST_STRIPES {
            return Err(wrong(&format!("{} stripes", split.stripes)));
        }
        let material = len_u64(raw.key_size) * u64::from(split.stripes);
        if material > MOST_MATERIAL || material > size {
            return Err(wrong("key material that does not fit into its area"));
        }
        if offset < 2 * header || offset.checked_add(size).is_none() {
            return Err(wrong("its area overlaps with the header"));
        }
        let encryption = raw.area.encryption.as_deref().unwrap_or_default();
        Ok(Slot {
            number: number_,
            key_size: raw.key_size,
            offset,
            scheme: Scheme::parse(encryption, raw.area.key_size)?,
            kdf: Kdf::parse(kdf)?,
            salt: base64(&kdf.salt, "salt")?,
            stripes: split.stripes,
            af_hash: hash(&split.hash)?,
        })
    }

    /// What the slot holds if this is its passphrase, and noise if not.
    fn open(&self, storage: &dyn Storage, passphrase: &[u8]) -> Result<SecretBytes> {
        let len = self.key_size * self.stripes as usize;
        let end = self.offset.saturating_add(len_u64(len));
        if end > storage.len()? {
            return Err(bad("its key material lies beyond the end of the file")
                .at_offset(self.offset)
                .hint("the file is not complete; copy it again"));
        }
        let Scheme { cipher, mode, iv } = self.scheme;
        let key_len = cipher.key_len() * mode.keys();
        let key = self.kdf.derive(passphrase, &self.salt, key_len)?;
        let mut material = SecretBytes::new(vec![0; len.next_multiple_of(512)]);
        storage.read_at(self.offset, &mut material)?;
        SectorCipher::new(cipher, mode, iv, &key, 512)?.decrypt(0, &mut material);
        Ok(af::merge(self.af_hash, &material[..len], self.key_size))
    }

    fn info(&self) -> LuksSlotInfo {
        let (kdf, hash, iters, memory, lanes) = match self.kdf {
            Kdf::Pbkdf2 { hash, rounds } => ("pbkdf2", Some(hash.name()), rounds, None, None),
            Kdf::Argon2 { kind, time, memory, lanes } => {
                (kind.as_str(), None, time, Some(memory), Some(lanes))
            }
        };
        LuksSlotInfo {
            active: true,
            iters: Some(iters),
            stripes: Some(self.stripes),
            key_offset: self.offset,
            kdf: Some(kdf.to_owned()),
            kdf_hash: hash.map(str::to_owned),
            memory,
            parallelism: lanes,
            number: Some(self.number),
        }
    }
}

impl Kdf {
    fn parse(raw: &RawKdf) -> Result<Self> {
        let missing = |what: &str| bad(format!("LUKS2: key derivation without '{what}'"));
        let kind = match raw.kind.as_str() {
            "pbkdf2" => {
                return Ok(Kdf::Pbkdf2 {
                    hash: hash(raw.hash.as_deref().unwrap_or_default())?,
                    rounds: raw.iterations.ok_or_else(|| missing("iterations"))?,
                });
            }
            "argon2i" => argon2::Algorithm::Argon2i,
            "argon2id" => argon2::Algorithm::Argon2id,
            other => {
                return Err(Error::unsupported(format!(
                    "LUKS2: key derivation '{other}' is not supported"
                )));
            }
        };
        Ok(Kdf::Argon2 {
            kind,
            time: raw.time.ok_or_else(|| missing("time"))?,
            memory: raw.memory.ok_or_else(|| missing("memory"))?,
            lanes: raw.cpus.ok_or_else(|| missing("cpus"))?,
        })
    }

    fn derive(&self, passphrase: &[u8], salt: &[u8], len: usize) -> Result<SecretBytes> {
        let (kind, time, memory, lanes) = match *self {
            Kdf::Pbkdf2 { hash, rounds } => return pbkdf2(hash, passphrase, salt, rounds, len),
            Kdf::Argon2 { kind, time, memory, lanes } => (kind, time, memory, lanes),
        };
        let work = u64::from(memory) * u64::from(time);
        if memory > MOST_MEMORY || lanes > MOST_LANES || work > MOST_PASSES_OF_GIB << 20 {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "Argon2 with {time} passes over {memory} KiB in {lanes} lanes is more than is \
                     spent on one passphrase ({} KiB, {MOST_LANES} lanes)",
                    MOST_MEMORY
                ),
            ));
        }
        let wrong = |e: argon2::Error| bad(format!("LUKS2: Argon2: {e}"));
        let params = argon2::Params::new(memory, time, lanes, Some(len)).map_err(wrong)?;
        let blocks = params.block_count();
        let mut area: Vec<argon2::Block> = Vec::new();
        area.try_reserve_exact(blocks).map_err(|_| {
            Error::errno(libc::ENOMEM).context(format!("Argon2 needs {memory} KiB of memory"))
        })?;
        area.resize(blocks, argon2::Block::default());
        let mut out = SecretBytes::new(vec![0; len]);
        argon2::Argon2::new(kind, argon2::Version::V0x13, params)
            .hash_password_into_with_memory(passphrase, salt, &mut out, &mut area)
            .map_err(wrong)?;
        for block in &mut area {
            zeroize::Zeroize::zeroize(block.as_mut());
        }
        Ok(out)
    }
}
