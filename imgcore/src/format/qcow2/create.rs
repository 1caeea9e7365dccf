//! Creating images.
//!
//! A new image is header, refcount table, one refcount block, then the L1 table; the header is written
//! last. With preallocation the mappings follow through the ordinary write path.

use std::sync::Arc;

use super::crypt::NewCrypt;
use super::header::{Compression, Header};
use super::image::Qcow2Image;
use super::layout::{autoclear, compatible, incompatible};
use super::refcount::set_count;
use crate::crypto::SecretBytes;
use crate::format::options::OptionValue;
use crate::format::{
    Access, CreateContext, CreateOptions, NoGate, OpenContext, OpenGate, OptionKind, OptionSpec,
};
use crate::num::{checked_round_up, small};
use crate::storage::{Preallocation, Storage, ZeroMode};
use crate::{Error, ErrorKind, Result};

pub(super) const fn option(
    name: &'static str,
    kind: OptionKind,
    default: Option<&'static str>,
    help: &'static str,
) -> OptionSpec {
    OptionSpec { name, kind, help, default }
}

/// Options in the order in which `create` prints them.
pub(super) const OPTIONS: &[OptionSpec] = &[
    option(
        "encryption",
        OptionKind::Bool,
        None,
        "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
    ),
    option(
        "encrypt.format",
        OptionKind::Text,
        None,
        "Encrypt the image, format choices: 'aes', 'luks'",
    ),
    option(
        "encrypt.key-secret",
        OptionKind::Text,
        None,
        "ID of secret providing qcow AES key or LUKS passphrase",
    ),
    option("encrypt.cipher-alg", OptionKind::Text, None, "Name of encryption cipher algorithm"),
    option("encrypt.cipher-mode", OptionKind::Text, None, "Name of encryption cipher mode"),
    option("encrypt.ivgen-alg", OptionKind::Text, None, "Name of IV generator algorithm"),
    option("encrypt.ivgen-hash-alg", OptionKind::Text, None, "Name of IV generator hash algorithm"),
    option("encrypt.hash-alg", OptionKind::Text, None, "Name of encryption hash algorithm"),
    option("encrypt.iter-time", OptionKind::Number, None, "Time to spend in PBKDF in milliseconds"),
    option("cluster_size", OptionKind::Size, Some("65536"), "qcow2 cluster size"),
    option("extended_l2", OptionKind::Bool, Some("off"), "Extended L2 tables"),
    option(
        "preallocation",
        OptionKind::Text,
        None,
        "Preallocation mode (allowed values: off, metadata, falloc, full)",
    ),
    option(
        "compression_type",
        OptionKind::Text,
        Some("zlib"),
        "Compression method used for image cluster compression",
    ),
    option("size", OptionKind::Size, None, "Virtual disk size"),
    option("compat", OptionKind::Text, None, "Compatibility level (v2 [0.10] or v3 [1.1])"),
    option("backing_file", OptionKind::Text, None, "File name of a base image"),
    option("backing_fmt", OptionKind::Text, None, "Image format of the base image"),
    option("data_file", OptionKind::Text, None, "File name of an external data file"),
    option(
        "data_file_raw",
        OptionKind::Bool,
        None,
        "The external data file must stay valid as a raw image",
    ),
    option("lazy_refcounts", OptionKind::Bool, Some("off"), "Postpone refcount updates"),
    option(
        "refcount_bits",
        OptionKind::Number,
        Some("16"),
        "Width of a reference count entry in bits",
    ),
    option("nocow", OptionKind::Bool, None, "Turn off copy-on-write (valid only on btrfs)"),
    option(
        "extent_size_hint",
        OptionKind::Size,
        None,
        "Extent size hint for the image file, 0 to disable",
    ),
];

/// Checked choices of one creation.
#[derive(Clone, Debug)]
pub(super) struct Choices {
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    pub(super) extended: bool,
    pub(super) compression: Compression,
    pub(super) lazy: bool,
    pub(super) refcount_order: u32,
    pub(super) preallocation: Preallocation,
    pub(super) data_file: Option<String>,
    pub(super) data_file_raw: bool,
    pub(super) crypt: Option<NewCrypt>,
}

fn value_error(name: &str, value: &str) -> Error {
    Error::invalid(format!("Parameter '{name}' does not accept value '{value}'"))
}

/// Compatibility level by any of its names.
pub(super) fn parse_compat(text: &str) -> Result<u32> {
    match text {
        "0.10" | "v2" => Ok(2),
        "1.1" | "v3" => Ok(3),
        other => Err(value_error("version", other)),
    }
}

/// log2 of a legal cluster size.
fn parse_cluster_size(size: u64) -> Result<u32> {
    let bits = size.trailing_zeros();
    if !size.is_power_of_two() || !super::layout::CLUSTER_BITS.contains(&bits) {
        return Err(Error::invalid("Cluster size must be a power of two between 512 and 2048k"));
    }
    Ok(bits)
}

/// log2 of a legal refcount width.
pub(super) fn parse_refcount_bits(bits: u64) -> Result<u32> {
    if bits > 64 || !bits.is_power_of_two() {
        return Err(Error::invalid(
            "Refcount width must be a power of two and may not exceed 64 bits",
        ));
    }
    Ok(bits.trailing_zeros())
}

const NEEDS_V3: &str = "compatibility level 1.1 and above (use version=v3 or greater)";

impl Choices {
    /// From options; refuses combinations that make no image, with QEMU's words.
    pub(super) fn parse(options: &CreateOptions, has_backing: bool) -> Result<Self> {
        let crypt = NewCrypt::parse(options)?;
        let preallocation = crate::format::options::preallocation(
            options,
            &[Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full],
        )?;
        let version = options.text("compat").map_or(Ok(3), parse_compat)?;
        let compression = match options.text("compression_type") {
            None | Some("zlib") => Compression::Zlib,
            Some("zstd") => Compression::Zstd,
            Some(other) => return Err(value_error("compression-type", other)),
        };
        let extended = options.flag("extended_l2").unwrap_or(false);
        let cluster_bits = parse_cluster_size(options.number("cluster_size").unwrap_or(65536))?;
        if extended && version < 3 {
            return Err(Error::invalid(format!(
                "Extended L2 entries are only supported with {NEEDS_V3}"
            )));
        }
        if extended && cluster_bits < 14 {
            return Err(Error::invalid(
                "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
            ));
        }
        if has_backing && preallocation != Preallocation::Off && !extended {
            return Err(Error::invalid(
                "Backing file and preallocation can only be used at the same time if extended_l2 is on",
            ));
        }
        let lazy = options.flag("lazy_refcounts").unwrap_or(false);
        if lazy && version < 3 {
            return Err(Error::invalid(format!("Lazy refcounts only supported with {NEEDS_V3}")));
        }
        let refcount_order = parse_refcount_bits(options.number("refcount_bits").unwrap_or(16))?;
        if refcount_order != 4 && version < 3 {
            return Err(Error::invalid(
                "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)",
            ));
        }
        let data_file = options.text("data_file").filter(|n| !n.is_empty()).map(str::to_owned);
        let data_file_raw = options.flag("data_file_raw").unwrap_or(false);
        // The data file must be right without looking at the tables, and they with it: every cluster is
        // mapped.
        let preallocation = match preallocation {
            Preallocation::Off if data_file_raw => Preallocation::Metadata,
            other => other,
        };
        if data_file_raw && data_file.is_none() {
            return Err(Error::invalid("data-file-raw requires data-file"));
        }
        if data_file_raw && has_backing {
            return Err(Error::invalid(
                "Backing file and data-file-raw cannot be used at the same time",
            ));
        }
        if data_file.is_some() && version < 3 {
            return Err(Error::invalid(format!(
                "External data files are only supported with {NEEDS_V3}"
            )));
        }
        if compression != Compression::Zlib && version < 3 {
            return Err(Error::invalid(format!(
                "Non-zlib compression type is only supported with {NEEDS_V3}"
            )));
        }
        Ok(Choices {
            version,
            cluster_bits,
            extended,
            compression,
            lazy,
            refcount_order,
            preallocation,
            data_file,
            data_file_raw,
            crypt,
        })
    }

    /// The header of a new image of `size` bytes; tables still to be placed.
    fn header(&self, size: u64, cx: &CreateContext<'_>) -> Header {
        let mut incompatible = 0;
        let set = |bits: &mut u64, on: bool, bit: u64| *bits |= if on { bit } else { 0 };
        set(&mut incompatible, self.data_file.is_some(), incompatible::DATA_FILE);
        set(&mut incompatible, self.compression != Compression::Zlib, incompatible::COMPRESSION);
        set(&mut incompatible, self.extended, incompatible::EXTENDED_L2);
        Header {
            version: self.version,
            cluster_bits: self.cluster_bits,
            size,
            crypt_method: self.crypt.as_ref().map_or(0, NewCrypt::method),
            l1_size: 0,
            l1_offset: 0,
            reftable_offset: 0,
            reftable_clusters: 0,
            nb_snapshots: 0,
            snapshots_offset: 0,
            incompatible,
            compatible: if self.lazy { compatible::LAZY_REFCOUNTS } else { 0 },
            autoclear: if self.data_file_raw { autoclear::DATA_FILE_RAW } else { 0 },
            refcount_order: self.refcount_order,
            compression: self.compression,
            backing_name: cx.backing.as_ref().map(|b| b.name.clone()),
            backing_format: cx.backing.as_ref().and_then(|b| b.format.clone()),
            data_file: self.data_file.clone(),
            extensions: Vec::new(),
            unknown_fields: Vec::new(),
        }
    }
}

/// Fills in nothing that the table's defaults do not say; checks combinations early.
pub(super) fn resolve(options: &mut CreateOptions, size: u64) -> Result<()> {
    options.set("size", OptionValue::Number(size));
    Ok(())
}

/// See [`crate::format::Driver::create`].
pub(super) fn create(cx: &CreateContext<'_>) -> Result<()> {
    if let Some(other) = cx.options.text("preallocation")
        && !["off", "metadata", "falloc", "full"].contains(&other)
    {
        // Worded otherwise than where an image is measured.
        return Err(value_error("preallocation", other));
    }
    let choices = Choices::parse(cx.options, cx.backing.is_some())?;
    if cx.backing.is_none() && cx.options.text("backing_fmt").is_some() {
        return Err(Error::invalid("Backing format cannot be used without backing file"));
    }
    let size = checked_round_up(cx.size, 512).ok_or_else(too_large)?;
    let mut header = choices.header(size, cx);
    let geometry = super::tables::Geometry::new(&header);
    let entries = geometry.l1_entries(size);
    if size > i64::MAX.unsigned_abs() || entries > super::layout::MAX_L1_BYTES / 8 {
        return Err(too_large());
    }
    let passphrase = choices.crypt.as_ref().map(|c| c.passphrase(cx)).transpose()?;
    let data_file = match &choices.data_file {
        Some(name) => {
            let file = cx.files.beside(name)?;
            file.set_len(size, Preallocation::Off)?;
            Some(file)
        }
        None => None,
    };
    let file = cx.files.main()?;
    let area = choices.crypt.as_ref().map_or(0, NewCrypt::area_len);
    let crypt_at = place_tables(&mut header, (entries, area), &*file)?;
    if let (Some(crypt), Some(passphrase)) = (&choices.crypt, &passphrase) {
        crypt.write(&mut header, &file, (crypt_at, passphrase))?;
    }
    header.write(&*file)?;
    if choices.preallocation != Preallocation::Off && size > 0 {
        let image = open_new(file, data_file, passphrase)?;
        image.preallocate(0, size, choices.preallocation)?;
        image.close_image()?;
    }
    Ok(())
}

fn too_large() -> Error {
    Error::new(
        ErrorKind::Io(libc::EFBIG),
        "The image size is too large for file format 'qcow2' (try using a larger cluster size)",
    )
}

/// Writes the first tables: refcount table in cluster 1, then as many refcount blocks as header, tables
/// and L1 table need, then room for `area` bytes of an encryption header, then the L1 table. Returns where
/// that room is.
fn place_tables(
    header: &mut Header,
    (l1_entries, area): (u64, u64),
    file: &dyn Storage,
) -> Result<u64> {
    let cluster = header.cluster_size();
    let per_block = cluster * 8 >> header.refcount_order;
    let l1_clusters = (l1_entries * 8).div_ceil(cluster);
    let crypt_clusters = area.div_ceil(cluster);
    let (mut blocks, mut table_clusters) = (1, 1);
    let used = loop {
        let used = 1 + table_clusters + blocks + crypt_clusters + l1_clusters;
        let need_blocks = used.div_ceil(per_block);
        let need_table = (need_blocks * 8).div_ceil(cluster);
        if need_blocks <= blocks && need_table <= table_clusters {
            break used;
        }
        blocks = blocks.max(need_blocks);
        table_clusters = table_clusters.max(need_table);
    };
    header.reftable_offset = cluster;
    header.reftable_clusters = u32::try_from(table_clusters).map_err(|_| too_large())?;
    header.l1_size = u32::try_from(l1_entries).map_err(|_| too_large())?;
    let crypt_at = (1 + table_clusters + blocks) * cluster;
    header.l1_offset = if l1_entries == 0 { 0 } else { crypt_at + crypt_clusters * cluster };
    let mut table = Vec::new();
    let mut counts = vec![0u8; small(blocks * cluster)];
    for block in 0..blocks {
        table.extend_from_slice(&((1 + table_clusters + block) * cluster).to_be_bytes());
    }
    for index in 0..used {
        set_count(&mut counts, header.refcount_order, small(index), 1);
    }
    table.resize(small(table_clusters * cluster), 0);
    // The last sector of the L1 table is the end of the file; what is missing of its cluster is zero.
    let l1_bytes = crate::num::round_up(l1_entries * 8, 512);
    file.set_len((used - l1_clusters) * cluster + l1_bytes, Preallocation::Off)?;
    if !file.zero_init() {
        // A device holds whatever was there: neither the header's cluster nor the L1 table is zero.
        file.write_zeroes(0, cluster, ZeroMode::MayUnmap)?;
        file.write_zeroes(
            (used - l1_clusters) * cluster,
            l1_clusters * cluster,
            ZeroMode::MayUnmap,
        )?;
    }
    file.write_at(cluster, &table)?;
    file.write_at((1 + table_clusters) * cluster, &counts)?;
    Ok(crypt_at)
}

/// Opens nothing, and has the passphrase of the image just made.
struct OwnKey(Option<SecretBytes>);

impl OpenGate for OwnKey {
    fn open_storage(&self, reference: &str, access: Access) -> Result<Arc<dyn Storage>> {
        NoGate.open_storage(reference, access)
    }

    fn passphrase(&self, _id: Option<&str>) -> Result<Option<SecretBytes>> {
        Ok(self.0.clone())
    }
}

/// Opens an image just made, for preallocation.
fn open_new(
    file: Arc<dyn Storage>,
    data_file: Option<Arc<dyn Storage>>,
    passphrase: Option<SecretBytes>,
) -> Result<Qcow2Image> {
    super::open::open(&OpenContext {
        storage: file,
        access: Access::Write,
        gate: &OwnKey(passphrase),
        snapshot: None,
        data_file,
        scratch: true,
        header_only: false,
        for_check: false,
        options: &[],
    })
}
