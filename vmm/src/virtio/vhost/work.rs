//! Handing queues over to the kernel, and back.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::Vhost;
use crate::mem::Memory;
use crate::virtio::{ActiveQueue, Broken, Work};
use crate::{Error, Result};

/// What the queues are connected to.
pub enum Target {
    /// An interface.
    Net {
        /// Its descriptor.
        fd: OwnedFd,
        /// Rung when the link has changed.
        event: EventFd,
        /// Whether the link is up; frames do not move while it is not.
        up: Box<dyn Fn() -> bool + Send>,
    },
    /// The host's sockets.
    Vsock,
}

/// A queue that the kernel serves.
struct Ring {
    queue: ActiveQueue,
    call: EventFd,
    base: u16,
}

/// Queues in the kernel's hands. While the thread is not running, the kernel does not touch them.
pub struct VhostWork {
    name: String,
    device: Vhost,
    target: Target,
    rings: Vec<Ring>,
    memory: Arc<Memory>,
    features: u64,
    serving: bool,
}

impl VhostWork {
    /// For queues in the kernel's order.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn new(
        name: String,
        device: Vhost,
        target: Target,
        queues: Vec<ActiveQueue>,
        memory: Arc<Memory>,
    ) -> Result<Self> {
        let mut rings = Vec::new();
        for queue in queues {
            let call = EventFd::new(libc::EFD_NONBLOCK)
                .map_err(|e| Error::io(&e).context("cannot create an event descriptor"))?;
            rings.push(Ring { base: queue.next_available(), queue, call });
        }
        Ok(VhostWork { name, device, target, rings, memory, features: 0, serving: false })
    }

    /// With the features that were agreed upon with the guest; those that the kernel knows are told it.
    #[must_use]
    pub fn with_features(mut self, features: u64) -> Self {
        self.features = features;
        self
    }

    fn numbered(&self) -> impl Iterator<Item = (u32, &Ring)> {
        (0..).zip(&self.rings)
    }

    fn start(&mut self) -> Result<()> {
        let features = self.features & self.device.features()?;
        self.device.set_features(features)?;
        self.device.set_memory(&self.memory)?;
        for (i, ring) in self.numbered() {
            self.device.set_ring(i, &self.memory, &ring.queue.addresses(), ring.base)?;
            let kick = crate::fd::borrow(ring.queue.doorbell());
            self.device.set_events(i, kick, &ring.call)?;
        }
        match &self.target {
            Target::Net { fd, .. } => {
                for (i, _) in self.numbered() {
                    self.device.set_interface(i, Some(fd.as_fd()))?;
                }
            }
            Target::Vsock => self.device.set_running(true)?,
        }
        self.serving = true;
        // Requests may have been waiting, with their ring of the bell taken.
        self.rings.iter().for_each(|r| r.queue.ring_again());
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        self.serving = false;
        match &self.target {
            Target::Net { .. } => {
                for (i, _) in self.numbered() {
                    self.device.set_interface(i, None)?;
                }
            }
            Target::Vsock => self.device.set_running(false)?,
        }
        for (i, ring) in (0..).zip(&mut self.rings) {
            ring.base = self.device.base(i)?;
        }
        Ok(())
    }

    /// Serves, or not, as the link wants it.
    fn follow_link(&mut self) -> Result<()> {
        let up = match &self.target {
            Target::Net { up, event, .. } => {
                let _ = event.read();
                up()
            }
            Target::Vsock => true,
        };
        match (up, self.serving) {
            (true, false) => self.start(),
            (false, true) => self.stop(),
            _ => Ok(()),
        }
    }
}

impl Work for VhostWork {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn sources(&self) -> Vec<RawFd> {
        let mut all: Vec<RawFd> = self.rings.iter().map(|r| r.call.as_raw_fd()).collect();
        if let Target::Net { event, .. } = &self.target {
            all.push(event.as_raw_fd());
        }
        all
    }

    fn ready(&mut self, source: usize) -> std::result::Result<(), Broken> {
        if let Some(ring) = self.rings.get(source)
            && ring.call.read().is_ok()
        {
            ring.queue.interrupt();
        }
        let due = source >= self.rings.len() || !self.serving;
        if due {
            self.follow_link().map_err(|e| Broken(e.report()))?;
        }
        Ok(())
    }

    fn quiesce(&mut self) {
        if self.serving {
            // The kernel refuses only what is stopped already.
            let _ = self.stop();
        }
    }
}

impl Drop for VhostWork {
    fn drop(&mut self) {
        self.quiesce();
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_file_that_is_no_vhost_device_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let e = super::Vhost::new(file).unwrap_err();
        assert!(e.report().contains("no vhost device"), "{}", e.report());
    }
}
