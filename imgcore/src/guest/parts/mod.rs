//! Where the partitions and logical volumes of a disk are.
//!
//! [`Layout::read`] understands the MBR with its chain of logical partitions ([`mbr`]), GPT with both
//! copies ([`gpt`]), LVM2 on partitions or on the bare disk ([`lvm`]), and disks without a table. It reads
//! the disk as Linux does where systems differ: a GPT counts when the MBR holds a partition of type `ee`,
//! logical partitions are numbered from 5. What is damaged but readable is used and said in
//! [`Layout::warnings`].

pub mod gpt;
pub mod lvm;
pub mod mbr;
mod partition;
#[cfg(test)]
mod tests;
pub mod types;

pub use partition::{Partition, PartitionType, Role};

use super::content;
use super::disk::GuestDisk;
use super::volume::{DiskRange, Volume};
use crate::{Error, Result};

/// How long a sector is: tables count in sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SectorSize {
    /// 4096 where only there a GPT is found, 512 otherwise.
    #[default]
    Detect,
    /// Bytes: 512 or 4096.
    Given(u32),
}

/// The partition table of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Table {
    /// None: one volume, or nothing at all.
    None,
    /// Master boot record.
    Mbr {
        /// Its signature, which Linux and Windows take as the disk's identifier.
        signature: u32,
    },
    /// GUID partition table.
    Gpt(Box<gpt::Gpt>),
}

impl Table {
    /// `none`, `mbr`, `gpt`.
    pub fn name(&self) -> &'static str {
        match self {
            Table::None => "none",
            Table::Mbr { .. } => "mbr",
            Table::Gpt(_) => "gpt",
        }
    }
}

/// What was found on a disk.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Bytes of a sector.
    pub sector_size: u32,
    /// The table.
    pub table: Table,
    /// Partitions by number, extended ones among them.
    pub partitions: Vec<Partition>,
    /// Volume groups that have a physical volume on this disk.
    pub groups: Vec<lvm::Group>,
    /// Sentences about what is damaged or doubtful.
    pub warnings: Vec<String>,
    /// Why the layout must not be relied on for changing anything, although it can be read: partitions
    /// overlap, or the disk holds a file system and a table at once.
    pub ambiguous: Option<String>,
}

impl Layout {
    /// Reads the tables of a disk.
    ///
    /// # Errors
    /// When the disk cannot be read or the sector size is neither 512 nor 4096. Damaged tables are no
    /// error as long as one copy can be read; a table of which nothing can be read is.
    pub fn read(disk: &GuestDisk, sector: SectorSize) -> Result<Layout> {
        let sector_size = match sector {
            SectorSize::Given(n @ (512 | 4096)) => n,
            SectorSize::Given(n) => {
                return Err(Error::invalid(format!("a sector has 512 or 4096 bytes, not {n}")));
            }
            SectorSize::Detect => gpt::sector_size(disk)?,
        };
        let mut layout = Layout {
            sector_size,
            table: Table::None,
            partitions: Vec::new(),
            groups: Vec::new(),
            warnings: Vec::new(),
            ambiguous: None,
        };
        layout.read_table(disk)?;
        layout.partitions.sort_by_key(|p| p.number);
        layout.look_for_contradictions(disk)?;
        let carriers = layout.carriers(disk);
        layout.groups = lvm::groups(&carriers, &mut layout.warnings)?;
        Ok(layout)
    }

    fn read_table(&mut self, disk: &GuestDisk) -> Result<()> {
        let boot = mbr::read(disk)?;
        let protective = boot.as_ref().is_some_and(mbr::BootRecord::has_gpt);
        let gpt = gpt::read(disk, self.sector_size)?;
        match (boot, gpt) {
            (_, Some((gpt, partitions))) if protective => {
                self.warnings.extend(gpt.warnings());
                self.table = Table::Gpt(Box::new(gpt));
                self.partitions = partitions;
            }
            (Some(boot), gpt) => {
                if gpt.is_some() {
                    self.warnings.push(
                        "a GPT is left over, but the MBR does not refer to it: it is not used"
                            .to_owned(),
                    );
                } else if protective {
                    self.warnings.push(
                        "the MBR refers to a GPT, of which no copy can be read; the MBR's own \
                         entries are used"
                            .to_owned(),
                    );
                }
                if boot.looks_like_volume(disk, self.sector_size) {
                    return Ok(());
                }
                self.partitions = boot.partitions(disk, self.sector_size, &mut self.warnings)?;
                self.table = Table::Mbr { signature: boot.signature() };
            }
            (None, Some((gpt, partitions))) => {
                if !content::probe(&Volume::whole(disk))?.is_empty() {
                    self.warnings.push(
                        "a GPT is left over on a disk that is one volume: it is not used"
                            .to_owned(),
                    );
                    return Ok(());
                }
                self.warnings.push(
                    "the protective MBR is missing: Linux does not look at the GPT then (repair: \
                     sgdisk, parted or gdisk)"
                        .to_owned(),
                );
                self.warnings.extend(gpt.warnings());
                self.table = Table::Gpt(Box::new(gpt));
                self.partitions = partitions;
            }
            (None, None) => {}
        }
        Ok(())
    }

    /// Overlaps, partitions beyond the end, a volume under the table.
    fn look_for_contradictions(&mut self, disk: &GuestDisk) -> Result<()> {
        let mut used: Vec<&Partition> =
            self.partitions.iter().filter(|p| p.role != Role::Extended).collect();
        used.sort_by_key(|p| p.start);
        for pair in used.windows(2) {
            if let [a, b] = pair
                && b.start < a.start.saturating_add(a.length)
            {
                let text = format!("partitions {} and {} overlap", a.number, b.number);
                self.warnings.push(text.clone());
                self.ambiguous.get_or_insert(text);
            }
        }
        for p in &self.partitions {
            if p.start.saturating_add(p.length) > disk.len() {
                self.warnings.push(format!(
                    "partition {} ends at {}, beyond the end of the disk at {}",
                    p.number,
                    p.start.saturating_add(p.length),
                    disk.len()
                ));
            }
        }
        if self.table != Table::None
            && !self.partitions.is_empty()
            && let Some(kind) = content::probe(&Volume::whole(disk))?.first()
        {
            let text = format!(
                "the whole disk looks like {} and has a partition table, too",
                kind.describe()
            );
            self.warnings.push(text.clone());
            self.ambiguous.get_or_insert(text);
        }
        Ok(())
    }

    /// The volumes that tables show: partitions (but not the extended container), or the whole disk.
    /// Partitions that do not lie inside the disk are left out; a warning tells of them.
    pub fn carriers(&self, disk: &GuestDisk) -> Vec<Volume> {
        if self.table == Table::None {
            return vec![Volume::whole(disk)];
        }
        let data = self.partitions.iter().filter(|p| p.role != Role::Extended);
        data.filter_map(|p| Volume::partition(disk, p).ok()).collect()
    }

    /// Everything that can hold a file system: [`Layout::carriers`], then the logical volumes whose bytes
    /// can be read from this disk alone.
    pub fn volumes(&self, disk: &GuestDisk) -> Vec<Volume> {
        let mut all = self.carriers(disk);
        for group in &self.groups {
            all.extend(group.volumes.iter().filter_map(|l| l.open(disk, &group.name).ok()));
        }
        all
    }

    /// Ranges of the disk that belong to no partition, sorted; without the tables themselves: what lies
    /// before the first partition is not told. Empty where there is no table.
    pub fn unpartitioned(&self, disk: &GuestDisk) -> Vec<DiskRange> {
        let end = match &self.table {
            Table::None => return Vec::new(),
            Table::Mbr { .. } => disk.len(),
            Table::Gpt(gpt) => gpt.usable.end().min(disk.len()),
        };
        let mut used: Vec<(u64, u64)> =
            self.partitions.iter().map(|p| (p.start, p.start.saturating_add(p.length))).collect();
        used.sort_unstable();
        let mut free = Vec::new();
        let Some(&(_, mut at)) = used.first() else { return free };
        for (start, stop) in used {
            if start > at {
                free.push(DiskRange { start: at, len: start.min(end).saturating_sub(at) });
            }
            at = at.max(stop);
        }
        if at < end {
            free.push(DiskRange { start: at, len: end - at });
        }
        free.retain(|r| r.len > 0);
        free
    }
}
