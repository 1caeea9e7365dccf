//! Confining the process before it looks at an image.
//!
//! Images come from elsewhere, and the code that reads them is large. Should one of them take over this process,
//! it can then still do no more than the command needs: read the files that the command names and those beside them,
//! write where the output goes, and use the network where an address was named. No privilege is needed.
//!
//! * [`files`]: what the command names, as Landlock rules.
//! * [`calls`]: the system calls that are left (seccomp). A call that is not among them ends with `EPERM`.
//!
//! # When
//!
//! The command line has been read, passphrases were loaded, nothing of an image was looked at: the first job enters
//! ([`crate::common::Common::run_open`]). Both confinements hold for every thread that is started later.
//!
//! # What may be opened
//!
//! The same as what the open policy lets names inside images lead to (`imgcore::graph::gate`), only that the kernel
//! sees to it: the folders of named images (as they are written, and with links resolved), and what `--allow` names.
//! Output folders may be written, and images' folders where the command changes images. Besides, for reading: `/proc`
//! and `/sys`, time zones, and with addresses the files of name resolution and certificates.
//!
//! Under the name `qemu-img` every name inside an image is followed, as QEMU does: everything may be read then, the
//! network used, and commands that change images may write everywhere; system calls are confined all the same.
//!
//! # What a kernel lacks
//!
//! `--sandbox on` (the default) confines as far as the kernel can; `require` makes it an error when Landlock or seccomp
//! is missing; `off` confines nothing. `rimg --version` says what this kernel has.

mod calls;
mod files;

pub use calls::Network;
pub use files::{Plan, Writing};

use crate::failure::Failure;

/// `--sandbox`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Nothing is confined.
    Off,
    /// What the kernel can do is done.
    #[default]
    On,
    /// The kernel must be able to do all of it.
    Require,
}

impl Mode {
    /// From the option's argument.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "off" => Some(Mode::Off),
            "on" => Some(Mode::On),
            "require" => Some(Mode::Require),
            _ => None,
        }
    }
}

/// Confines this process.
///
/// # Errors
/// With `require`, when the kernel cannot.
pub fn enter(plan: &Plan, mode: Mode) -> Result<(), Failure> {
    if mode == Mode::Off {
        return Ok(());
    }
    plan.remember_users();
    let missing = |what: &str, why: &str| {
        let text = format!("--sandbox require: {what} cannot be had: {why}");
        if mode == Mode::Require { Err(Failure::new(text)) } else { Ok(()) }
    };
    // Landlock first: its calls are not among those that are left.
    if let Err(why) = files::restrict(plan) {
        missing("Landlock", &why)?;
    }
    if let Err(why) = calls::restrict(plan.network()) {
        missing("seccomp", &why)?;
    }
    Ok(())
}

/// What this kernel has, in one line.
pub fn support() -> String {
    let landlock = match files::version() {
        0 => "no Landlock".to_owned(),
        n => format!("Landlock {n}"),
    };
    let seccomp = if calls::available() { "seccomp" } else { "no seccomp" };
    format!("sandbox: {landlock}, {seccomp}")
}

#[cfg(test)]
mod tests;
