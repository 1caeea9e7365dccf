//! Where the bytes of one chunk go in the target: reserved in guest order, written in any order,
//! linked when they are there.

use std::sync::Arc;

use crate::format::{Grant, Image, Mapping, StorageId};
use crate::num::{GuestOffset, len_u64, small};
use crate::storage::Storage;
use crate::{Error, Result};

/// Bytes of the chunk's buffer and where they go.
#[derive(Debug)]
pub(super) struct Write {
    /// Offset in the buffer.
    pub from: usize,
    /// Bytes.
    pub len: usize,
    /// Which storage of the target.
    pub storage: StorageId,
    /// Where in it.
    pub offset: u64,
    /// Number of the encoded unit that is written instead of the buffer's bytes.
    pub encoded: Option<usize>,
    /// Linked after the write.
    grant: Option<Grant>,
}

/// The places of one chunk.
#[derive(Debug, Default)]
pub(super) struct Places {
    writes: Vec<Write>,
}

impl Places {
    /// Forgets the last chunk.
    pub fn clear(&mut self) {
        self.writes.clear();
    }

    /// Bytes to be written.
    pub fn bytes(&self) -> u64 {
        self.writes.iter().map(|w| len_u64(w.len)).sum()
    }

    /// Finds places for the units `(start, len)` of a chunk at `at`. Where the target has a place
    /// already, only the `data` inside is written; a new place is filled whole.
    pub fn reserve(
        &mut self,
        image: &dyn Image,
        at: u64,
        total: u64,
        units: &[(usize, usize)],
        data: &[(usize, usize)],
    ) -> Result<()> {
        self.clear();
        let result = units
            .iter()
            .try_for_each(|&(start, len)| self.reserve_run(image, (at, total), (start, len), data));
        if result.is_err() {
            self.give_back(image);
        }
        result
    }

    fn reserve_run(
        &mut self,
        image: &dyn Image,
        (at, total): (u64, u64),
        (start, len): (usize, usize),
        data: &[(usize, usize)],
    ) -> Result<()> {
        let end = (start + len).min(small(total - at));
        image.note_write(GuestOffset(at + len_u64(start)), len_u64(end - start))?;
        let mut pos = start;
        while pos < end {
            let here = at + len_u64(pos);
            let extent = image.map(GuestOffset(here), len_u64(end - pos))?;
            let stop = (pos + small(extent.len)).min(end);
            if let Mapping::Data { storage, offset, in_place: true, .. } = extent.mapping {
                for &(s, l) in data {
                    let (s, e) = (s.max(pos), (s + l).min(stop));
                    if s < e {
                        let offset = offset.0 + len_u64(s - pos);
                        self.writes.push(Write {
                            from: s,
                            len: e - s,
                            storage,
                            offset,
                            encoded: None,
                            grant: None,
                        });
                    }
                }
                pos = stop;
                continue;
            }
            pos = self.reserve_new(image, at, pos, stop, end)?;
        }
        Ok(())
    }

    /// Gets a new place for `pos..end`, of which `pos..stop` is known to have none.
    fn reserve_new(
        &mut self,
        image: &dyn Image,
        at: u64,
        pos: usize,
        stop: usize,
        end: usize,
    ) -> Result<usize> {
        let mut until = stop;
        while until < end {
            let extent = image.map(GuestOffset(at + len_u64(until)), len_u64(end - until))?;
            if matches!(extent.mapping, Mapping::Data { in_place: true, .. }) {
                break;
            }
            until = (until + small(extent.len)).min(end);
        }
        let here = at + len_u64(pos);
        let grant = image.prepare_write(GuestOffset(here), len_u64(until - pos))?;
        let covered = small(grant.len);
        if grant.at.0 != here || covered == 0 {
            image.abort_write(grant);
            return Err(Error::invalid("the target's unit is larger than the chunk's"));
        }
        self.writes.push(Write {
            from: pos,
            len: covered,
            storage: grant.storage,
            offset: grant.offset.0,
            encoded: None,
            grant: Some(grant),
        });
        Ok(pos + covered)
    }

    /// A place for one unit that could not be made smaller.
    pub fn reserve_unit(
        &mut self,
        image: &dyn Image,
        at: u64,
        from: usize,
        unit: usize,
    ) -> Result<()> {
        let end = from + unit;
        let mut pos = from;
        let rest = image.virtual_size().saturating_sub(at);
        let end = end.min(small(rest));
        while pos < end {
            pos = self.reserve_new(image, at, pos, end, end)?;
        }
        Ok(())
    }

    /// A place for an encoded unit.
    pub fn reserve_encoded(
        &mut self,
        image: &dyn Image,
        at: u64,
        index: usize,
        len: u64,
    ) -> Result<()> {
        let grant = image.prepare_encoded(GuestOffset(at), len)?;
        self.writes.push(Write {
            from: 0,
            len: small(len),
            storage: grant.storage,
            offset: grant.offset.0,
            encoded: Some(index),
            grant: Some(grant),
        });
        Ok(())
    }

    /// Writes everything with `write` and links it. After an error, nothing more is linked.
    pub fn write_all(
        &mut self,
        image: &dyn Image,
        at: u64,
        mut write: impl FnMut(&Arc<dyn Storage>, &Write) -> Result<()>,
    ) -> std::result::Result<(), (u64, Error)> {
        for i in 0..self.writes.len() {
            let place = &mut self.writes[i];
            let here = place.grant.as_ref().map_or(at + len_u64(place.from), |g| g.at.0);
            let result = write(image.storage(place.storage), place);
            let result = match (result, place.grant.take()) {
                (Ok(()), Some(grant)) => image.commit_write(grant),
                (Err(e), Some(grant)) => {
                    image.abort_write(grant);
                    Err(e)
                }
                (result, None) => result,
            };
            if let Err(e) = result {
                self.give_back(image);
                return Err((here, e));
            }
        }
        Ok(())
    }

    fn give_back(&mut self, image: &dyn Image) {
        for grant in self.writes.iter_mut().filter_map(|w| w.grant.take()) {
            image.abort_write(grant);
        }
    }
}
