//! Whether the target can fit, before its first byte.
//!
//! Only a job that must fail is refused. How much is needed at least is not known from the status of
//! the sources alone, since data may turn out to be zeroes; so the cheap bounds come first, and only
//! where they do not decide are the sources read.

use std::path::Path;
use std::sync::Arc;

use super::super::Job;
use super::feed::spans;
use super::options::{Compress, ConvertOptions, Offload, Target};
use crate::Result;
use crate::format::check_cancelled;
use crate::graph::Node;
use crate::graph::output_space::{free_space, no_space};
use crate::num::small;
use crate::storage::zero::is_zero;

const BLOCK: usize = 64 << 10;

/// Refuses a conversion that must run out of space.
pub(super) fn check(
    options: &ConvertOptions,
    target: &str,
    folder: &Path,
    sources: &[Arc<Node>],
    job: &Job<'_>,
) -> Result<()> {
    let Target::New { filename, options: given, .. } = &options.target else { return Ok(()) };
    let packed = options.compress != Compress::No
        || given.iter().any(|(k, v)| k == "subformat" && v == "streamOptimized");
    let device = std::fs::metadata(filename).is_ok_and(|m| !m.is_file());
    let shared = options.offload == Offload::Share
        && sources.iter().any(|s| super::share::can_share(s, folder));
    if packed || device || shared {
        return Ok(());
    }
    let Some(free) = free_space(folder) else { return Ok(()) };
    let first_only = options.backing.is_some();
    let spans = spans(sources, first_only)?;
    let total: u64 = spans.iter().map(|s| s.len).sum();
    if total <= free {
        return Ok(());
    }
    if options.sparse_size == 0 {
        return Err(no_space(target, folder, total, free));
    }
    // A target that is replaced gives nothing back before the end: it stays until the rename.
    let mut needed = 0u64;
    let mut runs = Vec::new();
    for span in &spans {
        let mut at = 0;
        while at < span.own_end {
            check_cancelled(job.watcher)?;
            let Ok(run) = span.walk.run(at, span.own_end - at) else { return Ok(()) };
            if !run.is_zero() && run.origin != super::super::source::Origin::Below {
                needed = needed.saturating_add(run.len);
                runs.push((span, at, run));
            }
            at += run.len;
        }
    }
    if needed <= free {
        return Ok(());
    }
    let mut surely = 0u64;
    let mut buf = vec![0u8; BLOCK];
    for (span, found, run) in runs {
        let mut done = 0;
        while done < run.len {
            check_cancelled(job.watcher)?;
            let n = small(run.len - done).min(BLOCK);
            // What cannot be read is not this check's to tell.
            if span.walk.read(&run, found, found + done, &mut buf[..n]).is_err() {
                return Ok(());
            }
            for block in buf[..n].chunks(4096) {
                if !is_zero(block) {
                    surely += crate::num::len_u64(block.len());
                }
            }
            if surely > free {
                return Err(no_space(target, folder, surely, free));
            }
            done += crate::num::len_u64(n);
        }
    }
    Ok(())
}
