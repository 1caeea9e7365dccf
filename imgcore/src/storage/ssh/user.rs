//! The files and the agent that tell who the user is and which hosts he knows.

use std::path::PathBuf;

/// Default keys, in the order in which they are offered.
const KEYS: &[&str] = &["id_ed25519", "id_ecdsa", "id_rsa"];
/// Keys of hosts that all users of this machine know.
const SYSTEM_HOSTS: &[&str] = &["/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"];

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn entry() -> Option<nix::unistd::User> {
    nix::unistd::User::from_uid(nix::unistd::Uid::current()).ok().flatten()
}

/// The user's name on this host.
pub fn name() -> Option<String> {
    variable("USER").or_else(|| variable("LOGNAME")).or_else(|| Some(entry()?.name))
}

/// A file in the user's folder of ssh.
fn own(file: &str) -> Option<PathBuf> {
    let home = variable("HOME").map(PathBuf::from).or_else(|| Some(entry()?.dir))?;
    Some(home.join(".ssh").join(file))
}

/// Files with keys of hosts: the user's, then the system's. They may be missing.
pub fn known_hosts() -> Vec<PathBuf> {
    let own = ["known_hosts", "known_hosts2"].iter().filter_map(|file| own(file));
    own.chain(SYSTEM_HOSTS.iter().map(PathBuf::from)).collect()
}

/// Files with the user's secret keys. They may be missing.
pub fn keys() -> Vec<PathBuf> {
    KEYS.iter().filter_map(|file| own(file)).collect()
}

/// The socket of the agent that holds the user's keys.
pub fn agent() -> Option<PathBuf> {
    variable("SSH_AUTH_SOCK").map(PathBuf::from)
}

/// All files that are looked at: what a confined process must be able to read.
pub fn files() -> Vec<PathBuf> {
    let mut all = known_hosts();
    all.extend(keys());
    // Whom the system takes this user for.
    all.extend(["/etc/passwd", "/etc/nsswitch.conf"].map(PathBuf::from));
    all
}
