//! `-runas` and `-name process=`: who the process is, and what it is called.

use nix::unistd::{Gid, Uid, User, geteuid, initgroups, setgid, setgroups, setuid};
use vmm::cmdline::process::RunAs;

/// Becomes another user for good: group first, then the further groups, then the user.
///
/// # Errors
/// When there is no such user, when this process may not, or when the way back would be open.
pub fn become_user(wanted: &RunAs) -> vmm::Result<()> {
    let explain = |what: &str| {
        let what = what.to_owned();
        move |e: nix::Error| {
            vmm::Error::from(e).context(what).hint("-runas needs the rights of root to start with")
        }
    };
    let (uid, gid, name) = match wanted {
        RunAs::Ids(uid, gid) => (Uid::from_raw(*uid), Gid::from_raw(*gid), None),
        RunAs::User(name) => {
            let user = User::from_name(name).ok().flatten().ok_or_else(|| {
                vmm::Error::invalid(format!("-runas: User \"{name}\" doesn't exist"))
                    .hint("See the users of this host: getent passwd; or give UID:GID")
            })?;
            (user.uid, user.gid, Some(user.name))
        }
    };
    setgid(gid).map_err(explain(&format!("-runas: Failed to setgid({gid})")))?;
    match &name {
        None => {
            setgroups(&[gid]).map_err(explain(&format!("-runas: Failed to setgroups({gid})")))?;
        }
        Some(name) => {
            let name = std::ffi::CString::new(name.as_str())
                .map_err(|_| vmm::Error::invalid("-runas: a name with a zero byte"))?;
            initgroups(&name, gid).map_err(explain("-runas: Failed to set the user's groups"))?;
        }
    }
    setuid(uid).map_err(explain(&format!("-runas: Failed to setuid({uid})")))?;
    if !uid.is_root() && (setuid(Uid::from_raw(0)).is_ok() || geteuid().is_root()) {
        return Err(vmm::Error::invalid("-runas: dropping privileges failed"));
    }
    Ok(())
}

/// Names the process, as `ps -C` and `top` show it; 15 bytes are kept.
///
/// # Errors
/// When the name has a zero byte.
pub fn name_process(name: &str) -> vmm::Result<()> {
    let wrong = || vmm::Error::invalid(format!("-name process={name}: not a name"));
    let name = std::ffi::CString::new(name).map_err(|_| wrong())?;
    nix::sys::prctl::set_name(&name).map_err(|_| wrong())
}
