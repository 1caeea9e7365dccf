//! Whole jobs over images, one file each.
//!
//! Every job takes a plain struct of options and a [`Job`] (the open policy, and the caller's watcher
//! for progress, notes and cancelling) and returns a plain struct. Nothing is printed here; `note`
//! carries warnings that qemu-img writes to stderr.

pub mod amend;
pub mod bench;
pub mod bitmap;
pub mod chain;
pub mod check;
pub mod commit;
pub mod compare;
pub mod convert;
pub mod create;
pub mod creation;
pub mod dd;
pub mod diff;
pub mod digest;
pub mod import;
pub mod info;
pub mod inspect;
pub mod map;
pub mod measure;
mod pairs;
pub mod parallel;
pub mod policy;
pub mod rate;
pub mod rebase;
pub mod resize;
pub mod selector;
pub mod serve;
pub mod snapshot;
pub mod source;
pub mod sparsify;
pub mod stream;

use std::sync::Arc;

use crate::Result;
use crate::format::{Access, Watcher};
use crate::graph::Node;
use crate::graph::open::{OpenOptions, OpenRequest, Policy, Sharing, open};
use crate::opts::secret::Secrets;
use crate::storage::CacheMode;

/// What every job gets besides its options.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// Which names inside images are followed.
    pub policy: &'a Policy,
    /// Progress, notes, cancelling.
    pub watcher: &'a dyn Watcher,
    /// Passphrases for encrypted images.
    pub secrets: &'a Secrets,
}

/// An image that the command line names.
#[derive(Clone, Debug, Default)]
pub struct ImageArg {
    /// Which one.
    pub request: OpenRequest,
    /// `-t`/`-T`.
    pub cache: CacheMode,
    /// `-U`.
    pub sharing: Sharing,
}

impl ImageArg {
    /// A file by its name, everything else by default.
    pub fn file(name: impl Into<String>) -> Self {
        ImageArg { request: OpenRequest::file(name), ..ImageArg::default() }
    }

    /// Options to open it for reading.
    pub fn options(&self, job: &Job<'_>) -> OpenOptions {
        OpenOptions {
            cache: self.cache,
            sharing: self.sharing,
            policy: job.policy.clone(),
            secrets: job.secrets.clone(),
            ..OpenOptions::default()
        }
    }

    /// Opens it. Writing to a file that was only guessed to be raw is worth a warning.
    fn open(&self, job: &Job<'_>, options: &OpenOptions) -> Result<Arc<Node>> {
        let guessed = options.access == Access::Write && self.request.driver.is_none();
        let node = open(&self.request, options)?;
        if guessed && node.image().format_name() == "raw" {
            job.watcher.note(&format!(
                "WARNING: Image format was not specified for '{}' and probing guessed raw.\n         \
                 Automatically detecting the format is dangerous for raw images, write operations \
                 on block 0 will be restricted.\n         \
                 Specify the 'raw' format explicitly to remove the restrictions.",
                node.name()
            ));
        }
        Ok(node)
    }
}
