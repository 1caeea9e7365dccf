//! Encryption of guest data ("crypt_method" of the header, "Full disk encryption header pointer",
//! "Data encryption").
//!
//! * LUKS: a LUKS1 header in clusters of its own; sectors are numbered by their place in the file that
//!   holds them (image or data file), so guest data go through one [`CryptStorage`] over that file, and
//!   nothing else of the format has to know.
//! * AES (legacy): by the guest's sectors, see [`legacy`].
//!
//! Encryption happens before the data reach the file, so the order of writes is that of every other
//! image. Compressed clusters are never encrypted, and none are written to an encrypted image.

use std::sync::{Arc, Mutex, PoisonError};

use super::header::Header;
use super::layout::ext;
use crate::crypto::SecretBytes;
use crate::format::crypt::amend::Change;
use crate::format::crypt::legacy::{self, GuestKeyed};
use crate::format::crypt::luks1::Payload;
use crate::format::crypt::{Choices, Luks1};
use crate::format::{Amendment, CreateContext, CreateOptions, OpenContext, StorageId};
use crate::storage::{CryptStorage, SliceStorage, Storage, ZeroMode};
use crate::{Error, Result};

/// Id of the plaintext of data clusters (LUKS), and of granted places (AES).
pub const PLAIN: StorageId = StorageId(2);

const AES: u32 = 1;
const LUKS: u32 = 2;

/// How guest data are encrypted.
pub(super) enum Crypt {
    /// By their place in the file.
    Luks {
        plain: Arc<dyn Storage>,
        header: Mutex<Box<Luks1>>,
        /// The part of the file that the header and its key material lie in.
        area: SliceStorage,
        master: SecretBytes,
    },
    /// By their place on the guest's disk.
    Aes { grants: Arc<GuestKeyed>, storage: Arc<dyn Storage> },
}

impl std::fmt::Debug for Crypt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Crypt::Luks { .. } => "Luks",
            Crypt::Aes { .. } => "Aes",
        })
    }
}

/// What the options at opening say.
#[derive(Default)]
pub(super) struct KeyOptions {
    pub format: Option<String>,
    pub key_secret: Option<String>,
}

fn no_key() -> Error {
    Error::invalid("Parameter 'encrypt.key-secret' is required for cipher")
}

/// Checks the format that the user expects against the one of the header.
pub(super) fn check_format(header: &Header, wanted: Option<&str>) -> Result<()> {
    let Some(wanted) = wanted else { return Ok(()) };
    let found = match header.crypt_method {
        0 => {
            return Err(Error::invalid(format!(
                "No encryption in image header, but options specified format '{wanted}'"
            )));
        }
        AES => "aes",
        _ => "luks",
    };
    if found == wanted {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "Header reported '{found}' encryption format but options specify '{wanted}'"
    )))
}

/// Where the LUKS header is: offset and length, checked.
fn area_of(header: &Header, file: &Arc<dyn Storage>) -> Result<SliceStorage> {
    let data = header.extension(ext::CRYPTO).unwrap_or_default();
    let word = |at: usize| data[at..at + 8].iter().fold(0u64, |v, &b| v << 8 | u64::from(b));
    if data.len() != 16 {
        return Err(Error::corrupt(format!(
            "CRYPTO header extension size {}, but expected size 16",
            data.len()
        )));
    }
    let (offset, len) = (word(0), word(8));
    if !offset.is_multiple_of(header.cluster_size()) {
        return Err(Error::corrupt(format!(
            "Encryption header offset '{offset}' is not a multiple of cluster size '{}'",
            header.cluster_size()
        ))
        .at_offset(offset));
    }
    if offset.checked_add(len).is_none_or(|end| end > i64::MAX.unsigned_abs())
        || offset >= file.len()?
    {
        return Err(Error::corrupt(format!(
            "the encryption header at {offset:#x} lies beyond the end of the image file"
        ))
        .at_offset(offset));
    }
    SliceStorage::new(Arc::clone(file), offset, len)
}

/// What `info` shows under `encrypt`.
pub(super) fn details(
    header: &Header,
    file: &Arc<dyn Storage>,
) -> Result<Option<serde_json::Value>> {
    let (mut value, format) = match header.crypt_method {
        0 => return Ok(None),
        AES => (serde_json::json!({}), "aes"),
        _ => {
            let area = area_of(header, file)?;
            let luks = Luks1::read(&area, Payload::Behind)?;
            let value = serde_json::to_value(luks.info(Payload::Behind))
                .map_err(|e| Error::invalid(e.to_string()))?;
            (value, "luks")
        }
    };
    value["format"] = format.into();
    Ok(Some(value))
}

/// Makes an encrypted image's data readable.
pub(super) fn unlock(
    header: &Header,
    file: &Arc<dyn Storage>,
    data: &Arc<dyn Storage>,
    (cx, key): (&OpenContext<'_>, &KeyOptions),
) -> Result<Option<Crypt>> {
    if header.crypt_method == 0 {
        return Ok(None);
    }
    let passphrase = || cx.gate.passphrase(key.key_secret.as_deref())?.ok_or_else(no_key);
    if header.crypt_method == AES {
        let cipher = legacy::cipher(&passphrase()?)?;
        let grants = Arc::new(GuestKeyed::new(Arc::clone(data), cipher));
        let storage = Arc::clone(&grants) as Arc<dyn Storage>;
        return Ok(Some(Crypt::Aes { grants, storage }));
    }
    let area = area_of(header, file)?;
    let luks = Luks1::read(&area, Payload::Behind)?;
    let (master, _) = luks.unlock(&area, &passphrase()?)?;
    let plain = CryptStorage::new(Arc::clone(data), luks.disk_cipher(&master)?, 0, 0);
    Ok(Some(Crypt::Luks {
        plain: Arc::new(plain),
        header: Mutex::new(Box::new(luks)),
        area,
        master,
    }))
}

impl Crypt {
    /// Where plaintext is read and written.
    pub fn plain(&self) -> &Arc<dyn Storage> {
        match self {
            Crypt::Luks { plain, .. } => plain,
            Crypt::Aes { storage, .. } => storage,
        }
    }

    /// The legacy cipher, by guest sectors.
    pub fn guest_keyed(&self) -> Option<&GuestKeyed> {
        match self {
            Crypt::Luks { .. } => None,
            Crypt::Aes { grants, .. } => Some(grants),
        }
    }

    /// Changes key slots.
    pub fn amend(&self, request: &Amendment<'_>) -> Result<()> {
        let Crypt::Luks { header, area, master, .. } = self else {
            return Err(Error::unsupported("Only LUKS encryption options can be amended"));
        };
        let mut header = header.lock().unwrap_or_else(PoisonError::into_inner);
        let change = Change {
            options: request.options,
            prefix: "encrypt.",
            force: request.force,
            secret: request.secret,
            master,
        };
        change.apply(&mut header, area)
    }
}

/// Encryption of a new image.
#[derive(Clone, Debug)]
pub(super) enum NewCrypt {
    Aes,
    Luks(Choices),
}

const FORMAT: &str = "encrypt.format";

impl NewCrypt {
    /// From options, with QEMU's words.
    pub fn parse(options: &CreateOptions) -> Result<Option<Self>> {
        let old = options.flag("encryption");
        let format = options.text(FORMAT);
        if old.is_some() && format.is_some() {
            return Err(Error::invalid(
                "'encrypt.format' and its alias 'encryption' can't be used at the same time",
            ));
        }
        let format = if old == Some(true) { Some("aes") } else { format };
        let others = |allowed: &[&str]| {
            options.names().find(|n| n.starts_with("encrypt.") && !allowed.contains(n))
        };
        match format {
            None => match others(&[]) {
                Some(_) if old.is_none() => {
                    Err(Error::invalid("Parameter 'encrypt.format' is missing"))
                }
                _ => Ok(None),
            },
            Some("aes") => match others(&[FORMAT, "encrypt.key-secret"]) {
                Some(name) => Err(Error::invalid(format!("Parameter '{name}' is unexpected"))),
                None => Ok(Some(NewCrypt::Aes)),
            },
            Some("luks") => Choices::parse(options, "encrypt.").map(|c| Some(NewCrypt::Luks(c))),
            Some(other) => {
                Err(Error::invalid(format!("Parameter 'format' does not accept value '{other}'")))
            }
        }
    }

    /// For the header.
    pub fn method(&self) -> u32 {
        match self {
            NewCrypt::Aes => AES,
            NewCrypt::Luks(_) => LUKS,
        }
    }

    /// Bytes of the encryption header.
    pub fn area_len(&self) -> u64 {
        match self {
            NewCrypt::Aes => 0,
            NewCrypt::Luks(choices) => choices.area_len(),
        }
    }

    /// The passphrase; asked for before anything is made.
    pub fn passphrase(&self, cx: &CreateContext<'_>) -> Result<SecretBytes> {
        let id = cx.options.text("encrypt.key-secret");
        cx.files.passphrase(id)?.ok_or_else(no_key)
    }

    /// Writes the encryption header at `offset` and notes it in the image's.
    pub fn write(
        &self,
        header: &mut Header,
        file: &Arc<dyn Storage>,
        (offset, passphrase): (u64, &[u8]),
    ) -> Result<()> {
        let NewCrypt::Luks(choices) = self else { return Ok(()) };
        let len = choices.area_len();
        if !file.zero_init() {
            file.write_zeroes(offset, len, ZeroMode::MayUnmap)?;
        }
        let area = SliceStorage::new(Arc::clone(file), offset, len)?;
        choices.make(&area, passphrase, len)?;
        let data = [offset.to_be_bytes(), len.to_be_bytes()].concat();
        header.set_extension(ext::CRYPTO, Some(data));
        Ok(())
    }
}

impl super::image::Qcow2Image {
    /// Reads guest bytes of one data cluster that is encrypted by guest sectors; the cluster's data begin
    /// at `host`.
    pub(super) fn read_guest_keyed(&self, host: u64, at: u64, buf: &mut [u8]) -> Result<()> {
        let Some(keyed) = self.crypt.as_ref().and_then(Crypt::guest_keyed) else {
            return Err(Error::errno(libc::EIO).at_offset(at));
        };
        keyed.read_guest(host + at % self.geometry.cluster(), at, buf)
    }
}
