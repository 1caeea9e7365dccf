//! Opening below a root folder: `openat2` with `RESOLVE_IN_ROOT`, so that `..` and symbolic links of a fake
//! tree, absolute ones too, stay inside it. For the real root a plain open does the same and works everywhere.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Opens for reading. Never blocks on a FIFO, never becomes a controlling terminal.
pub fn read(root: &Path, path: &str) -> Result<File> {
    open(root, path, libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY)
}

/// Opens as a mere place (`O_PATH`).
pub fn path(root: &Path, path: &str) -> Result<File> {
    open(root, path, libc::O_PATH)
}

/// Opens a folder for listing.
pub fn folder(root: &Path, path: &str) -> Result<std::fs::ReadDir> {
    let file = open(root, path, libc::O_RDONLY | libc::O_DIRECTORY)?;
    // The descriptor's own name leads to the folder that was resolved, whatever its path is.
    std::fs::read_dir(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Reads the symbolic link `name` in `folder` without following it.
pub fn read_link(folder: &File, name: &str) -> Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))
}

fn open(root: &Path, path: &str, flags: i32) -> Result<File> {
    if root == Path::new("/") {
        // With O_PATH the access mode is ignored by the kernel, so asking for reading does no harm.
        return std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path);
    }
    let base = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(root)?;
    let inner = Path::new(path.trim_start_matches('/'));
    let inner = if inner.as_os_str().is_empty() { Path::new(".") } else { inner };
    let name = CString::new(inner.as_os_str().as_bytes())?;
    // SAFETY: `open_how` is a plain struct of integers for which zero is the documented default.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = u64::from((flags | libc::O_CLOEXEC).cast_unsigned());
    how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
    // SAFETY: `name` and `how` outlive the call, and the size passed is that of `how`.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            base.as_raw_fd(),
            name.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    };
    let fd = i32::try_from(fd).map_err(|_| Error::from_raw_os_error(libc::EBADF))?;
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the kernel just returned this descriptor to us; nobody else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}
