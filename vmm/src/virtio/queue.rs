//! A queue that is in use: its ring, doorbell and interrupt.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::{Broken, Chain};
use crate::irq::Message;
use crate::mem::Memory;

/// Requests served before the thread looks whether it is to stop.
const TURN: usize = 1024;

/// A queue with what belongs to it. Owned by the work that serves it.
pub struct ActiveQueue {
    queue: Queue,
    doorbell: EventFd,
    call: Arc<dyn Message>,
    /// Requests were given back that the driver has not been told of.
    unannounced: bool,
    /// Room for a table of descriptors.
    scratch: Vec<u8>,
}

impl ActiveQueue {
    /// From a ring that the driver has made, and that was found valid.
    pub fn new(queue: Queue, doorbell: EventFd, call: Arc<dyn Message>) -> Self {
        ActiveQueue { queue, doorbell, call, unannounced: false, scratch: Vec::new() }
    }

    /// To be polled: readable when the driver has rung.
    pub fn doorbell(&self) -> RawFd {
        self.doorbell.as_raw_fd()
    }

    /// Takes the ring of the doorbell.
    pub fn answer(&self) {
        // Not rung: somebody else has taken it, or the worker has just started.
        let _ = self.doorbell.read();
    }

    /// The next request.
    pub fn pop(&mut self, memory: &Memory) -> Option<Chain> {
        let table = vm_memory::GuestAddress(self.queue.desc_table());
        self.queue
            .pop_descriptor_chain(memory)
            .map(|chain| Chain::collect(chain, table, &mut self.scratch))
    }

    /// Where the ring is in guest memory, for somebody else to serve it.
    pub fn addresses(&self) -> super::vhost::RingAddresses {
        super::vhost::RingAddresses {
            size: self.queue.size(),
            descriptors: vm_memory::GuestAddress(self.queue.desc_table()),
            available: vm_memory::GuestAddress(self.queue.avail_ring()),
            used: vm_memory::GuestAddress(self.queue.used_ring()),
        }
    }

    /// Number of the next request, as the available ring counts them.
    pub fn next_available(&self) -> u16 {
        self.queue.next_avail()
    }

    /// Interrupts the driver, whether it wants that or not: whoever serves the ring has asked.
    pub fn interrupt(&self) {
        self.call.raise();
    }

    /// Puts the request that was popped last back, to be popped again.
    pub fn unpop(&mut self) {
        let next = self.queue.next_avail();
        self.queue.set_next_avail(next.wrapping_sub(1));
    }

    /// Gives a request back with `len` bytes written.
    pub fn push(&mut self, memory: &Memory, head: u16, len: u32) -> Result<(), Broken> {
        self.queue
            .add_used(memory, head, len)
            .map_err(|e| Broken(format!("cannot give back a request: {e}")))?;
        self.unannounced = true;
        Ok(())
    }

    /// Interrupts the driver if something was given back and it wants to know.
    pub fn announce(&mut self, memory: &Memory) -> Result<(), Broken> {
        if std::mem::take(&mut self.unannounced) {
            let wanted = self
                .queue
                .needs_notification(memory)
                .map_err(|e| Broken(format!("cannot read the driver's event index: {e}")))?;
            if wanted {
                self.call.raise();
            }
        }
        Ok(())
    }

    /// The next request; when there is none, asks the driver to ring and looks once more.
    ///
    /// # Errors
    /// When the ring says that there are requests and has none: its index is wrong.
    pub fn pop_or_wait(&mut self, memory: &Memory) -> Result<Option<Chain>, Broken> {
        if let Some(chain) = self.pop(memory) {
            return Ok(Some(chain));
        }
        if !self.want_ring(memory)? {
            return Ok(None);
        }
        match self.pop(memory) {
            Some(chain) => Ok(Some(chain)),
            None => Err(Broken("the available ring's index is out of range".into())),
        }
    }

    /// Hands requests to `serve`, which returns how many bytes it wrote. After many of them it rings its own
    /// bell and returns, so that the thread can be stopped however fast the driver adds requests.
    pub fn drain(
        &mut self,
        memory: &Memory,
        mut serve: impl FnMut(&Chain) -> Result<u32, Broken>,
    ) -> Result<(), Broken> {
        self.begin_turn(memory)?;
        for _ in 0..TURN {
            let Some(chain) = self.pop_or_wait(memory)? else { return Ok(()) };
            let len = serve(&chain)?;
            self.push(memory, chain.head, len)?;
            self.announce(memory)?;
        }
        self.ring_again();
        Ok(())
    }

    /// Before taking requests: asks the driver not to ring meanwhile.
    pub fn begin_turn(&mut self, memory: &Memory) -> Result<(), Broken> {
        self.queue
            .disable_notification(memory)
            .map_err(|e| Broken(format!("cannot write the event index: {e}")))
    }

    /// There may be more requests: the thread comes back to this queue after it has looked whether it is
    /// to stop.
    pub fn ring_again(&self) {
        self.doorbell.raise();
    }

    /// Asks the driver to ring when it adds requests; true when there are some already.
    fn want_ring(&mut self, memory: &Memory) -> Result<bool, Broken> {
        self.queue
            .enable_notification(memory)
            .map_err(|e| Broken(format!("cannot write the event index: {e}")))
    }
}
