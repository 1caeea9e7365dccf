//! Opening what is not in a file of this host.

use std::io::Read;
use std::sync::Arc;

use super::open_request::OpenRequest;
use crate::Result;
use crate::opts::filter::Filter;
use crate::opts::remote::Remote;
use crate::opts::secret::Secrets;
use crate::storage::fat::FatStorage;
use crate::storage::filter::{BlkDebugStorage, NullStorage, ThrottleStorage};
use crate::storage::{FileOptions, HttpStorage, NbdStorage, Storage};
use crate::{Error, ErrorKind};

/// Longest file of rules.
const MAX_CONFIG: u64 = 1 << 20;

/// Opens it.
///
/// # Errors
/// When it is not there, or cannot be used as `options` say.
pub(super) fn open(
    remote: &Remote,
    options: FileOptions,
    secrets: &Secrets,
) -> Result<Arc<dyn Storage>> {
    match remote {
        Remote::Nbd(target) => Ok(Arc::new(NbdStorage::open(target, options)?)),
        Remote::Http(_) if options.writable => {
            Err(Error::new(ErrorKind::ReadOnly, "curl driver does not support writes")
                .hint("files on web servers can only be read; convert them to a file"))
        }
        Remote::Http(target) => Ok(Arc::new(HttpStorage::open(target, secrets)?)),
        Remote::Fat(target) => Ok(Arc::new(FatStorage::open(target, options)?)),
        Remote::Null(target) => Ok(Arc::new(NullStorage::new(target, options))),
    }
}

/// Puts the filters of a request over what it names.
///
/// # Errors
/// When a group of limits is not defined, or a file of rules cannot be read.
pub(super) fn filtered(
    bottom: Arc<dyn Storage>,
    request: &OpenRequest,
    secrets: &Secrets,
) -> Result<Arc<dyn Storage>> {
    let mut all = bottom;
    for (n, filter) in request.filters.iter().enumerate().rev() {
        // Each one's name is that of what lies from it on downwards.
        let part = OpenRequest { filters: request.filters[n..].to_vec(), ..request.clone() };
        let name = part.bottom().name();
        all = match filter {
            Filter::Throttle { group } => {
                Arc::new(ThrottleStorage::new(all, secrets.group(group)?, name))
            }
            Filter::BlkDebug(rules) => {
                let mut rules = rules.clone();
                if let Some(config) = &rules.config {
                    let text = read_config(config)?;
                    rules.add_config(&text)?;
                }
                Arc::new(BlkDebugStorage::new(all, rules, name))
            }
        };
    }
    Ok(all)
}

fn read_config(path: &str) -> Result<String> {
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|f| f.take(MAX_CONFIG).read_to_string(&mut text));
    read.map_err(|e| Error::io(&e).context("Could not read blkdebug config file").at_path(path))?;
    Ok(text)
}
