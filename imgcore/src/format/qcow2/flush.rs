//! Bringing tables to disk in the order stated in the parent's documentation, and closing.

use std::ops::DerefMut;

use super::image::Qcow2Image;
use super::layout::incompatible;
use super::tables::Tables;
use crate::num::{len_u64, round_up};
use crate::storage::Preallocation;
use crate::{Error, ErrorKind, Result};

#[cfg(test)]
#[path = "discard_test.rs"]
mod discard_test;

impl Qcow2Image {
    /// Refuses to change an image that was found corrupt or is open for reading.
    pub(super) fn check_usable(&self, tables: &Tables) -> Result<()> {
        if !self.writable {
            return Err(crate::format::read_only("qcow2").at_path(self.file.name()));
        }
        if tables.broken {
            return Err(Error::new(ErrorKind::Corrupt, "image was found corrupt while in use")
                .at_path(self.file.name()));
        }
        Ok(())
    }

    /// Waits until everything written to the image file and the data file is stable. A private target
    /// needs no order.
    pub(super) fn barrier(&self) -> Result<()> {
        if self.scratch {
            return Ok(());
        }
        if let Some(data) = &self.data_file {
            data.flush()?;
        }
        self.file.flush()
    }

    /// Whether reference counts may be behind (dirty bit set on disk).
    fn lazy(&self, tables: &Tables) -> bool {
        tables.is_lazy() && tables.header.has(incompatible::DIRTY)
    }

    /// See [`crate::format::Image::flush`]. Where tables have nothing to write, which is so while the
    /// guest writes to clusters that it has already, nobody has to wait for the disk with the tables
    /// locked. Otherwise the disk begins with the data before the lock is taken, and while the flush waits
    /// for it others may look up, so that they read and write what is mapped; only who changes tables
    /// waits until the flush is over.
    pub(super) fn flush_image(&self) -> Result<()> {
        if self.read_tables().is_clean() {
            return self.barrier();
        }
        if !self.scratch {
            self.data_storage().1.begin_writeback();
        }
        let mut tables = self.write_tables();
        if tables.broken {
            return self.barrier();
        }
        self.flush_steps(&mut tables, |tables| tables.wait(|| self.barrier()))
    }

    /// All steps of a flush, with the tables locked.
    pub(super) fn flush_tables(&self, tables: &mut Tables) -> Result<()> {
        if tables.broken {
            return self.barrier();
        }
        self.flush_steps(&mut &mut *tables, |_| self.barrier())
    }

    /// All steps of a flush. `wait` is a barrier: it may let others read the tables, not change them.
    fn flush_steps<T: DerefMut<Target = Tables>>(
        &self,
        tables: &mut T,
        wait: impl Fn(&mut T) -> Result<()>,
    ) -> Result<()> {
        if !self.lazy(tables) {
            self.write_refcounts(tables)?;
        }
        wait(tables)?;
        if tables.l2.is_dirty() {
            tables.l2.write_dirty(&*self.file)?;
            if tables.l1_dirty.is_some() {
                wait(tables)?;
            }
        }
        let unlinked = tables.changed;
        if let Some((low, high)) = tables.l1_dirty {
            self.write_l1(tables, low, high)?;
        }
        if unlinked {
            wait(tables)?;
        }
        tables.changed = false;
        self.drop_references(tables)
    }

    /// Steps 1 and 2: references reach the disk before what they protect.
    pub(super) fn write_refcounts(&self, tables: &mut Tables) -> Result<()> {
        let file = &*self.file;
        if tables.refs.write_blocks(file)? {
            self.barrier()?;
            if tables.refs.write_table(file)? {
                self.barrier()?;
                self.link_refcount_table(tables)?;
            }
        }
        Ok(())
    }

    /// Lets the header name the refcount table's new place.
    fn link_refcount_table(&self, tables: &mut Tables) -> Result<()> {
        tables.header.reftable_offset = tables.refs.table_offset;
        tables.header.reftable_clusters =
            u32::try_from(tables.refs.table_clusters()).map_err(|_| Error::errno(libc::EFBIG))?;
        tables.header.write(&*self.file)?;
        self.barrier()?;
        tables.refs.table_is_linked();
        Ok(())
    }

    /// Writes changed L1 entries, whole sectors of them.
    fn write_l1(&self, tables: &mut Tables, low: usize, high: usize) -> Result<()> {
        let low = low - low % 64;
        let high = (high - high % 64 + 64).min(tables.l1.len());
        let bytes: Vec<u8> = tables.l1[low..high].iter().flat_map(|e| e.to_be_bytes()).collect();
        self.file.write_at(tables.header.l1_offset + len_u64(low) * 8, &bytes)?;
        tables.l1_dirty = None;
        Ok(())
    }

    /// Step 5: what old mappings referred to becomes free, now that they are gone from the disk. What a guest gave up goes
    /// back to the file system here, as no crash can bring its mapping back any more; what was only replaced (by an
    /// overwritten compressed cluster, say) is kept for the next allocation.
    pub(super) fn drop_references(&self, tables: &mut Tables) -> Result<()> {
        if !tables.refs.has_pending() {
            return Ok(());
        }
        match tables.refs.apply_pending(&*self.file) {
            Ok(freed) => {
                let gives_back = std::mem::take(&mut tables.gives_back);
                for &(at, len) in &freed {
                    if gives_back {
                        // Nobody gets this place while the tables are locked. Space that stays taken is no error.
                        let _ = self.file.discard(at, len);
                    }
                    // A freed cluster may have been a table.
                    tables.l2.forget(at, len);
                    if tables.compressed_end > at && tables.compressed_end <= at + len {
                        tables.compressed_end = 0;
                    }
                }
                tables.freed.extend(freed);
                // Only snapshot deletion wants the list; it takes it itself.
                if tables.freed.len() > 1 << 16 {
                    tables.freed.clear();
                }
                Ok(())
            }
            Err(e) => {
                self.mark_corrupt(tables);
                Err(e)
            }
        }
    }

    /// Remembers on disk that the image is corrupt, so that nobody writes to it any more.
    pub(super) fn mark_corrupt(&self, tables: &mut Tables) {
        if tables.broken || !self.writable {
            return;
        }
        tables.broken = true;
        if tables.header.version >= 3 {
            tables.header.incompatible |= incompatible::CORRUPT;
            // Nothing better can be done if even this fails.
            let _ = tables.header.write(&*self.file);
        }
    }

    /// Sets the dirty bit before the first allocation with lazy reference counts.
    pub(super) fn begin_change(&self, tables: &mut Tables) -> Result<()> {
        let lazy = tables.is_lazy();
        if lazy && !tables.header.has(incompatible::DIRTY) {
            tables.header.incompatible |= incompatible::DIRTY;
            tables.header.write(&*self.file)?;
            self.barrier()?;
        }
        if tables.l2.is_crowded() || tables.refs.cache.is_crowded() {
            self.flush_tables(tables)?;
        }
        Ok(())
    }

    /// See [`crate::format::Image::close`].
    pub(super) fn close_image(&self) -> Result<()> {
        if !self.writable {
            return Ok(());
        }
        let mut tables = self.write_tables();
        if tables.broken {
            return Ok(());
        }
        self.flush_tables(&mut tables)?;
        self.write_refcounts(&mut tables)?;
        self.drop_references(&mut tables)?;
        self.write_refcounts(&mut tables)?;
        if tables.header.has(incompatible::DIRTY) {
            self.barrier()?;
            tables.header.incompatible &= !incompatible::DIRTY;
            tables.header.write(&*self.file)?;
        }
        self.fill_last_sector()?;
        self.file.flush()?;
        self.data_file.as_ref().map_or(Ok(()), |f| f.flush())
    }

    /// Entries of compressed clusters count whole sectors ("Compressed Clusters Descriptor"), and some
    /// readers refuse a file that ends in the middle of the last one.
    fn fill_last_sector(&self) -> Result<()> {
        let len = self.file.len()?;
        if len.is_multiple_of(512) {
            return Ok(());
        }
        self.file.set_len(round_up(len, 512), Preallocation::Off)
    }
}
