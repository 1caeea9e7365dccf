//! What the driver sets up: status, features, queues; whatever the transport.

use virtio_queue::{Queue, QueueT};

use super::feature;
use crate::mem::Memory;
use crate::{Error, Result};

/// Device status bits (section 2.1).
pub mod status {
    /// The driver knows how to drive the device.
    pub const DRIVER: u8 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// Features are agreed upon.
    pub const FEATURES_OK: u8 = 8;
    /// The device cannot go on.
    pub const NEEDS_RESET: u8 = 64;
    /// The driver has given up.
    pub const FAILED: u8 = 128;
}

/// No MSI-X vector.
pub const NO_VECTOR: u16 = 0xffff;

/// One queue as the driver describes it.
#[derive(Clone, Debug)]
pub struct QueueSetup {
    /// Greatest size.
    pub max: u16,
    /// Size.
    pub size: u16,
    /// In use.
    pub ready: bool,
    /// Descriptor table, available ring, used ring.
    pub rings: [u64; 3],
    /// MSI-X vector.
    pub vector: u16,
}

impl QueueSetup {
    fn new(max: u16) -> Self {
        QueueSetup { max, size: max, ready: false, rings: [0; 3], vector: NO_VECTOR }
    }

    /// Where the rings are in the legacy layout (section 2.7.2): one after the other from a page on.
    pub fn set_legacy_page(&mut self, page: u32) {
        let desc = u64::from(page) << 12;
        let size = u64::from(self.max);
        let avail = desc + 16 * size;
        let used = crate::num::align_up(avail + 6 + 2 * size, 4096);
        self.size = self.max;
        self.rings = [desc, avail, used];
        self.ready = page != 0;
    }

    /// The page number, as the legacy interface reads it back.
    pub fn legacy_page(&self) -> u64 {
        if self.ready { self.rings[0] >> 12 } else { 0 }
    }

    /// As a ring to be worked on.
    ///
    /// # Errors
    /// When the rings are not within guest memory, or misaligned.
    pub fn build(&self, memory: &Memory, features: u64) -> Result<Queue> {
        let wrong = |what: String| Error::invalid(format!("virtio queue: {what}"));
        let mut q = Queue::new(self.max).map_err(|e| wrong(e.to_string()))?;
        q.try_set_size(self.size).map_err(|e| wrong(format!("size {}: {e}", self.size)))?;
        let [desc, avail, used] = self.rings.map(vm_memory::GuestAddress);
        q.try_set_desc_table_address(desc).map_err(|e| wrong(format!("{desc:?}: {e}")))?;
        q.try_set_avail_ring_address(avail).map_err(|e| wrong(format!("{avail:?}: {e}")))?;
        q.try_set_used_ring_address(used).map_err(|e| wrong(format!("{used:?}: {e}")))?;
        q.set_event_idx(features & feature::EVENT_IDX != 0);
        q.set_ready(true);
        if q.is_valid(memory) {
            Ok(q)
        } else {
            Err(wrong(format!("rings {:x?} are outside guest memory", self.rings)))
        }
    }
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Registers {
    /// Device status.
    pub status: u8,
    /// What the device offers.
    pub offered: u64,
    /// What the driver has taken.
    pub accepted: u64,
    /// Which half of the offered features is shown.
    pub device_select: u32,
    /// Which half of the accepted features is written.
    pub driver_select: u32,
    /// Which queue is talked about.
    pub queue_select: u16,
    /// The queues.
    pub queues: Vec<QueueSetup>,
    /// Vector for changes of the configuration.
    pub config_vector: u16,
    /// Counts changes of the configuration.
    pub generation: u8,
}

impl Registers {
    /// After reset.
    pub fn new(offered: u64, sizes: &[u16]) -> Self {
        Registers {
            status: 0,
            offered,
            accepted: 0,
            device_select: 0,
            driver_select: 0,
            queue_select: 0,
            queues: sizes.iter().map(|s| QueueSetup::new(*s)).collect(),
            config_vector: NO_VECTOR,
            generation: 0,
        }
    }

    /// Back to that.
    pub fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|q| q.max).collect();
        let generation = self.generation;
        *self = Registers::new(self.offered, &sizes);
        self.generation = generation;
    }

    /// 32 of the offered features.
    pub fn offered_half(&self) -> u32 {
        half(self.offered, self.device_select)
    }

    /// 32 of the accepted features.
    pub fn accepted_half(&self) -> u32 {
        half(self.accepted, self.driver_select)
    }

    /// The driver writes 32 of its features.
    pub fn accept_half(&mut self, value: u32) {
        if self.status & status::FEATURES_OK != 0 {
            return;
        }
        match self.driver_select {
            0 => self.accepted = (self.accepted & !0xffff_ffff) | u64::from(value),
            1 => self.accepted = (self.accepted & 0xffff_ffff) | u64::from(value) << 32,
            _ => {}
        }
    }

    /// The driver writes a non-zero status. `FEATURES_OK` stays off when it took what was not offered.
    /// Returns true when the device is to begin.
    pub fn set_status(&mut self, value: u8) -> bool {
        let mut value = value | self.status & status::NEEDS_RESET;
        if self.accepted & !self.offered != 0 {
            value &= !status::FEATURES_OK;
        }
        let begins = value & status::DRIVER_OK != 0 && self.status & status::DRIVER_OK == 0;
        self.status = value;
        begins && value & (status::FAILED | status::NEEDS_RESET) == 0
    }

    /// The selected queue.
    pub fn selected(&self) -> Option<&QueueSetup> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// The selected queue, to be changed: only before the device has begun.
    pub fn selected_mut(&mut self) -> Option<&mut QueueSetup> {
        if self.status & status::DRIVER_OK != 0 {
            return None;
        }
        self.queues.get_mut(usize::from(self.queue_select))
    }
}

fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => crate::num::low32(value),
        1 => crate::num::high32(value),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_that_were_not_offered_are_refused() {
        let mut r = Registers::new(feature::VERSION_1 | 1, &[256]);
        r.device_select = 1;
        assert_eq!((r.offered_half(), half(r.offered, 2)), (1, 0));
        r.accept_half(3);
        assert!(!r.set_status(status::DRIVER | status::FEATURES_OK));
        assert_eq!(r.status & status::FEATURES_OK, 0);
        r.accept_half(1);
        r.set_status(status::FEATURES_OK);
        assert_eq!(r.status & status::FEATURES_OK, status::FEATURES_OK);
        r.accept_half(0);
        assert_eq!(r.accepted, 1, "fixed after FEATURES_OK");
        assert!(r.set_status(status::FEATURES_OK | status::DRIVER_OK));
        assert!(!r.set_status(status::FEATURES_OK | status::DRIVER_OK));
        assert!(r.selected_mut().is_none());
        r.queue_select = 1;
        assert!(r.selected().is_none());
        r.reset();
        assert_eq!((r.status, r.accepted, r.queue_select), (0, 0, 0));
    }

    #[test]
    fn legacy_rings_lie_one_after_the_other() {
        let mut q = QueueSetup::new(256);
        q.set_legacy_page(2);
        assert_eq!(q.rings, [0x2000, 0x3000, 0x4000]);
        assert_eq!(q.legacy_page(), 2);
        q.set_legacy_page(0);
        assert!(!q.ready);
    }
}
