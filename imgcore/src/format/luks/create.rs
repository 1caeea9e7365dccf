//! Creating a LUKS1 disk.

use crate::crypto::SecretBytes;
use crate::format::crypt::Choices;
use crate::format::{CreateContext, CreateOptions, Measurement, OptionKind, OptionSpec};
use crate::num::checked_round_up;
use crate::storage::Preallocation;
use crate::{Error, Result};

const fn row(name: &'static str, kind: OptionKind, help: &'static str) -> OptionSpec {
    OptionSpec { name, kind, help, default: None }
}

/// Options in the order in which `create` prints them.
pub(super) const OPTIONS: &[OptionSpec] = &[
    row("size", OptionKind::Size, "Virtual disk size"),
    row("key-secret", OptionKind::Text, "ID of the secret that provides the keyslot passphrase"),
    row("cipher-alg", OptionKind::Text, "Name of encryption cipher algorithm"),
    row("cipher-mode", OptionKind::Text, "Name of encryption cipher mode"),
    row("ivgen-alg", OptionKind::Text, "Name of IV generator algorithm"),
    row("ivgen-hash-alg", OptionKind::Text, "Name of IV generator hash algorithm"),
    row("hash-alg", OptionKind::Text, "Name of encryption hash algorithm"),
    row("iter-time", OptionKind::Number, "Time to spend in PBKDF in milliseconds"),
    row("detached-header", OptionKind::Bool, "Create a detached LUKS header"),
];

/// The passphrase of the options; the error of a missing one is QEMU's.
fn passphrase(cx: &CreateContext<'_>) -> Result<SecretBytes> {
    let id = cx.options.text("key-secret");
    cx.files.passphrase(id)?.ok_or_else(|| super::image::no_key(""))
}

/// See [`crate::format::Driver::create`]. The file gets its whole length first; then key material and
/// header are written. With a detached header there is nothing but them.
pub(super) fn create(cx: &CreateContext<'_>) -> Result<()> {
    let how = crate::format::options::preallocation(
        cx.options,
        &[Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full],
    )?;
    let passphrase = passphrase(cx)?;
    let choices = Choices::parse(cx.options, "")?;
    let detached = cx.options.flag("detached-header").unwrap_or(false);
    let size = checked_round_up(cx.size, 512).ok_or_else(|| Error::errno(libc::EFBIG))?;
    let area = choices.area_len();
    let total = area
        .checked_add(size)
        .filter(|&n| i64::try_from(n).is_ok())
        .ok_or_else(|| Error::errno(libc::EFBIG))?;
    let file = cx.files.main()?;
    let (payload, len) = if detached { (0, area) } else { (area, total) };
    if file.limits().block_device {
        let have = file.len()?;
        if have < len {
            return Err(Error::errno(libc::ENOSPC)
                .context(format!("the device has {have} bytes, the image needs {len}")));
        }
    } else {
        let how = if detached { Preallocation::Off } else { how };
        file.set_len(len, how)?;
    }
    choices.make(&*file, &passphrase, payload).map(drop)
}

/// Header and disk; QEMU asks for the secret here too, this does not.
pub(super) fn measure(options: &CreateOptions, size: u64) -> Result<Measurement> {
    let area = Choices::parse(options, "")?.area_len();
    let total = area.checked_add(size).ok_or_else(|| Error::errno(libc::EFBIG))?;
    Ok(Measurement { required: total, fully_allocated: total, bitmaps: None })
}
