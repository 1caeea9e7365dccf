//! The snapshot table ("Snapshots"): entries from bytes and back.

use zerocopy::{FromBytes, IntoBytes};

use super::layout::RawSnapshot;
use crate::num::{len_u64, round_up, small};
use crate::storage::Storage;
use crate::{Error, ErrorKind, Result};

/// Most extra data of an entry that are kept.
pub(super) const MAX_EXTRA: u32 = 1024;
/// Largest table.
pub(super) const MAX_TABLE: u64 = 64 << 20;
/// Extra data this program understands: VM state size, disk size, instruction count.
const KNOWN_EXTRA: usize = 24;
/// Extra data that version 3 demands.
pub(super) const V3_EXTRA: u32 = 16;
/// Bytes read at a time.
const WINDOW: usize = 1 << 16;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub(super) l1_offset: u64,
    pub(super) l1_size: u32,
    /// "Unique ID string", not terminated.
    pub(super) id: Vec<u8>,
    pub(super) name: Vec<u8>,
    pub(super) date_sec: u32,
    pub(super) date_nsec: u32,
    pub(super) vm_clock_nsec: u64,
    pub(super) vm_state_size: u64,
    /// Size of the disk then.
    pub(super) disk_size: u64,
    pub(super) icount: Option<u64>,
    /// Bytes of extra data in the file.
    pub(super) extra_size: u32,
    /// What follows the known extra data; kept.
    pub(super) unknown_extra: Vec<u8>,
}

impl Snapshot {
    /// The id as text.
    pub(super) fn id_text(&self) -> String {
        text(&self.id)
    }

    /// The name as text.
    pub(super) fn name_text(&self) -> String {
        text(&self.name)
    }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Whether damage is cut away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Damage {
    Refuse,
    CutAway,
}

/// What is read: entries, and how much of the file they take.
#[derive(Clone, Debug, Default)]
pub(super) struct SnapshotTable {
    pub(super) list: Vec<Snapshot>,
    /// Bytes of the table in the file.
    pub(super) bytes: u64,
    /// Lines about what was cut away.
    pub(super) notes: Vec<String>,
    /// Entries dropped.
    pub(super) dropped: u64,
    /// Entries with too much extra data, shortened.
    pub(super) shortened: u64,
}

/// Reads forwards through a window.
struct Reader<'a> {
    storage: &'a dyn Storage,
    at: u64,
    window: Vec<u8>,
    used: usize,
}

impl Reader<'_> {
    fn take(&mut self, n: usize) -> Result<Vec<u8>> {
        if self.window.len() - self.used < n {
            self.window = vec![0; n.max(WINDOW)];
            self.used = 0;
            self.storage
                .read_at(self.at, &mut self.window)
                .map_err(|e| e.context("Failed to read snapshot table"))?;
        }
        let bytes = self.window[self.used..self.used + n].to_vec();
        self.used += n;
        self.at += len_u64(n);
        Ok(bytes)
    }

    fn skip_to(&mut self, at: u64) {
        let by = at - self.at;
        if by <= len_u64(self.window.len() - self.used) {
            self.used += small(by);
        } else {
            self.window.clear();
            self.used = 0;
        }
        self.at = at;
    }
}

/// Where a table is and what its entries mean without extra data.
#[derive(Clone, Copy, Debug)]
pub(super) struct TablePlace {
    pub(super) offset: u64,
    pub(super) entries: u32,
    /// Size of the disk now, for entries that do not say theirs.
    pub(super) disk_size: u64,
}

impl SnapshotTable {
    /// Reads a table.
    pub(super) fn read(storage: &dyn Storage, place: TablePlace, damage: Damage) -> Result<Self> {
        let mut table = SnapshotTable::default();
        let mut from = Reader { storage, at: place.offset, window: Vec::new(), used: 0 };
        let file_len = storage.len()?;
        for index in 0..place.entries {
            let start = round_up(from.at, 8);
            let too_big = if start > file_len {
                // Nothing but zeroes follows; such entries would be accepted without end.
                true
            } else {
                let before = from.at;
                from.skip_to(start);
                let entry = table.read_entry(&mut from, index, place.disk_size, damage)?;
                let end = from.at - place.offset;
                if end > MAX_TABLE {
                    from.at = before;
                    true
                } else {
                    table.list.push(entry);
                    table.bytes = end;
                    false
                }
            };
            if too_big {
                let rest = place.entries - index;
                if damage == Damage::Refuse {
                    return Err(Error::new(ErrorKind::TooLarge, "Snapshot table is too big")
                        .at_path(storage.name())
                        .at_offset(start)
                        .hint(format!(
                            "You can force-remove all {rest} overhanging snapshots with qemu-img check -r all"
                        )));
                }
                table.notes.push(format!(
                    "Discarding {rest} overhanging snapshots (snapshot table is too big)"
                ));
                table.dropped += u64::from(rest);
                break;
            }
        }
        Ok(table)
    }

    fn read_entry(
        &mut self,
        from: &mut Reader<'_>,
        index: u32,
        disk_size: u64,
        damage: Damage,
    ) -> Result<Snapshot> {
        let at = from.at;
        let head = from.take(size_of::<RawSnapshot>())?;
        let raw = RawSnapshot::read_from_bytes(&head)
            .map_err(|_| Error::corrupt("snapshot table entry too short").at_offset(at))?;
        let mut extra_size = raw.extra_data_size.get();
        let extra_end = from.at + u64::from(extra_size);
        if extra_size > MAX_EXTRA {
            if damage == Damage::Refuse {
                return Err(Error::new(
                    ErrorKind::TooLarge,
                    format!("Too much extra metadata in snapshot table entry {index}"),
                )
                .at_path(from.storage.name())
                .at_offset(at)
                .hint("You can force-remove this extra metadata with qemu-img check -r all"));
            }
            self.notes.push(format!(
                "Discarding too much extra metadata in snapshot table entry {index} ({extra_size} > {MAX_EXTRA})"
            ));
            self.shortened += 1;
            extra_size = MAX_EXTRA;
        }
        let extra = from.take(small(u64::from(extra_size)))?;
        from.skip_to(extra_end);
        let word = |at: usize| {
            extra.get(at..at + 8).map(|b| b.iter().fold(0u64, |v, &x| v << 8 | u64::from(x)))
        };
        let id = from.take(usize::from(raw.id_size.get()))?;
        let name = from.take(usize::from(raw.name_size.get()))?;
        Ok(Snapshot {
            l1_offset: raw.l1_table_offset.get(),
            l1_size: raw.l1_size.get(),
            id,
            name,
            date_sec: raw.date_sec.get(),
            date_nsec: raw.date_nsec.get(),
            vm_clock_nsec: raw.vm_clock_nsec.get(),
            vm_state_size: word(0).unwrap_or_else(|| u64::from(raw.vm_state_size.get())),
            disk_size: word(8).unwrap_or(disk_size),
            icount: word(16).filter(|&n| n != u64::MAX),
            extra_size,
            unknown_extra: extra.get(KNOWN_EXTRA..).unwrap_or_default().to_vec(),
        })
    }
}

/// A table as bytes, each entry with at least the known extra data.
pub(super) fn encode(list: &[Snapshot]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for s in list {
        out.resize(out.len().next_multiple_of(8), 0);
        let size = |n: usize| u16::try_from(n).map_err(|_| Error::errno(libc::EFBIG));
        let extra = u32::try_from(KNOWN_EXTRA + s.unknown_extra.len())
            .map_err(|_| Error::errno(libc::EFBIG))?;
        let raw = RawSnapshot {
            l1_table_offset: s.l1_offset.into(),
            l1_size: s.l1_size.into(),
            id_size: size(s.id.len())?.into(),
            name_size: size(s.name.len())?.into(),
            date_sec: s.date_sec.into(),
            date_nsec: s.date_nsec.into(),
            vm_clock_nsec: s.vm_clock_nsec.into(),
            // Too large for 32 bits: the extra data have it.
            vm_state_size: u32::try_from(s.vm_state_size).unwrap_or(0).into(),
            extra_data_size: extra.into(),
        };
        out.extend_from_slice(raw.as_bytes());
        out.extend_from_slice(&s.vm_state_size.to_be_bytes());
        out.extend_from_slice(&s.disk_size.to_be_bytes());
        out.extend_from_slice(&s.icount.unwrap_or(u64::MAX).to_be_bytes());
        out.extend_from_slice(&s.unknown_extra);
        out.extend_from_slice(&s.id);
        out.extend_from_slice(&s.name);
        if len_u64(out.len()) > MAX_TABLE {
            return Err(Error::errno(libc::EFBIG)
                .context("the snapshot table would become larger than the format allows"));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    fn sample(n: u64) -> Snapshot {
        Snapshot {
            l1_offset: n << 16,
            l1_size: 3,
            id: n.to_string().into_bytes(),
            name: format!("name {n}").into_bytes(),
            date_sec: 7,
            date_nsec: 8,
            vm_clock_nsec: 9,
            vm_state_size: n << 33,
            disk_size: 1 << 20,
            icount: n.is_multiple_of(2).then_some(n),
            extra_size: 24,
            unknown_extra: Vec::new(),
        }
    }

    #[test]
    fn entries_survive_a_round_trip() {
        let mut list: Vec<_> = (1..50).map(sample).collect();
        list[3].unknown_extra = vec![1, 2, 3, 4, 5];
        list[3].extra_size = 29;
        let mut bytes = vec![0; 4096];
        bytes.extend(encode(&list).unwrap());
        let len = len_u64(bytes.len()) - 4096;
        let storage = MemoryStorage::new("m", bytes);
        let place = TablePlace { offset: 4096, entries: 49, disk_size: 5 };
        let table = SnapshotTable::read(&storage, place, Damage::Refuse).unwrap();
        assert_eq!(table.list, list);
        assert_eq!(table.bytes, len);
    }

    #[test]
    fn endless_tables_are_refused_and_cut() {
        let storage = MemoryStorage::new("m", vec![0; 4096]);
        let place = TablePlace { offset: 0, entries: 60_000, disk_size: 5 };
        let e = SnapshotTable::read(&storage, place, Damage::Refuse).unwrap_err();
        assert_eq!(e.message(), "Snapshot table is too big");
        let cut = SnapshotTable::read(&storage, place, Damage::CutAway).unwrap();
        assert_eq!(len_u64(cut.list.len()) + cut.dropped, 60_000);
    }
}
