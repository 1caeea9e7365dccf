//! The file of `-pidfile`: locked while the machine lives, so that a second one with the same file is
//! refused; removed at the end.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};

/// A locked file with this process's number.
pub struct PidFile {
    path: PathBuf,
    /// Holds the lock.
    _file: File,
}

impl PidFile {
    /// Makes the file. Locks of this kind belong to the process: after a fork the child takes its own.
    ///
    /// # Errors
    /// When another machine holds it, or it cannot be written.
    pub fn create(path: &Path) -> vmm::Result<Self> {
        let shown = path.display();
        let explain = |e: &std::io::Error| {
            vmm::Error::io(e).context(format!("cannot create PID file '{shown}'"))
        };
        loop {
            let mut options = OpenOptions::new();
            options.create(true).write(true).truncate(false).mode(0o600);
            let mut file = options.open(path).map_err(|e| explain(&e))?;
            lock(&file).map_err(|e| match e {
                nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES => vmm::Error::invalid(
                    format!("cannot create PID file '{shown}': another machine has it"),
                )
                .hint(format!("See which one: cat {shown}; or choose another -pidfile")),
                e => vmm::Error::from(e).context(format!("cannot lock PID file '{shown}'")),
            })?;
            // One that ended between our opening and our locking has taken its file away.
            let same = match (file.metadata(), std::fs::metadata(path)) {
                (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
                _ => false,
            };
            if !same {
                continue;
            }
            file.set_len(0).map_err(|e| explain(&e))?;
            writeln!(file, "{}", std::process::id()).map_err(|e| explain(&e))?;
            let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            return Ok(PidFile { path, _file: file });
        }
    }
}

fn lock(file: &File) -> nix::Result<()> {
    let small = |n: libc::c_int| libc::c_short::try_from(n).unwrap_or(0);
    let whole = libc::flock {
        l_type: small(libc::F_WRLCK),
        l_whence: small(libc::SEEK_SET),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_SETLK(&whole)).map(|_| ())
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // A missing file is as good as a removed one.
        let _ = std::fs::remove_file(&self.path);
    }
}
