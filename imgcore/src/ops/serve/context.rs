//! Metadata contexts: what block status tells about ranges of the export.

use super::ServeOptions;
use crate::graph::Node;
use crate::nbd::{BASE_ALLOCATION, STATE_HOLE, STATE_ZERO};
use crate::num::small;
use crate::ops::source::Walk;
use crate::{Error, ErrorKind, Result};

/// Extents in one answer; the client asks again for what lies behind.
const MAX_EXTENTS: usize = 1 << 14;

/// A metadata context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Context {
    /// `base:allocation`
    Allocation,
    /// `qemu:allocation-depth`
    Depth,
    /// `qemu:dirty-bitmap:NAME`
    Bitmap,
}

impl Context {
    /// Its number in answers.
    pub fn id(self) -> u32 {
        match self {
            Context::Allocation => 0,
            Context::Depth => 1,
            Context::Bitmap => 2,
        }
    }
}

/// The contexts that a server has.
pub(super) struct Contexts {
    all: Vec<(Context, String)>,
    /// Dirty ranges: start and length, ascending.
    dirty: Vec<(u64, u64)>,
}

impl Contexts {
    pub fn new(node: &Node, options: &ServeOptions) -> Result<Self> {
        let mut all = vec![(Context::Allocation, BASE_ALLOCATION.to_owned())];
        let mut dirty = Vec::new();
        if options.allocation_depth {
            all.push((Context::Depth, "qemu:allocation-depth".to_owned()));
        }
        if let Some(name) = &options.bitmap {
            let store = node.image().bitmaps();
            let list = store.map(|s| s.list()).transpose()?.unwrap_or_default();
            let found = list.iter().find(|b| b.name == *name);
            let (Some(store), Some(info)) = (store, found) else {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("Bitmap '{name}' is not found"),
                ));
            };
            if info.in_use {
                return Err(Error::invalid(format!(
                    "Bitmap '{name}' is inconsistent and cannot be used"
                )));
            }
            if info.auto && node.writable() {
                return Err(Error::invalid(format!(
                    "Bitmap '{name}' would change while the export is written"
                ))
                .hint("export read-only (-r), or stop the bitmap first: rimg bitmap --disable"));
            }
            dirty = store.dirty_ranges(name)?;
            all.push((Context::Bitmap, format!("qemu:dirty-bitmap:{name}")));
        }
        Ok(Contexts { all, dirty })
    }

    /// The contexts that a query of a client names; `qemu:` and the like name all below (for listing).
    pub fn matching(&self, query: &[u8], listing: bool) -> Vec<&(Context, String)> {
        let fits = |name: &str| {
            name.as_bytes() == query
                || (listing && query.ends_with(b":") && name.as_bytes().starts_with(query))
        };
        self.all.iter().filter(|c| fits(&c.1)).collect()
    }

    /// All of them.
    pub fn all(&self) -> &[(Context, String)] {
        &self.all
    }

    /// Extents from `at` on: length and flags. They may end before `len`, and never after it.
    pub fn extents(
        &self,
        node: &Node,
        context: Context,
        at: u64,
        len: u64,
        one: bool,
    ) -> Result<Vec<(u32, u32)>> {
        let walk = Walk::chain(node);
        let mut all: Vec<(u32, u32)> = Vec::new();
        let mut done = 0;
        while done < len {
            let (run, flags) = match context {
                Context::Bitmap => self.dirty_run(at + done, len - done),
                Context::Allocation | Context::Depth => {
                    let run = walk.run(at + done, len - done)?;
                    let hole = if run.stored { 0 } else { STATE_HOLE };
                    let flags = match (context, run.is_zero()) {
                        (Context::Depth, _) if !run.allocated => 0,
                        (Context::Depth, _) => u32::try_from(run.link + 1).unwrap_or(u32::MAX),
                        (_, true) => STATE_ZERO | hole,
                        (_, false) => 0,
                    };
                    (run.len, flags)
                }
            };
            let run = run.min(len - done).max(1);
            // `len` came from 32 bits.
            let short = u32::try_from(run).unwrap_or(u32::MAX);
            let full = all.len() >= if one { 1 } else { MAX_EXTENTS };
            match all.last_mut() {
                Some(last) if last.1 == flags => last.0 += short,
                Some(_) if full => break,
                _ => all.push((short, flags)),
            }
            done += run;
        }
        Ok(all)
    }

    fn dirty_run(&self, at: u64, len: u64) -> (u64, u32) {
        let next = self.dirty.partition_point(|(start, n)| start + n <= at);
        match self.dirty.get(small(crate::num::len_u64(next))) {
            None => (len, 0),
            Some((start, _)) if *start > at => ((start - at).min(len), 0),
            Some((start, n)) => ((start + n - at).min(len), 1),
        }
    }
}
