//! The files and the agent that tell who the user is and which hosts he knows.

use std::path::PathBuf;
use std::sync::OnceLock;

/// Default keys, in the order in which they are offered.
const KEYS: &[&str] = &["id_ed25519", "id_ecdsa", "id_rsa"];
/// Keys of hosts that all users of this machine know.
const SYSTEM_HOSTS: &[&str] = &["/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"];

/// What the environment of the process says, where it stands above what the system knows of its user.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `USER` or `LOGNAME`.
    pub name: Option<String>,
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// `SSH_AUTH_SOCK`.
    pub agent: Option<PathBuf>,
}

static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();

/// Tells what the environment says: a library does not read it by itself. Counts once, before the first connection; a
/// program that says nothing has the user that the system knows, and no agent.
pub fn tell(environment: Environment) {
    let _ = ENVIRONMENT.set(environment);
}

fn environment() -> &'static Environment {
    ENVIRONMENT.get_or_init(Environment::default)
}

fn entry() -> Option<nix::unistd::User> {
    nix::unistd::User::from_uid(nix::unistd::Uid::current()).ok().flatten()
}

/// The user's name on this host.
pub fn name() -> Option<String> {
    environment().name.clone().or_else(|| Some(entry()?.name))
}

/// A file in the user's folder of ssh.
fn own(file: &str) -> Option<PathBuf> {
    let home = environment().home.clone().or_else(|| Some(entry()?.dir))?;
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
    environment().agent.clone()
}

/// All files that are looked at: what a confined process must be able to read.
pub fn files() -> Vec<PathBuf> {
    let mut all = known_hosts();
    all.extend(keys());
    // Whom the system takes this user for.
    all.extend(["/etc/passwd", "/etc/nsswitch.conf"].map(PathBuf::from));
    all
}
