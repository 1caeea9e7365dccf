//! virtio-rng (section 5.4): random bytes from the host.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::{Activation, ActiveQueue, Broken, Chain, Kind, VirtioDevice, Work};
use crate::mem::Memory;
use crate::num::index;
use crate::{Error, Result};

/// Most bytes given for one request: a guest cannot keep the host's kernel busy with one call.
const MOST: u64 = 64 << 10;
/// Where bytes come from unless the user names a file; never blocks once the host has started.
pub const SOURCE: &str = "/dev/urandom";

/// How much a guest gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// So many bytes (`max-bytes=`)
    pub bytes: u64,
    /// in so much time (`period=`).
    pub period: Duration,
}

/// The device as plain data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RngConfig {
    /// Where bytes come from; [`SOURCE`] when empty.
    pub source: PathBuf,
    /// How much the guest gets; no limit without.
    pub quota: Option<Quota>,
}

/// The device.
#[derive(Debug)]
pub struct Rng {
    source: File,
    quota: Option<Quota>,
}

impl Rng {
    /// Opens the source.
    ///
    /// # Errors
    /// Name the file.
    pub fn open(config: &RngConfig) -> Result<Self> {
        let empty = config.source.as_os_str().is_empty();
        let path = if empty { Path::new(SOURCE) } else { &config.source };
        let source = File::open(path).map_err(|e| {
            let shown = path.display().to_string();
            Error::io(&e)
                .context(format!("could not open {shown} for virtio-rng"))
                .at_path(shown)
                .hint(format!("Use -object rng-random,id=r,filename={SOURCE}"))
        })?;
        Ok(Rng { source, quota: config.quota })
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> Kind {
        Kind { id: 4, name: "virtio-rng", legacy_pci: 0x1005, class: (0, 0xff, 0) }
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![64]
    }
    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn activate(&self, mut activation: Activation) -> Result<Vec<Box<dyn Work>>> {
        let Some(queue) = activation.queues.first_mut().and_then(Option::take) else {
            return Ok(Vec::new());
        };
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)
            .map_err(|e| Error::from(e).context("cannot create a timer"))?;
        Ok(vec![Box::new(RngQueue {
            queue,
            memory: activation.memory,
            source: self.source.try_clone()?,
            quota: self.quota,
            left: self.quota.map(|q| q.bytes),
            timer,
        })])
    }
}

struct RngQueue {
    queue: ActiveQueue,
    memory: Arc<Memory>,
    source: File,
    quota: Option<Quota>,
    /// Bytes that the guest still gets in this period.
    left: Option<u64>,
    timer: TimerFd,
}

const RING: usize = 0;

/// Fills a request with `wanted` bytes.
fn fill(
    memory: &Memory,
    chain: &Chain,
    source: &mut File,
    wanted: u64,
) -> std::result::Result<u32, Broken> {
    let mut bytes = vec![0; index(wanted)];
    source.read_exact(&mut bytes).map_err(|e| Broken(format!("no random bytes: {e}")))?;
    match chain.write(memory, 0, &bytes) {
        Ok(()) => Ok(u32::try_from(wanted).unwrap_or(0)),
        Err(_) => Err(Broken("a buffer for random bytes lies outside guest memory".into())),
    }
}

impl RngQueue {
    fn serve(&mut self) -> std::result::Result<(), Broken> {
        while self.left != Some(0) {
            let Some(chain) = self.queue.pop_or_wait(&self.memory)? else { return Ok(()) };
            let wanted = chain.writable_len().min(MOST).min(self.left.unwrap_or(MOST));
            let fresh = self.left == self.quota.map(|q| q.bytes);
            let len = fill(&self.memory, &chain, &mut self.source, wanted)?;
            self.queue.push(&self.memory, chain.head, len)?;
            self.queue.announce(&self.memory)?;
            if let (Some(left), Some(quota)) = (&mut self.left, self.quota) {
                *left -= wanted;
                // A period begins with its first request: an idle guest costs no timer.
                if fresh && wanted > 0 {
                    self.timer
                        .set(
                            Expiration::OneShot(TimeSpec::from_duration(quota.period)),
                            TimerSetTimeFlags::empty(),
                        )
                        .map_err(|e| Broken(format!("cannot set a timer: {e}")))?;
                }
            }
        }
        Ok(())
    }
}

impl Work for RngQueue {
    fn name(&self) -> String {
        "virtio-rng".into()
    }
    fn sources(&self) -> Vec<i32> {
        vec![self.queue.doorbell(), self.timer.as_fd().as_raw_fd()]
    }
    fn wants(&self, source: usize) -> bool {
        // Requests wait in the ring for the next period.
        source != RING || self.left != Some(0)
    }
    fn ready(&mut self, source: usize) -> std::result::Result<(), Broken> {
        if source == RING {
            self.queue.answer();
        } else {
            let mut expired = [0; 8];
            if nix::unistd::read(&self.timer, &mut expired).is_ok() {
                self.left = self.quota.map(|q| q.bytes);
            }
        }
        self.serve()
    }
}
