//! Programs that serve while a test runs, and what they serve.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on ends here

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long one may take until it serves.
const LIMIT: Duration = Duration::from_secs(60);

/// A process that is killed when the test is done with it.
#[derive(Debug)]
pub struct Daemon(pub Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Daemon {
    /// Starts it, without input and output.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Self {
        let silent = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Daemon(silent.spawn().unwrap())
    }

    /// The same, once it is ready.
    ///
    /// # Panics
    /// When it ends before, or is not ready after a minute.
    #[must_use]
    pub fn until(mut self, ready: impl Fn() -> bool) -> Self {
        let end = Instant::now() + LIMIT;
        while !ready() {
            assert!(self.0.try_wait().unwrap().is_none(), "the server ended");
            assert!(Instant::now() < end, "the server does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        self
    }
}

/// A TCP port of this host that nobody listens at.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Writes a file of data and zeroes in turn.
///
/// # Panics
/// When it cannot be written.
pub fn data_and_zeroes(path: &Path, len: usize) {
    let mut bytes = vec![0u8; len];
    for (i, chunk) in bytes.chunks_mut(70_000).enumerate() {
        if i % 3 != 1 {
            for (n, byte) in chunk.iter_mut().enumerate() {
                *byte = u8::try_from((n / 5 + i * 31) % 251).unwrap() | 1;
            }
        }
    }
    std::fs::write(path, bytes).unwrap();
}
