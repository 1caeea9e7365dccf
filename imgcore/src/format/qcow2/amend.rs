//! Changing options of an existing image.
//!
//! Everything is checked before anything changes. Then, as in the reference implementation: up to
//! version 3 first (later steps may need it), the width of the counts, flags, the size of the disk, and
//! down to version 2 last; key slots
//! change after the flags. Each step ends with one write of the header; a crash leaves the image of
//! before or of after a step, and leaks at worst.

use super::amend_zero::{Expansion, has_compressed};
use super::check_counts::Counts;
use super::create::{option, parse_refcount_bits};
use super::header::Compression;
use super::image::Qcow2Image;
use super::layout::{REFTABLE_MASK, autoclear, compatible, incompatible};
use super::refcount::{get_count, max_count};
use super::snapshot_table::V3_EXTRA;
use super::tables::Tables;
use crate::format::{
    Amendment, CreateOptions, OptionKind, OptionSpec, Resize, Watcher, check_cancelled,
};
use crate::num::{len_u64, small};
use crate::storage::Preallocation;
use crate::{Error, Result};

/// Options in the order of the reference implementation's help.
pub(super) const OPTIONS: &[OptionSpec] = &[
    option("backing_file", OptionKind::Text, None, "File name of a base image"),
    option("backing_fmt", OptionKind::Text, None, "Image format of the base image"),
    option("compat", OptionKind::Text, None, "Compatibility level (v2 [0.10] or v3 [1.1])"),
    option("data_file", OptionKind::Text, None, "File name of an external data file"),
    option(
        "data_file_raw",
        OptionKind::Bool,
        None,
        "The external data file must stay valid as a raw image",
    ),
    option("encrypt.iter-time", OptionKind::Number, None, "Time to spend in PBKDF in milliseconds"),
    option(
        "encrypt.keyslot",
        OptionKind::Number,
        None,
        "Select a single keyslot to modify explicitly",
    ),
    option(
        "encrypt.new-secret",
        OptionKind::Text,
        None,
        "New secret to set in the matching keyslots. Empty string to erase",
    ),
    option(
        "encrypt.old-secret",
        OptionKind::Text,
        None,
        "Select all keyslots that match this password",
    ),
    option(
        "encrypt.state",
        OptionKind::Text,
        None,
        "Select new state of affected keyslots (active/inactive)",
    ),
    option("lazy_refcounts", OptionKind::Bool, None, "Postpone refcount updates"),
    option("refcount_bits", OptionKind::Number, None, "Width of a reference count entry in bits"),
    option("size", OptionKind::Size, None, "Virtual disk size"),
];

/// What is to be changed, checked against the image.
#[derive(Debug)]
struct Plan {
    version: u32,
    refcount_order: u32,
    lazy: bool,
    drop_raw: bool,
    data_file: Option<String>,
    size: Option<u64>,
    /// Key slots.
    keys: bool,
}

impl Plan {
    fn new(options: &CreateOptions, tables: &Tables) -> Result<Self> {
        let h = &tables.header;
        let version = match options.text("compat") {
            None => h.version,
            Some("0.10" | "v2") => 2,
            Some("1.1" | "v3") => 3,
            Some(other) => {
                return Err(Error::invalid(format!("Unknown compatibility level {other}")));
            }
        };
        let keys = options.names().any(|n| n.starts_with("encrypt."));
        if keys && h.crypt_method != 2 {
            return Err(match h.crypt_method {
                0 => Error::invalid("Can't amend encryption options - encryption not present"),
                _ => Error::unsupported("Only LUKS encryption options can be amended"),
            });
        }
        let refcount_order = match options.number("refcount_bits") {
            Some(bits) => parse_refcount_bits(bits)?,
            None => h.refcount_order,
        };
        let external = h.has(incompatible::DATA_FILE);
        let data_file = options.text("data_file").map(str::to_owned);
        if data_file.is_some() && !external {
            return Err(Error::invalid(
                "data-file can only be set for images that use an external data file",
            ));
        }
        let raw = options.flag("data_file_raw");
        if raw == Some(true) && !tables.geometry.external_raw {
            return Err(Error::invalid("data-file-raw cannot be set on existing images"));
        }
        if version < 3 && refcount_order != h.refcount_order && refcount_order != 4 {
            return Err(Error::invalid(
                "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)",
            ));
        }
        let (file, format) = (options.text("backing_file"), options.text("backing_fmt"));
        if (file.is_some() || format.is_some())
            && (file != h.backing_name.as_deref() || format != h.backing_format.as_deref())
        {
            return Err(Error::invalid("Cannot amend the backing file")
                .hint("You can use 'qemu-img rebase' instead."));
        }
        let was_lazy = h.compatible & compatible::LAZY_REFCOUNTS != 0;
        let lazy = options.flag("lazy_refcounts").unwrap_or(was_lazy);
        if lazy && !was_lazy && version < 3 {
            return Err(Error::invalid(
                "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)",
            ));
        }
        Ok(Plan {
            version,
            refcount_order,
            lazy,
            drop_raw: raw == Some(false) && tables.geometry.external_raw,
            data_file,
            size: options.number("size").filter(|&n| n != 0),
            keys,
        })
    }
}

impl Qcow2Image {
    /// See [`crate::format::Image::amend`]. A caller that knows the file below changes the size itself
    /// (through the node), because only it can clear what would show of it. Afterwards the image must be closed and opened again: sizes
    /// that follow from the version were taken when it was opened.
    pub(super) fn amend_image(&self, request: &Amendment<'_>, watcher: &dyn Watcher) -> Result<()> {
        let options = request.options;
        drop(self.finish_recording()?);
        let plan = {
            let mut tables = self.write_tables();
            self.check_usable(&tables)?;
            self.settle(&mut tables)?;
            let plan = Plan::new(options, &tables)?;
            if plan.version < tables.header.version {
                self.check_downgrade(&tables, &plan)?;
            }
            self.amend_up(&mut tables, &plan, watcher)?;
            plan
        };
        if let (true, Some(crypt)) = (plan.keys, &self.crypt) {
            crypt.amend(request)?;
        }
        if let Some(size) = plan.size.filter(|&n| n != self.disk_size()) {
            let hide_below = self.read_tables().header.backing_name.is_some();
            self.resize_with_bitmaps(Resize { size, how: Preallocation::Off, hide_below })?;
        }
        let mut tables = self.write_tables();
        if plan.version < tables.header.version {
            self.downgrade(&mut tables, watcher)?;
        }
        watcher.progress(1, 1);
        Ok(())
    }

    /// All steps before the size changes.
    fn amend_up(&self, tables: &mut Tables, plan: &Plan, watcher: &dyn Watcher) -> Result<()> {
        if plan.version > tables.header.version {
            self.upgrade(tables)?;
        }
        if plan.refcount_order != tables.header.refcount_order {
            self.change_width(tables, plan.refcount_order, watcher)?;
        }
        let old = tables.header.clone();
        let h = &mut tables.header;
        if plan.drop_raw {
            h.autoclear &= !autoclear::DATA_FILE_RAW;
        }
        if let Some(name) = &plan.data_file {
            h.data_file = Some(name.clone()).filter(|n| !n.is_empty());
        }
        if plan.lazy && h.version >= 3 {
            h.compatible |= compatible::LAZY_REFCOUNTS;
        } else if !plan.lazy {
            // Everything is settled: the counts on disk are right.
            h.compatible &= !compatible::LAZY_REFCOUNTS;
            h.incompatible &= !incompatible::DIRTY;
        }
        if *h == old {
            return Ok(());
        }
        self.write_amended(tables, old)
    }

    /// Writes the changed header, or restores `old` in memory.
    fn write_amended(&self, tables: &mut Tables, old: super::header::Header) -> Result<()> {
        let written = tables.header.write(&*self.file).and_then(|()| self.barrier());
        written.map_err(|e| {
            tables.header = old;
            e.context("Failed to update the image header")
        })
    }

    /// Version 2 to 3: snapshots must tell their disk size.
    fn upgrade(&self, tables: &mut Tables) -> Result<()> {
        let table = self.read_snapshots(tables)?;
        if table.list.iter().any(|s| s.extra_size < V3_EXTRA) {
            self.replace_snapshot_table(tables, &table.list, table.bytes)
                .map_err(|e| e.context("Failed to update the snapshot table"))?;
        }
        let old = tables.header.clone();
        tables.header.version = 3;
        tables.header.refcount_order = 4;
        self.write_amended(tables, old)
    }

    /// Writes the refcount structure anew with another width.
    fn change_width(&self, tables: &mut Tables, order: u32, watcher: &dyn Watcher) -> Result<()> {
        let old_order = tables.refs.order;
        let block_bits = tables.refs.block_bits();
        let cluster = self.geometry.cluster();
        let mut counts = Counts::new(self.file.len()?.div_ceil(cluster), 6);
        let mut old = vec![(tables.refs.table_offset, tables.refs.table_clusters() * cluster)];
        let mut bytes = vec![0u8; small(cluster)];
        let total = len_u64(tables.refs.table.len());
        for index in 0..tables.refs.table.len() {
            let at = tables.refs.table[index] & REFTABLE_MASK;
            if at == 0 {
                continue;
            }
            check_cancelled(watcher)?;
            watcher.progress(len_u64(index), total);
            if !at.is_multiple_of(cluster) {
                return Err(Error::corrupt(format!(
                    "Refblock offset {at:#x} unaligned (reftable index: {index:#x})"
                ))
                .at_offset(at)
                .hint("repair it with 'check -r all'"));
            }
            old.push((at, cluster));
            self.file.read_at(at, &mut bytes)?;
            let first = len_u64(index) << block_bits;
            for i in 0..1usize << block_bits {
                let count = get_count(&bytes, old_order, i);
                if count == 0 {
                    continue;
                }
                let here = first + len_u64(i);
                if count > max_count(order) {
                    return Err(Error::invalid(format!(
                        "Cannot decrease refcount entry width to {} bits: Cluster at offset {:#x} has a refcount of {count}",
                        1u32 << order,
                        here * cluster
                    )));
                }
                counts.grow(here + 1);
                counts.set(here, count);
            }
        }
        let new = super::repair::write_structure(
            &*self.file,
            self.geometry.cluster_bits,
            order,
            &mut counts,
            super::repair::OldStructure { places: &old, exact: true },
        )?;
        self.link_structure(tables, new, order)?;
        // The old places are free now and may be used again; a stale slice must not be found there.
        tables.l2.forget_clean();
        Ok(())
    }

    /// Refuses what version 2 cannot say.
    fn check_downgrade(&self, tables: &Tables, plan: &Plan) -> Result<()> {
        let h = &tables.header;
        if plan.refcount_order != 4 {
            return Err(Error::unsupported("compat=0.10 requires refcount_bits=16"));
        }
        if h.has(incompatible::DATA_FILE) {
            return Err(Error::unsupported("Cannot downgrade an image with a data file"));
        }
        let size = plan.size.unwrap_or(h.size);
        let table = self.read_snapshots(tables)?;
        if table.list.iter().any(|s| s.vm_state_size > u64::from(u32::MAX) || s.disk_size != size) {
            return Err(Error::unsupported("Internal snapshots prevent downgrade of image"));
        }
        let left = h.incompatible & !(incompatible::COMPRESSION | incompatible::DIRTY);
        if left != 0 {
            return Err(Error::unsupported(format!(
                "Cannot downgrade an image with incompatible features {left:#x} set"
            )));
        }
        if h.compression != Compression::Zlib && has_compressed(self, &self.all_l2_tables(tables)?)?
        {
            return Err(Error::unsupported(
                "Cannot downgrade an image with zstd compression type and existing compressed clusters",
            ));
        }
        Ok(())
    }

    /// Version 3 to 2.
    fn downgrade(&self, tables: &mut Tables, watcher: &dyn Watcher) -> Result<()> {
        self.settle(tables)?;
        self.drop_bitmaps(tables)?;
        let uses = self.all_l2_tables(tables)?;
        Expansion::new(self, tables, watcher)
            .run(&uses)
            .map_err(|e| e.context("Failed to turn zero into data clusters"))?;
        let old = tables.header.clone();
        let h = &mut tables.header;
        h.version = 2;
        h.incompatible = 0;
        h.compatible = 0;
        h.autoclear = 0;
        h.compression = Compression::Zlib;
        h.unknown_fields.clear();
        self.write_amended(tables, old)
    }
}
