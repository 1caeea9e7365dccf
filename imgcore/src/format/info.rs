//! What images tell about themselves: plain data for `info`, `check` and `snapshot -l`.

use serde::{Deserialize, Serialize};

/// Details of one format, in QEMU's field names (`qapi/block-core.json`, `ImageInfoSpecific`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data", rename_all = "lowercase")]
pub enum SpecificInfo {
    /// qcow2
    Qcow2(Qcow2Info),
    /// vmdk
    Vmdk(VmdkInfo),
    /// luks
    Luks(LuksInfo),
    /// qcow; qemu-img shows nothing here.
    Qcow(QcowInfo),
    /// qed; qemu-img shows nothing here.
    Qed(QedInfo),
    /// parallels; qemu-img shows nothing here.
    Parallels(ParallelsInfo),
    /// vdi; qemu-img shows nothing here.
    Vdi(VdiInfo),
    /// vpc; qemu-img shows nothing here.
    Vpc(VpcInfo),
    /// vhdx; qemu-img shows nothing here.
    Vhdx(VhdxInfo),
    /// A regular file.
    File(FileInfo),
}

/// qcow2's details.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Qcow2Info {
    /// `0.10` or `1.1`.
    pub compat: String,
    /// Name of the external data file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_file: Option<String>,
    /// Only with an external data file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_file_raw: Option<bool>,
    /// Version 3 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extended_l2: Option<bool>,
    /// Version 3 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lazy_refcounts: Option<bool>,
    /// Version 3 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub corrupt: Option<bool>,
    /// Bits of a reference count.
    pub refcount_bits: u32,
    /// Encryption, as the format names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encrypt: Option<serde_json::Value>,
    /// Persistent bitmaps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitmaps: Option<Vec<Qcow2BitmapInfo>>,
    /// `zlib` or `zstd`.
    pub compression_type: String,
}

/// One bitmap in qcow2's details.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Qcow2BitmapInfo {
    /// Name.
    pub name: String,
    /// Bytes per bit.
    pub granularity: u64,
    /// `in-use`, `auto`.
    pub flags: Vec<String>,
}

/// Details of a LUKS header; what QEMU does not show comes from LUKS2 or is not in its names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LuksInfo {
    /// `aes-256`, ...
    pub cipher_alg: String,
    /// `xts`, ...
    pub cipher_mode: String,
    /// `plain64`, ...
    pub ivgen_alg: String,
    /// Hash of `essiv`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ivgen_hash_alg: Option<String>,
    /// Hash of key derivation (LUKS1: of all slots).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash_alg: Option<String>,
    /// The header is a file by itself.
    pub detached_header: bool,
    /// Where the encrypted disk begins, in bytes from the header.
    pub payload_offset: u64,
    /// Rounds of PBKDF2 for the digest of the master key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub master_key_iters: Option<u32>,
    /// Identifier.
    pub uuid: String,
    /// Key slots.
    pub slots: Vec<LuksSlotInfo>,
    /// 2 for LUKS2; absent for LUKS1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub luks_version: Option<u32>,
    /// LUKS2: bytes of an encrypted sector.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sector_size: Option<u64>,
    /// LUKS2: name of the volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// LUKS2: name of the subsystem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subsystem: Option<String>,
    /// LUKS2: number of the header, which counts its changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence_number: Option<u64>,
}

/// One key slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LuksSlotInfo {
    /// In use.
    pub active: bool,
    /// Rounds of key derivation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iters: Option<u32>,
    /// Stripes of the anti-forensic splitter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stripes: Option<u32>,
    /// Where its key material is, in bytes from the header.
    pub key_offset: u64,
    /// LUKS2: `pbkdf2`, `argon2i` or `argon2id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kdf: Option<String>,
    /// LUKS2: hash of PBKDF2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kdf_hash: Option<String>,
    /// LUKS2: KiB that Argon2 uses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u32>,
    /// LUKS2: lanes of Argon2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallelism: Option<u32>,
    /// LUKS2: number of the slot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<u32>,
}

/// VMDK's details.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VmdkInfo {
    /// `createType` of the descriptor.
    pub create_type: String,
    /// Content id.
    pub cid: u32,
    /// Content id of the parent, `0xffffffff` without one.
    pub parent_cid: u32,
    /// Extents.
    pub extents: Vec<VmdkExtentInfo>,
}

/// One extent of a VMDK.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VmdkExtentInfo {
    /// File name.
    pub filename: String,
    /// `FLAT`, `SPARSE`, ...
    pub format: String,
    /// Bytes.
    pub virtual_size: u64,
    /// Bytes, for sparse ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<u64>,
    /// Present (true) for compressed ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compressed: Option<bool>,
}

/// qcow's details; all names are ours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct QcowInfo {
    /// Where L1 is in the file.
    pub l1_offset: u64,
    /// Entries of L1.
    pub l1_entries: u64,
    /// Entries of an L2 table.
    pub l2_entries: u64,
    /// Encryption, as the format names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encrypt: Option<serde_json::Value>,
}

/// QED's details; all names are ours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct QedInfo {
    /// Clusters of a table.
    pub table_size: u64,
    /// Clusters of the header.
    pub header_size: u64,
    /// Where L1 is in the file.
    pub l1_offset: u64,
    /// Not cleanly closed.
    pub need_check: bool,
    /// Feature bits that may be ignored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown_compatible_features: Option<u64>,
    /// Feature bits that the next writer clears.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown_autoclear_features: Option<u64>,
}

/// Parallels' details; all names are ours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ParallelsInfo {
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<u64>,
    /// What entries of the table count: `sectors` or `clusters`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries_count: Option<String>,
    /// Entries of the block allocation table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table_entries: Option<u64>,
    /// Where the first cluster is in the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_offset: Option<u64>,
    /// Being written, or not closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_use: Option<bool>,
    /// Geometry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cylinders: Option<u32>,
    /// Geometry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<u32>,
    /// Dirty bitmaps of the format extension.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitmaps: Option<Vec<ParallelsBitmapInfo>>,
    /// Features of the format extension that nobody here knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown_features: Option<u32>,
    /// A folder of several files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bundle: Option<ParallelsBundleInfo>,
}

/// One dirty bitmap of a Parallels image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ParallelsBitmapInfo {
    /// Identifier.
    pub id: String,
    /// Bytes per bit.
    pub granularity: u64,
    /// Bytes of the disk.
    pub size: u64,
}

/// A `.hdd` bundle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ParallelsBundleInfo {
    /// Name of the disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Snapshots below the present state.
    pub snapshots: u64,
    /// Its image files, top first in each part of the disk.
    pub files: Vec<ParallelsFileInfo>,
}

/// An image file of a bundle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ParallelsFileInfo {
    /// Its name.
    pub filename: String,
    /// `plain` or `expanding`.
    pub kind: String,
}

/// VDI's details; all names are ours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VdiInfo {
    /// `dynamic`, `static`, `undo` or `differencing`.
    pub image_type: String,
    /// Comment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Blocks of the guest's disk.
    pub blocks: u64,
    /// Blocks that the file holds.
    pub blocks_allocated: u64,
    /// Bytes in front of each block's data, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_extra: Option<u64>,
    /// Where the first block is in the file.
    pub data_offset: u64,
    /// Of this image.
    pub uuid: String,
    /// Changes with the content.
    pub modify_uuid: String,
    /// Of the disk below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_uuid: Option<String>,
    /// `modify-uuid` of the disk below when this image was made on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_modify_uuid: Option<String>,
}

/// VHD's details; all names are ours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VpcInfo {
    /// `fixed`, `dynamic` or `differencing`.
    pub subformat: String,
    /// The program that made it, four letters.
    pub creator: String,
    /// Its version.
    pub creator_version: String,
    /// `Wi2k` or `Mac`.
    pub creator_host_os: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Of this image.
    pub uuid: String,
    /// Bytes, when it was made.
    pub original_size: u64,
    /// Bytes; the disk's size unless the maker counts by geometry.
    pub current_size: u64,
    /// Geometry.
    pub cylinders: u16,
    /// Geometry.
    pub heads: u8,
    /// Geometry: sectors of a track.
    pub sectors: u8,
    /// The machine was suspended.
    pub saved_state: bool,
    /// Of the disk below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_uuid: Option<String>,
    /// Names under which the disk below is looked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_names: Option<Vec<String>>,
}

/// VHDX's details; all names are ours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VhdxInfo {
    /// `fixed`, `dynamic` or `differencing`.
    pub subformat: String,
    /// The program that made it.
    pub creator: String,
    /// Of the header that counts.
    pub sequence_number: u64,
    /// Changes with the file.
    pub file_write_guid: String,
    /// Changes with the content.
    pub data_write_guid: String,
    /// Of the disk.
    pub disk_id: String,
    /// Bytes.
    pub logical_sector_size: u64,
    /// Bytes.
    pub physical_sector_size: u64,
    /// Bytes.
    pub log_size: u64,
    /// The log holds changes that were not carried out in the file; what is shown is with them.
    pub log_to_replay: bool,
    /// `data-write-guid` of the disk below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_linkage: Option<Vec<String>>,
    /// Names under which the disk below is looked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_names: Option<Vec<String>>,
}

/// A regular file's details.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FileInfo {
    /// Extent size hint of the file system (XFS).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extent_size_hint: Option<u64>,
}

/// One internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SnapshotInfo {
    /// Id, unique.
    pub id: String,
    /// Name ("tag").
    pub name: String,
    /// Bytes of VM state.
    pub vm_state_size: u64,
    /// Seconds since the epoch.
    pub date_sec: u32,
    /// Nanoseconds.
    pub date_nsec: u32,
    /// Nanoseconds of guest run time.
    pub vm_clock_nsec: u64,
    /// Executed instructions, if recorded.
    pub icount: Option<u64>,
    /// Size of the disk then.
    pub disk_size: u64,
}

/// Outcome of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Things that could not be checked (I/O errors).
    pub check_errors: u64,
    /// Damage left.
    pub corruptions: u64,
    /// Leaked clusters left.
    pub leaks: u64,
    /// Damage repaired.
    pub corruptions_fixed: u64,
    /// Leaks repaired.
    pub leaks_fixed: u64,
    /// Where the last used byte of the image ends.
    pub image_end_offset: Option<u64>,
    /// Clusters.
    pub total_clusters: Option<u64>,
    /// Clusters with a place.
    pub allocated_clusters: Option<u64>,
    /// Allocated clusters not following their predecessor.
    pub fragmented_clusters: Option<u64>,
    /// Compressed clusters.
    pub compressed_clusters: Option<u64>,
}
