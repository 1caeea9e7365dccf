//! System calls of mounting and swapping.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::path::Path;

use crate::error::{Error, Result};

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::usage(format!("'{text}' holds a zero byte")))
}

fn check(result: libc::c_int, what: &str, path: &str) -> Result<()> {
    if result == 0 {
        return Ok(());
    }
    Err(Error::io(what.to_owned(), Path::new(path), std::io::Error::last_os_error()))
}

/// mount(2).
pub fn mount(source: &str, point: &str, kind: &str, options: &str) -> Result<()> {
    let (source, target) = (c_string(source)?, c_string(point)?);
    let (kind, data) = (c_string(kind)?, c_string(options)?);
    // SAFETY: all four are C strings that outlive the call.
    let result = unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, data.as_ptr().cast())
    };
    check(result, "cannot be mounted", point)
}

/// umount(2).
pub fn unmount(point: &str) -> Result<()> {
    let target = c_string(point)?;
    // SAFETY: a C string that outlives the call.
    check(unsafe { libc::umount(target.as_ptr()) }, "cannot be unmounted", point)
}

/// swapon(2).
pub fn swap_on(path: &str) -> Result<()> {
    let name = c_string(path)?;
    // SAFETY: a C string that outlives the call.
    check(unsafe { libc::swapon(name.as_ptr(), 0) }, "cannot be used as swap", path)
}

/// swapoff(2).
pub fn swap_off(path: &str) -> Result<()> {
    let name = c_string(path)?;
    // SAFETY: a C string that outlives the call.
    check(unsafe { libc::swapoff(name.as_ptr()) }, "cannot be taken out of use as swap", path)
}
