//! The header: from bytes to checked values and back.

use zerocopy::{FromBytes, IntoBytes};

use super::layout::{
    self, FEATURE_NAMES, MAGIC, MAX_BACKING_NAME, RawExtension, RawFeatureName, RawHeader, ext,
    incompatible,
};
use crate::num::{len_u64, round_up, small};
use crate::storage::Storage;
use crate::{Error, Result};

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate.
    Zlib,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// QEMU's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Compression::Zlib => "zlib",
            Compression::Zstd => "zstd",
        }
    }
}

/// A header extension that is kept as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Type.
    pub kind: u32,
    /// Content, without padding.
    pub data: Vec<u8>,
}

/// A checked header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// log2 of the cluster size.
    pub cluster_bits: u32,
    /// Bytes of the guest's disk.
    pub size: u64,
    /// 0 none, 1 AES, 2 LUKS.
    pub crypt_method: u32,
    /// Entries of the active L1 table.
    pub l1_size: u32,
    /// Host offset of the active L1 table.
    pub l1_offset: u64,
    /// Host offset of the refcount table.
    pub reftable_offset: u64,
    /// Clusters of the refcount table.
    pub reftable_clusters: u32,
    /// Internal snapshots.
    pub nb_snapshots: u32,
    /// Host offset of the snapshot table.
    pub snapshots_offset: u64,
    /// Feature bits.
    pub incompatible: u64,
    /// Feature bits.
    pub compatible: u64,
    /// Feature bits.
    pub autoclear: u64,
    /// log2 of the bits of a reference count.
    pub refcount_order: u32,
    /// Compression method.
    pub compression: Compression,
    /// Name of the file below.
    pub backing_name: Option<String>,
    /// Its format.
    pub backing_format: Option<String>,
    /// Name of the external data file.
    pub data_file: Option<String>,
    /// Other extensions (bitmaps, crypto, unknown), in order.
    pub extensions: Vec<Extension>,
    /// Fields behind those this program knows; kept.
    pub unknown_fields: Vec<u8>,
}

/// Where a field is, for messages.
fn bad(message: impl Into<String>, offset: u64) -> Error {
    Error::corrupt(message).at_offset(offset)
}

impl Header {
    /// Reads and checks the header of `storage`. Tables that it points to are not looked at.
    pub fn read(storage: &dyn Storage) -> Result<Self> {
        let mut first = [0u8; size_of::<RawHeader>()];
        storage.read_at(0, &mut first)?;
        let raw = RawHeader::read_from_bytes(&first).map_err(|_| bad("header too short", 0))?;
        if raw.magic.get() != MAGIC {
            return Err(bad("Image is not in qcow2 format", 0));
        }
        let version = raw.version.get();
        if !(2..=3).contains(&version) {
            return Err(
                Error::unsupported(format!("Unsupported qcow2 version {version}")).at_offset(4)
            );
        }
        let cluster_bits = raw.cluster_bits.get();
        if !layout::CLUSTER_BITS.contains(&cluster_bits) {
            return Err(Error::unsupported(format!("Unsupported cluster size: 2^{cluster_bits}"))
                .at_offset(20));
        }
        let mut header = Header {
            version,
            cluster_bits,
            size: raw.size.get(),
            crypt_method: raw.crypt_method.get(),
            l1_size: raw.l1_size.get(),
            l1_offset: raw.l1_table_offset.get(),
            reftable_offset: raw.refcount_table_offset.get(),
            reftable_clusters: raw.refcount_table_clusters.get(),
            nb_snapshots: raw.nb_snapshots.get(),
            snapshots_offset: raw.snapshots_offset.get(),
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            refcount_order: 4,
            compression: Compression::Zlib,
            backing_name: None,
            backing_format: None,
            data_file: None,
            extensions: Vec::new(),
            unknown_fields: Vec::new(),
        };
        let header_len = header.read_version_3(storage, &raw)?;
        let backing_offset = raw.backing_file_offset.get();
        if backing_offset > header.cluster_size() {
            return Err(bad("Invalid backing file offset", 8));
        }
        let end = if backing_offset != 0 { backing_offset } else { header.cluster_size() };
        let names = header.read_extensions(storage, header_len, end)?;
        header.check_features(&names)?;
        if header.refcount_order > 6 {
            return Err(bad("Reference count entry width too large; may not exceed 64 bits", 96));
        }
        if header.crypt_method > 2 {
            return Err(Error::unsupported(format!(
                "Unsupported encryption method {}",
                header.crypt_method
            ))
            .at_offset(32));
        }
        if header.crypt_method == 2 && !header.extensions.iter().any(|e| e.kind == ext::CRYPTO) {
            return Err(bad("Missing CRYPTO header for crypt method 2", 32));
        }
        header.read_backing_name(storage, backing_offset, raw.backing_file_size.get())?;
        Ok(header)
    }

    /// The fields of version 3; returns the header's length.
    fn read_version_3(&mut self, storage: &dyn Storage, raw: &RawHeader) -> Result<u64> {
        if self.version == 2 {
            return Ok(layout::V2_HEADER_LEN);
        }
        let header_len = u64::from(raw.header_length.get());
        if header_len < layout::V3_HEADER_LEN {
            return Err(bad("qcow2 header too short", 100));
        }
        if header_len > self.cluster_size() {
            return Err(bad("qcow2 header exceeds cluster size", 100));
        }
        self.incompatible = raw.incompatible_features.get();
        self.compatible = raw.compatible_features.get();
        self.autoclear = raw.autoclear_features.get();
        self.refcount_order = raw.refcount_order.get();
        let known = len_u64(size_of::<RawHeader>());
        let compression = if header_len > layout::V3_HEADER_LEN { raw.compression_type } else { 0 };
        self.compression = match compression {
            0 => Compression::Zlib,
            1 => Compression::Zstd,
            n => {
                return Err(Error::unsupported(format!("qcow2: unknown compression type: {n}"))
                    .at_offset(104));
            }
        };
        let flagged = self.incompatible & incompatible::COMPRESSION != 0;
        if flagged && self.compression == Compression::Zlib {
            return Err(bad("Compression type incompatible feature bit must not be set", 72));
        }
        if !flagged && self.compression != Compression::Zlib {
            return Err(bad("Compression type incompatible feature bit must be set", 72));
        }
        if header_len > known {
            self.unknown_fields = vec![0; small(header_len - known)];
            storage.read_at(known, &mut self.unknown_fields)?;
        }
        Ok(header_len)
    }

    /// Reads header extensions between `at` and `end`; returns the feature name table.
    fn read_extensions(
        &mut self,
        storage: &dyn Storage,
        mut at: u64,
        end: u64,
    ) -> Result<Vec<(u8, u8, String)>> {
        let mut names = Vec::new();
        while at + len_u64(size_of::<RawExtension>()) <= end {
            let mut head = [0u8; size_of::<RawExtension>()];
            storage.read_at(at, &mut head)?;
            let Ok(raw) = RawExtension::read_from_bytes(&head) else { break };
            let (kind, len) = (raw.kind.get(), u64::from(raw.len.get()));
            if kind == ext::END {
                break;
            }
            let start = at + len_u64(head.len());
            if len > end - start {
                return Err(bad("Header extension too large", at));
            }
            let mut data = vec![0u8; small(len)];
            storage.read_at(start, &mut data)?;
            match kind {
                ext::BACKING_FORMAT => {
                    if data.len() >= 16 {
                        return Err(bad(
                            format!("ERROR: ext_backing_format: len={len} too large (>=16)"),
                            at,
                        ));
                    }
                    self.backing_format = Some(text(&data));
                }
                ext::DATA_FILE => self.data_file = Some(text(&data)),
                ext::FEATURE_NAMES => names = feature_names(&data),
                _ => self.extensions.push(Extension { kind, data }),
            }
            at = start + round_up(len, 8);
        }
        Ok(names)
    }

    fn check_features(&self, names: &[(u8, u8, String)]) -> Result<()> {
        let unknown = self.incompatible & !incompatible::KNOWN;
        if unknown == 0 {
            return Ok(());
        }
        let mut list = Vec::new();
        let mut left = unknown;
        for (kind, bit, name) in names {
            if *kind == 0 && *bit < 64 && left & (1 << bit) != 0 {
                list.push(name.clone());
                left &= !(1 << bit);
            }
        }
        if left != 0 {
            list.push(format!("Unknown incompatible feature: {left:x}"));
        }
        Err(Error::unsupported(format!("Unsupported qcow2 feature(s): {}", list.join(", ")))
            .at_offset(72))
    }

    fn read_backing_name(&mut self, storage: &dyn Storage, offset: u64, len: u32) -> Result<()> {
        if offset == 0 {
            return Ok(());
        }
        if len > MAX_BACKING_NAME || u64::from(len) > self.cluster_size() - offset {
            return Err(bad("Backing file name too long", 16));
        }
        if len == 0 {
            return Ok(());
        }
        let mut name = vec![0u8; len as usize];
        storage.read_at(offset, &mut name)?;
        self.backing_name = Some(text(&name));
        Ok(())
    }

    /// Bytes of a cluster.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Whether an incompatible feature bit is set.
    pub fn has(&self, bit: u64) -> bool {
        self.incompatible & bit != 0
    }

    /// An extension's content.
    pub fn extension(&self, kind: u32) -> Option<&[u8]> {
        self.extensions.iter().find(|e| e.kind == kind).map(|e| e.data.as_slice())
    }

    /// Sets, replaces or removes an extension.
    pub fn set_extension(&mut self, kind: u32, data: Option<Vec<u8>>) {
        match (self.extensions.iter().position(|e| e.kind == kind), data) {
            (Some(i), Some(data)) => self.extensions[i].data = data,
            (Some(i), None) => drop(self.extensions.remove(i)),
            (None, Some(data)) => self.extensions.push(Extension { kind, data }),
            (None, None) => {}
        }
    }

    /// All header extensions, with this feature name table (if not empty).
    fn extension_bytes(&self, names: &[u8]) -> Vec<u8> {
        let mut tail = Vec::new();
        if let (Some(_), Some(format)) = (&self.backing_name, &self.backing_format) {
            push_extension(&mut tail, ext::BACKING_FORMAT, format.as_bytes());
        }
        if self.has(incompatible::DATA_FILE)
            && let Some(name) = &self.data_file
        {
            push_extension(&mut tail, ext::DATA_FILE, name.as_bytes());
        }
        if let Some(crypto) = self.extension(ext::CRYPTO) {
            push_extension(&mut tail, ext::CRYPTO, crypto);
        }
        // What changes while the image is used comes first, so that it lies in the first sector, which is
        // written whole or not at all; then the long table that never changes.
        for e in self.extensions.iter().filter(|e| e.kind != ext::CRYPTO) {
            push_extension(&mut tail, e.kind, &e.data);
        }
        if !names.is_empty() {
            push_extension(&mut tail, ext::FEATURE_NAMES, names);
        }
        push_extension(&mut tail, ext::END, &[]);
        tail
    }

    /// The header as bytes: fixed fields, extensions, backing file name. Fails if they do not fit in
    /// the first cluster.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let header_len = match self.version {
            2 => layout::V2_HEADER_LEN,
            _ => len_u64(size_of::<RawHeader>() + self.unknown_fields.len()),
        };
        let names = if self.version >= 3 { own_feature_names() } else { Vec::new() };
        let name_len = self.backing_name.as_ref().map_or(0, String::len);
        let mut tail = self.extension_bytes(&names);
        // The feature name table only helps messages; small clusters may have no room for it.
        if header_len + len_u64(tail.len() + name_len) > self.cluster_size() {
            tail = self.extension_bytes(&[]);
        }
        let name = self.backing_name.as_deref().unwrap_or("").as_bytes();
        let name_offset = if name.is_empty() { 0 } else { header_len + len_u64(tail.len()) };
        let total = header_len + len_u64(tail.len()) + len_u64(name.len());
        if total > self.cluster_size() {
            return Err(Error::invalid(format!(
                "the header with its extensions and the backing file name needs {total} bytes, more than a cluster of {}",
                self.cluster_size()
            )));
        }
        let raw = RawHeader {
            magic: MAGIC.into(),
            version: self.version.into(),
            backing_file_offset: name_offset.into(),
            backing_file_size: u32::try_from(name.len()).unwrap_or(0).into(),
            cluster_bits: self.cluster_bits.into(),
            size: self.size.into(),
            crypt_method: self.crypt_method.into(),
            l1_size: self.l1_size.into(),
            l1_table_offset: self.l1_offset.into(),
            refcount_table_offset: self.reftable_offset.into(),
            refcount_table_clusters: self.reftable_clusters.into(),
            nb_snapshots: self.nb_snapshots.into(),
            snapshots_offset: self.snapshots_offset.into(),
            incompatible_features: self.incompatible.into(),
            compatible_features: self.compatible.into(),
            autoclear_features: self.autoclear.into(),
            refcount_order: self.refcount_order.into(),
            header_length: u32::try_from(header_len).unwrap_or(0).into(),
            compression_type: u8::from(self.compression == Compression::Zstd),
            padding: [0; 7],
        };
        let mut bytes = raw.as_bytes().to_vec();
        bytes.extend_from_slice(&self.unknown_fields);
        bytes.truncate(small(header_len));
        bytes.extend_from_slice(&tail);
        bytes.extend_from_slice(name);
        Ok(bytes)
    }

    /// Writes the header, and zeroes behind it up to a page, so that nothing old (a longer backing
    /// file name, say) stays. All fields that change while an image is in use lie in the first sector.
    pub fn write(&self, storage: &dyn Storage) -> Result<()> {
        let mut bytes = self.to_bytes()?;
        let padded = round_up(len_u64(bytes.len()), 4096).min(self.cluster_size());
        bytes.resize(small(padded), 0);
        storage.write_at(0, &bytes)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

fn push_extension(to: &mut Vec<u8>, kind: u32, data: &[u8]) {
    let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
    to.extend_from_slice(RawExtension { kind: kind.into(), len: len.into() }.as_bytes());
    to.extend_from_slice(data);
    to.resize(to.len().next_multiple_of(8), 0);
}

fn feature_names(data: &[u8]) -> Vec<(u8, u8, String)> {
    data.chunks_exact(size_of::<RawFeatureName>())
        .filter_map(|chunk| RawFeatureName::read_from_bytes(chunk).ok())
        .map(|raw| {
            let end = raw.name.iter().position(|&b| b == 0).unwrap_or(raw.name.len());
            (raw.kind, raw.bit, String::from_utf8_lossy(&raw.name[..end]).into_owned())
        })
        .collect()
}

fn own_feature_names() -> Vec<u8> {
    let mut all = Vec::new();
    for &(kind, bit, text) in FEATURE_NAMES {
        let mut name = [0u8; 46];
        name[..text.len()].copy_from_slice(text.as_bytes());
        all.extend_from_slice(RawFeatureName { kind, bit, name }.as_bytes());
    }
    all
}
