//! Creating images.

use zerocopy::{FromZeros, IntoBytes};

use super::header::check_size;
use super::layout::{self, Header};
use crate::format::{
    CreateContext, CreateOptions, MeasureSource, Measurement, OptionKind, OptionSpec,
};
use crate::num::{checked_round_up, len_u64, round_down, round_up};
use crate::storage::Preallocation;
use crate::{Error, Result};

const fn row(name: &'static str, kind: OptionKind, help: &'static str) -> OptionSpec {
    OptionSpec { name, kind, help, default: None }
}

/// Options in the order in which `create` prints them.
pub(super) const OPTIONS: &[OptionSpec] = &[
    row("size", OptionKind::Size, "Virtual disk size"),
    row("backing_file", OptionKind::Text, "File name of a base image"),
    row("backing_fmt", OptionKind::Text, "Format of the backing image"),
    row(
        "encryption",
        OptionKind::Bool,
        "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
    ),
    row("encrypt.format", OptionKind::Text, "Encrypt the image, format choices: 'aes'"),
    row(
        "encrypt.key-secret",
        OptionKind::Text,
        "ID of the secret that provides the AES encryption key",
    ),
];

/// Size and shape of a new image.
#[derive(Clone, Copy, Debug)]
struct Plan {
    size: u64,
    cluster_bits: u8,
    l2_bits: u8,
    encrypted: bool,
}

impl Plan {
    fn new(options: &CreateOptions, size: u64, has_backing: bool) -> Result<Self> {
        let size = checked_round_up(size, 512).ok_or_else(|| Error::errno(libc::EFBIG))?;
        if size == 0 {
            return Err(Error::invalid("Image size is too small, cannot be zero length"));
        }
        // With a file below, small clusters: little is copied for a small write.
        let (cluster_bits, l2_bits) = if has_backing { (9, 12) } else { (12, 9) };
        check_size(size, 1 << (cluster_bits + l2_bits)).map_err(|_| Error::errno(libc::EFBIG))?;
        Ok(Plan { size, cluster_bits, l2_bits, encrypted: encrypted(options)? })
    }

    fn l1_entries(&self) -> u64 {
        self.size.div_ceil(1 << (self.cluster_bits + self.l2_bits))
    }

    /// Bytes of a name in front of L1.
    fn l1_offset(name: &str) -> u64 {
        layout::HEADER + round_up(len_u64(name.len()), 8)
    }
}

/// Whether the options want encryption; refuses what they cannot mean, with QEMU's words.
pub(super) fn encrypted(options: &CreateOptions) -> Result<bool> {
    let old = options.flag("encryption");
    let format = options.text("encrypt.format");
    if old.is_some() && format.is_some() {
        return Err(Error::invalid(
            "'encrypt.format' and its alias 'encryption' can't be used at the same time",
        ));
    }
    match format {
        _ if old == Some(true) => Ok(true),
        None if old.is_none() && options.text("encrypt.key-secret").is_some() => {
            Err(Error::invalid("Parameter 'encrypt.format' is missing"))
        }
        None => Ok(false),
        Some("aes") => Ok(true),
        Some("luks") => Err(Error::unsupported("Unsupported encryption format")),
        Some(other) => {
            Err(Error::invalid(format!("Parameter 'format' does not accept value '{other}'")))
        }
    }
}

/// Creates an empty image.
pub(super) fn create(cx: &CreateContext<'_>) -> Result<()> {
    crate::format::options::preallocation(
        cx.options,
        &[Preallocation::Falloc, Preallocation::Full],
    )?;
    let plan = Plan::new(cx.options, cx.size, cx.backing.is_some())?;
    if plan.encrypted {
        // Asked for before anything is made; the image does not hold it.
        cx.files.passphrase(cx.options.text("encrypt.key-secret"))?.ok_or_else(|| {
            Error::invalid("Parameter 'encrypt.key-secret' is required for cipher")
        })?;
    }
    let name = cx.backing.as_ref().map_or("", |b| b.name.as_str());
    if len_u64(name.len()) > layout::MAX_NAME {
        return Err(Error::invalid("Backing file name too long"));
    }
    let l1 = Plan::l1_offset(name);
    let mut header = Header::new_zeroed();
    header.magic.set(layout::MAGIC);
    header.version.set(layout::VERSION);
    header.size.set(plan.size);
    header.cluster_bits = plan.cluster_bits;
    header.l2_bits = plan.l2_bits;
    header.crypt_method.set(if plan.encrypted { layout::CRYPT_AES } else { 0 });
    header.l1_offset.set(l1);
    if !name.is_empty() {
        header.backing_offset.set(layout::HEADER);
        header.backing_len.set(u32::try_from(name.len()).unwrap_or(0));
    }
    let storage = cx.files.main()?;
    storage.write_at(0, header.as_bytes())?;
    storage.write_at(layout::HEADER, name.as_bytes())?;
    storage.set_len(l1 + round_up(plan.l1_entries() * 8, 512), Preallocation::Off)
}

/// How large an image would be.
pub(super) fn measure(
    options: &CreateOptions,
    source: &mut MeasureSource<'_>,
) -> Result<Measurement> {
    let name = options.text("backing_file").unwrap_or_default();
    let plan = Plan::new(options, source.virtual_size, !name.is_empty())?;
    let cluster = 1u64 << plan.cluster_bits;
    let (span, table) = (cluster << plan.l2_bits, 8u64 << plan.l2_bits);
    let front = round_up(Plan::l1_offset(name) + plan.l1_entries() * 8, cluster);
    let all = plan.size.div_ceil(cluster) * cluster;
    let fully_allocated = front + all + plan.l1_entries() * table;
    let mut required = front;
    let (mut data_to, mut tables_to) = (0, 0);
    (source.data_runs)(&mut |start, len| {
        let count = |unit: u64, done: &mut u64| {
            let from = round_down(start, unit).max(*done);
            *done = round_up(start + len, unit).max(*done);
            done.saturating_sub(from) / unit
        };
        required += count(cluster, &mut data_to) * cluster;
        required += count(span, &mut tables_to) * table;
        Ok(())
    })?;
    Ok(Measurement { required, fully_allocated, bitmaps: None })
}
