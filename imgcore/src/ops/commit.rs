//! `commit`: moving an overlay's data into an image below it.
//!
//! Order: the base grows if it has to, gets all data and zeroes, and is brought to disk; only then is
//! the overlay emptied. A crash in between leaves both with the same bytes.

use std::path::Path;

use super::rate::Rate;
use super::resize::hide_backing;
use super::source::{Origin, Run, Walk};
use super::{ImageArg, Job};
use crate::format::{ZeroSpace, check_cancelled};
use crate::graph::Node;
use crate::graph::open::Sharing;
use crate::num::{len_u64, small};
use crate::storage::Preallocation;
use crate::{Error, Result};

/// Bytes moved at a time.
const PIECE: usize = 1 << 20;

/// What becomes of the overlay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Afterwards {
    /// It is emptied.
    #[default]
    Empty,
    /// It stays as it is (`-d`, implied by `-b`).
    Keep,
}

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct CommitOptions {
    /// The overlay.
    pub image: ImageArg,
    /// `-b`: an image of its chain, by name; the one directly below when not given.
    pub base: Option<String>,
    /// `-d`.
    pub afterwards: Afterwards,
    /// `-r`, bytes a second, 0 for no limit.
    pub rate: u64,
}

/// Copies the data down.
pub fn commit(options: &CommitOptions, job: &Job<'_>) -> Result<()> {
    let link = match &options.base {
        None => 1,
        Some(base) => find_base(options, base, job)?,
    };
    let mut how = options.image.options(job).writable();
    how.also_writable = Some(link);
    let top = options.image.open(job, &how)?;
    let chain = top.chain();
    let Some(base) = chain.get(link).copied() else {
        return Err(Error::invalid("Image does not have a backing file"));
    };
    let size = top.virtual_size();
    let old = base.virtual_size();
    if size > old {
        base.resize(size, Preallocation::Off)
            .map_err(|e| e.context(format!("Could not resize '{}'", base.name())))?;
        hide_backing(base, old, size)?;
    }
    move_down(&top, base, link, options, job)?;
    base.flush()?;
    base.close()?;
    if options.afterwards == Afterwards::Empty && options.base.is_none() {
        match top.image().make_empty() {
            // A format that cannot drop its mappings keeps them: they say the same as the base now.
            Err(e) if e.raw_errno() == Some(libc::ENOTSUP) => {}
            emptied => emptied.map_err(|e| e.context(format!("Could not empty {}", top.name())))?,
        }
    }
    top.close()
}

/// Copies what `top` itself has, and nothing below it, into `base`, and brings it to disk. `top` may have
/// been detached from `base` ([`Node::detach`]); both stay open and have the same bytes afterwards.
///
/// # Errors
/// When `base` cannot be written. What was copied before stays in it; `top` is unchanged.
pub fn copy_down(top: &Node, base: &Node, watcher: &dyn crate::format::Watcher) -> Result<()> {
    let policy = crate::graph::open::Policy::folder();
    let secrets = crate::opts::secret::Secrets::default();
    let job = Job { policy: &policy, watcher, secrets: &secrets };
    let (size, old) = (top.virtual_size(), base.virtual_size());
    if size > old {
        base.resize(size, Preallocation::Off)
            .map_err(|e| e.context(format!("Could not resize '{}'", base.name())))?;
        hide_backing(base, old, size)?;
    }
    move_down(top, base, 1, &CommitOptions::default(), &job)?;
    base.flush()
}

/// Number of links from the top to the image that the user calls `base`.
fn find_base(options: &CommitOptions, base: &str, job: &Job<'_>) -> Result<usize> {
    let mut how = options.image.options(job);
    how.sharing = Sharing::Force;
    let top = options.image.open(job, &how)?;
    let real = Path::new(base).canonicalize().ok();
    let same = |node: &Node| {
        node.name() == base
            || (real.is_some() && Path::new(node.name()).canonicalize().ok() == real)
    };
    top.chain().iter().skip(1).position(|n| same(n)).map(|i| i + 1).ok_or_else(|| {
        Error::invalid(format!("Did not find '{base}' in the backing chain of '{}'", top.name()))
    })
}

fn move_down(
    top: &Node,
    base: &Node,
    link: usize,
    options: &CommitOptions,
    job: &Job<'_>,
) -> Result<()> {
    let walk = Walk::first(top, link);
    let size = top.virtual_size();
    let rate = Rate::new(options.rate);
    let mut buf = vec![0u8; PIECE];
    let mut at = 0;
    while at < size {
        check_cancelled(job.watcher)?;
        let run = walk.run(at, size - at)?;
        if base_sees_the_same(&run, link) {
            // What the base has already.
        } else if run.is_zero() {
            base.write_zeroes(at, run.len, ZeroSpace::Unmap)
                .map_err(|e| e.context(format!("error while writing at byte {at}")))?;
        } else {
            let mut done = 0;
            while done < run.len {
                check_cancelled(job.watcher)?;
                let here = at + done;
                let part = &mut buf[..small(run.len - done).min(PIECE)];
                walk.read(&run, at, here, part)
                    .map_err(|e| e.context(format!("error while reading at byte {here}")))?;
                rate.pass(len_u64(part.len()), &|| job.watcher.cancelled());
                base.write(here, part)
                    .map_err(|e| e.context(format!("error while writing at byte {here}")))?;
                done += len_u64(part.len());
                job.watcher.progress(at + done, size);
            }
        }
        at += run.len;
        job.watcher.progress(at, size);
    }
    Ok(())
}

/// Nothing above the base has the run. Where an image between them is short, its end hides the base
/// and counts as zeroes.
fn base_sees_the_same(run: &Run, link: usize) -> bool {
    run.origin == Origin::Below || (run.is_zero() && !run.allocated && run.link + 1 == link)
}
