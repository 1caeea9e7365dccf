//! The opened disk.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::crypto::SecretBytes;
use crate::format::crypt::Luks1;
use crate::format::crypt::amend::Change;
use crate::format::crypt::luks1::Payload;
use crate::format::crypt::luks2::Luks2;
use crate::format::info::{LuksInfo, SpecificInfo};
use crate::format::{
    Access, Amendment, Extent, Granularity, Image, ImageInfo, Mapping, OpenContext, Resize,
    StorageId, Watcher,
};
use crate::num::{GuestOffset, HostOffset, checked_round_up, round_up};
use crate::storage::{CryptStorage, Preallocation, Storage, ZeroMode};
use crate::{Error, Result};

/// Id of the plaintext.
const PLAIN: StorageId = StorageId(1);

/// A header of either version.
#[derive(Debug)]
enum Header {
    One(Box<Luks1>),
    Two(Box<Luks2>),
}

/// An opened LUKS disk.
#[derive(Debug)]
pub struct LuksImage {
    file: Arc<dyn Storage>,
    /// A detached header's file.
    header_file: Option<Arc<dyn Storage>>,
    header: Mutex<Header>,
    /// `None` where only the header was to be looked at.
    opened: Option<Opened>,
    /// Where the encrypted disk begins in `file`.
    start: u64,
    size: AtomicU64,
    access: Access,
}

/// What the passphrase opened.
struct Opened {
    plain: Arc<dyn Storage>,
    master: SecretBytes,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Opened")
    }
}

/// No secret was named.
pub(super) fn no_key(prefix: &str) -> Error {
    Error::invalid(format!("Parameter '{prefix}key-secret' is required for cipher"))
}

impl LuksImage {
    /// See [`crate::format::Driver::open`].
    pub(super) fn open(cx: &OpenContext<'_>) -> Result<Self> {
        let name = cx.storage.name().to_owned();
        Self::open_named(cx).map_err(|e| e.at_path(name))
    }

    fn open_named(cx: &OpenContext<'_>) -> Result<Self> {
        let mut key = None;
        for (option, value) in cx.options {
            match option.as_str() {
                "key-secret" => key = Some(value.as_str()),
                _ => return Err(crate::format::options::unknown("luks", option)),
            }
        }
        let file = Arc::clone(&cx.storage);
        let header_file = cx.gate.given("header");
        let holder = header_file.as_ref().unwrap_or(&file);
        let payload = if header_file.is_some() { Payload::Detached } else { Payload::Behind };
        let mut head = [0u8; 8];
        holder.read_at(0, &mut head)?;
        let header = match Luks1::version(&head) {
            Some(2) => Header::Two(Box::new(Luks2::read(&**holder, payload)?)),
            _ => Header::One(Box::new(Luks1::read(&**holder, payload)?)),
        };
        if cx.access == Access::Write && matches!(header, Header::Two(_)) {
            return Err(crate::format::never_written());
        }
        let start = match (&header, payload) {
            (_, Payload::Detached) => 0,
            (Header::One(h), _) => h.payload_offset(),
            (Header::Two(h), _) => h.payload_offset(),
        };
        let len = round_up(file.len()?, 512);
        let rest = len.checked_sub(start).ok_or_else(|| {
            Error::corrupt(format!(
                "the encrypted disk begins at {start}, beyond the end of the file ({len} bytes)"
            ))
            .at_offset(104)
            .hint("the file is not complete; copy it again")
        });
        let rest = if cx.header_only { rest.unwrap_or(0) } else { rest? };
        let size = match &header {
            Header::One(_) => rest,
            Header::Two(h) => h.size(rest)?,
        };
        let opened = if cx.header_only {
            None
        } else {
            let passphrase = cx.gate.passphrase(key)?.ok_or_else(|| no_key(""))?;
            let (plain, master) = unlock(&header, &file, &**holder, (start, &passphrase))?;
            Some(Opened { plain, master })
        };
        Ok(LuksImage {
            file,
            header_file,
            header: Mutex::new(header),
            opened,
            start,
            size: AtomicU64::new(size),
            access: cx.access,
        })
    }

    fn header(&self) -> MutexGuard<'_, Header> {
        self.header.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn opened(&self) -> Result<&Opened> {
        self.opened.as_ref().ok_or_else(|| no_key("").at_path(self.file.name()))
    }

    fn payload(&self) -> Payload {
        if self.header_file.is_some() { Payload::Detached } else { Payload::Behind }
    }

    fn details(&self) -> LuksInfo {
        match &*self.header() {
            Header::One(h) => h.info(self.payload()),
            Header::Two(h) => h.info(self.payload()),
        }
    }
}

/// The plaintext and the master key, with a passphrase.
fn unlock(
    header: &Header,
    file: &Arc<dyn Storage>,
    holder: &dyn Storage,
    (start, passphrase): (u64, &[u8]),
) -> Result<(Arc<dyn Storage>, SecretBytes)> {
    let (cipher, master, first) = match header {
        Header::One(h) => {
            let (master, _) = h.unlock(holder, passphrase)?;
            (h.disk_cipher(&master)?, master, 0)
        }
        Header::Two(h) => {
            let master = h.unlock(holder, passphrase)?;
            (h.disk_cipher(&master)?, master, h.first_sector())
        }
    };
    let plain = CryptStorage::new(Arc::clone(file), cipher, start, first);
    Ok((Arc::new(plain), master))
}

impl Image for LuksImage {
    fn format_name(&self) -> &'static str {
        "luks"
    }

    fn virtual_size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn granularity(&self) -> Granularity {
        // A sector is encrypted as a whole; zeroes and free space cannot be told from data.
        Granularity { allocation: 512, zero: None, discard: None, encode: None, append_only: false }
    }

    fn storage(&self, id: StorageId) -> &Arc<dyn Storage> {
        match (&self.opened, id) {
            (Some(opened), PLAIN) => &opened.plain,
            _ => &self.file,
        }
    }

    fn storages(&self) -> Vec<&Arc<dyn Storage>> {
        std::iter::once(&self.file).chain(&self.header_file).collect()
    }

    fn map(&self, at: GuestOffset, len: u64) -> Result<Extent> {
        self.opened()?;
        Ok(Extent {
            len,
            mapping: Mapping::Data {
                storage: PLAIN,
                offset: HostOffset(at.0),
                in_place: self.access == Access::Write,
                probe_holes: false,
            },
        })
    }

    fn flush(&self) -> Result<()> {
        self.file.flush()
    }

    fn resize(&self, request: Resize) -> Result<()> {
        let Resize { size, how, .. } = request;
        let opened = self.opened()?;
        let shown = checked_round_up(size, 512).ok_or_else(|| Error::errno(libc::EFBIG))?;
        let len = self
            .start
            .checked_add(shown)
            .filter(|&n| i64::try_from(n).is_ok())
            .ok_or_else(|| Error::errno(libc::EFBIG))?;
        if how == Preallocation::Metadata {
            return Err(Error::unsupported("Unsupported preallocation mode: metadata"));
        }
        if self.file.limits().block_device && len != self.file.len()? {
            return Err(Error::invalid("Cannot resize device files"));
        }
        let old = self.virtual_size();
        self.file.set_len(len, how)?;
        if shown > old {
            let filled = opened.plain.write_zeroes(old, shown - old, ZeroMode::KeepAllocated);
            if let Err(e) = filled {
                // The disk stays as it was; the error that counts is the first one.
                let _ = self.file.set_len(self.start + old, Preallocation::Off);
                return Err(e);
            }
            self.file.flush()?;
        }
        self.size.store(shown, Ordering::Release);
        Ok(())
    }

    fn amend(&self, request: &Amendment<'_>, _watcher: &dyn Watcher) -> Result<()> {
        let opened = self.opened()?;
        let Header::One(header) = &mut *self.header() else {
            return Err(Error::unsupported("key slots of LUKS2 are not changed")
                .hint("use cryptsetup luksAddKey and luksRemoveKey"));
        };
        let change = Change {
            options: request.options,
            prefix: "",
            force: request.force,
            secret: request.secret,
            master: &opened.master,
        };
        let holder = self.header_file.as_ref().unwrap_or(&self.file);
        change.apply(header, &**holder)
    }

    fn info(&self) -> Result<ImageInfo> {
        Ok(ImageInfo {
            encrypted: true,
            dirty: Some(false),
            specific: Some(SpecificInfo::Luks(self.details())),
            ..ImageInfo::default()
        })
    }

    fn zero_init(&self) -> bool {
        false
    }

    fn encrypts(&self) -> bool {
        true
    }
}
