//! Swap areas. The signature is that of linux/swap.h (`union swap_header`): from byte 1024 the version, the
//! last page and the number of bad pages, then a UUID, and `SWAPSPACE2` in the last ten bytes of the page.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::effects::Effects;
use super::files;
use crate::error::{Error, Result};
use crate::hex;

const PAGE: usize = 4096;
/// `FS_IOC_GETFLAGS`, `FS_IOC_SETFLAGS`, `FS_NOCOW_FL` (linux/fs.h).
const GETFLAGS: libc::c_ulong = 0x8008_6601;
const SETFLAGS: libc::c_ulong = 0x4008_6602;
const NOCOW: libc::c_long = 0x0080_0000;

/// The first page of a swap area of so many bytes.
fn header(size: u64) -> Option<Vec<u8>> {
    let pages = size / PAGE as u64;
    // The kernel wants ten pages at least, and counts them in 32 bits.
    let last = u32::try_from(pages.checked_sub(1)?).ok().filter(|last| *last >= 9)?;
    let mut page = vec![0; PAGE];
    page[1024..1028].copy_from_slice(&1_u32.to_ne_bytes());
    page[1028..1032].copy_from_slice(&last.to_ne_bytes());
    // A UUID of version 4 from the kernel's generator; zeros would do, but tools show them.
    if let Ok(text) = std::fs::read_to_string("/proc/sys/kernel/random/uuid")
        && let Some(uuid) = hex::from_hex(&text.trim().replace('-', ""))
        && uuid.len() == 16
    {
        page[1036..1052].copy_from_slice(&uuid);
    }
    page[PAGE - 10..].copy_from_slice(b"SWAPSPACE2");
    Some(page)
}

/// First page of a partition, in hexadecimal.
pub fn first_page(root: &Path, path: &str) -> Result<String> {
    let place = files::place(root, path)?;
    let mut page = vec![0; PAGE];
    File::open(&place)
        .and_then(|file| file.read_exact_at(&mut page, 0))
        .map_err(|error| Error::io("the partition cannot be read", &place, error))?;
    Ok(hex::to_hex(&page))
}

/// Writes it back.
pub fn put_first_page(root: &Path, path: &str, page: &str) -> Result<()> {
    let place = files::place(root, path)?;
    let Some(bytes) = hex::from_hex(page).filter(|bytes| bytes.len() == PAGE) else {
        return Err(
            Error::new(crate::error::ErrorKind::Damaged, "the journal's copy is damaged").at(place)
        );
    };
    File::options()
        .write(true)
        .open(&place)
        .and_then(|file| {
            file.write_all_at(&bytes, 0)?;
            file.sync_data()
        })
        .map_err(|error| Error::io("the partition cannot be restored", &place, error))
}

/// A swap file must not be copied on write: on btrfs the flag must be set while it is empty.
fn no_copy_on_write(file: &File) {
    let mut flags: libc::c_long = 0;
    // SAFETY: the kernel writes one number to `flags`, which lives through the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), GETFLAGS, &raw mut flags) } == 0 && flags & NOCOW == 0
    {
        flags |= NOCOW;
        // SAFETY: the kernel reads one number. File systems without the flag refuse, and need none.
        unsafe { libc::ioctl(file.as_raw_fd(), SETFLAGS, &raw const flags) };
    }
}

/// Makes the file (`size` > 0) or marks the partition.
pub fn make(effects: &mut dyn Effects, path: &str, size: u64) -> Result<()> {
    let place = files::place(effects.root(), path)?;
    let fail = |error| {
        Error::io("swap area cannot be made", &place, error)
        .remedy("check that the file system has room and allows swap files (XFS and ext4 do, btrfs without compression, not NFS)")
    };
    effects.checkpoint("make swap");
    let (file, size) = if size > 0 {
        let size = size / PAGE as u64 * PAGE as u64;
        let made = File::options().write(true).create_new(true).mode(0o600).open(&place);
        let file = made.map_err(fail)?;
        no_copy_on_write(&file);
        let length = i64::try_from(size).map_err(|_| Error::usage("swap size out of range"))?;
        effects.checkpoint("allocate swap");
        // Holes are forbidden in swap files; unwritten extents are fine for swapon since Linux 4.18 (XFS too).
        // SAFETY: a system call on our own descriptor with plain numbers.
        if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) } != 0 {
            let error = std::io::Error::last_os_error();
            if !matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) {
                return Err(fail(error));
            }
            fill(&file, size).map_err(fail)?;
        }
        (file, size)
    } else {
        let file = File::options().write(true).open(&place).map_err(fail)?;
        let size = std::io::Seek::seek(&mut &file, std::io::SeekFrom::End(0)).map_err(fail)?;
        (file, size)
    };
    let page = header(size).ok_or_else(|| {
        Error::usage("a swap area has 40 KiB at least and 16 TiB at most").at(&place)
    })?;
    effects.checkpoint("sign swap");
    file.write_all_at(&page, 0).and_then(|()| file.sync_all()).map_err(fail)
}

fn fill(file: &File, size: u64) -> std::io::Result<()> {
    let zeros = vec![0; 1 << 20];
    let mut at = 0;
    while at < size {
        let part = usize::try_from(size - at).unwrap_or(usize::MAX).min(zeros.len());
        file.write_all_at(&zeros[..part], at)?;
        at += part as u64;
    }
    Ok(())
}
