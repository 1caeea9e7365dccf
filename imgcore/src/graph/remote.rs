//! Opening what is not in a file of this host.

use std::sync::Arc;

use crate::Result;
use crate::opts::remote::Remote;
use crate::opts::secret::Secrets;
use crate::storage::{FileOptions, HttpStorage, NbdStorage, Storage};
use crate::{Error, ErrorKind};

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
    }
}
