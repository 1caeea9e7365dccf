//! Opening what is not in a file of this host.

use std::io::Read;
use std::sync::Arc;

use super::open_request::OpenRequest;
use super::output::{Durability, Overwrite};
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
        Remote::Nbd(target) => Ok(Arc::new(NbdStorage::open(target, options, secrets)?)),
        Remote::Http(_) if options.writable => {
            Err(Error::new(ErrorKind::ReadOnly, "curl driver does not support writes")
                .hint("files on web servers can only be read; convert them to a file"))
        }
        Remote::Http(target) => Ok(Arc::new(HttpStorage::open(target, secrets)?)),
        #[cfg(feature = "ssh")]
        Remote::Ssh(target) => Ok(Arc::new(crate::storage::SshStorage::open(target, options)?)),
        #[cfg(not(feature = "ssh"))]
        Remote::Ssh(_) => Err(Error::unsupported("this program was built without ssh")
            .hint("build it with: cargo build --release -p rimg --features ssh")),
        #[cfg(feature = "rbd")]
        Remote::Rbd(target) => Ok(Arc::new(crate::storage::RbdStorage::open(target, options)?)),
        #[cfg(not(feature = "rbd"))]
        Remote::Rbd(_) => Err(Error::unsupported("this program was built without rbd")
            .hint("build it with: cargo build --release -p rimg --features rbd")),
        Remote::Fat(target) => Ok(Arc::new(FatStorage::open(target, options)?)),
        Remote::Null(target) => Ok(Arc::new(NullStorage::new(target, options))),
    }
}

/// A new file elsewhere, under a temporary name until it is whole.
pub(super) trait Making: std::fmt::Debug + Send + Sync {
    /// Gives it its name.
    ///
    /// # Errors
    /// When the other side refuses.
    fn publish(&self, durability: Durability) -> Result<()>;

    /// Removes it.
    fn withdraw(&self);
}

#[cfg(feature = "ssh")]
impl Making for crate::storage::SshStorage {
    fn publish(&self, durability: Durability) -> Result<()> {
        use crate::storage::ssh::OnDisk;
        self.publish(match durability {
            Durability::Synced => OnDisk::Yes,
            Durability::Fast => OnDisk::Later,
        })
    }

    fn withdraw(&self) {
        self.withdraw();
    }
}

#[cfg(feature = "rbd")]
impl Making for crate::storage::RbdStorage {
    fn publish(&self, _durability: Durability) -> Result<()> {
        self.publish()
    }

    fn withdraw(&self) {
        self.withdraw();
    }
}

/// A file that is being made elsewhere: its bytes, and its name.
pub(super) type Made = (Arc<dyn Storage>, Arc<dyn Making>);

/// Whether files can be made there.
pub(super) fn can_create(remote: &Remote) -> bool {
    (cfg!(feature = "ssh") && matches!(remote, Remote::Ssh(_)))
        || (cfg!(feature = "rbd") && matches!(remote, Remote::Rbd(_)))
}

/// Makes a file there.
///
/// # Errors
/// When that is not possible, or it must not replace what is there.
#[cfg_attr(not(feature = "ssh"), allow(unused_variables))]
pub(super) fn create(remote: &Remote, options: FileOptions, overwrite: Overwrite) -> Result<Made> {
    match remote {
        #[cfg(feature = "ssh")]
        Remote::Ssh(target) => {
            use crate::storage::ssh::{Existing, SshStorage};
            let existing = match overwrite {
                Overwrite::Allow => Existing::Replaced,
                Overwrite::Refuse => Existing::Kept,
            };
            let made = Arc::new(SshStorage::create(target, options, existing)?);
            Ok((Arc::clone(&made) as _, made))
        }
        #[cfg(feature = "rbd")]
        Remote::Rbd(target) => {
            let made = Arc::new(crate::storage::RbdStorage::create(target, options)?);
            Ok((Arc::clone(&made) as _, made))
        }
        other => Err(Error::unsupported(format!(
            "Protocol '{}' does not support image creation",
            other.driver()
        ))),
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
