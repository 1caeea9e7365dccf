//! virtio-blk (section 5.2).
//!
//! * [`request`]: takes a request apart; needs no disk.
//! * `batch`: requests that were found together; neighbours are carried out as one.
//! * `execute`: carries them out on a [`crate::block::Disk`].
//! * `flight`: lets the kernel carry them out (io_uring).
//! * `queue`: who does it: the queue's thread, the kernel, or one of the disk's pool.
//!
//! Requests are carried out in any order, as the specification allows. A flush covers everything
//! completed before it, as each call of the back end is complete when it returns.

mod batch;
mod execute;
mod flight;
mod queue;
pub mod request;

use std::sync::{Arc, Mutex};

use super::{Activation, Kind, Settle, VirtioDevice, Work};
use crate::Result;
use crate::block::config::WriteCache;
use crate::block::pool::Pool;
use crate::block::remote::Place;
use crate::block::ring::Ring;
use crate::block::{BlockBackend, Disk};
use crate::num::{put_le, read_within};
use execute::Executor;
use queue::{BlkQueue, Means};

const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_CONFIG_WCE: u64 = 1 << 11;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// Where the write cache's switch is in the configuration.
const WRITEBACK: u64 = 32;

/// Segments of a discard or write zeroes request.
pub const MAX_SEGMENTS: u64 = 32;
/// Sectors in one of them: 2 GiB.
pub const MAX_SEGMENT_SECTORS: u64 = 1 << 22;
/// Size of a queue unless the user wants another.
pub const QUEUE_SIZE: u16 = 256;

/// Whether a kind of request is offered to the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offer {
    /// It is.
    #[default]
    Yes,
    /// It is not.
    No,
}

/// How a disk is shown to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkConfig {
    /// Its name, for threads and messages.
    pub id: String,
    /// Serial number, at most 20 bytes are shown.
    pub serial: String,
    /// Queues, at least 1.
    pub queues: u16,
    /// Requests of a queue, a power of two.
    pub queue_size: u16,
    /// Discard requests.
    pub discard: Offer,
    /// Write zeroes requests.
    pub write_zeroes: Offer,
    /// Turning the write cache on and off.
    pub config_wce: Offer,
    /// Bytes of a logical block: 512 to 32768, a power of two.
    pub logical_block: u32,
    /// Bytes of a physical block, at least a logical one.
    pub physical_block: u32,
}

impl Default for BlkConfig {
    fn default() -> Self {
        BlkConfig {
            id: String::new(),
            serial: String::new(),
            queues: 1,
            queue_size: QUEUE_SIZE,
            discard: Offer::No,
            write_zeroes: Offer::Yes,
            config_wce: Offer::Yes,
            logical_block: 512,
            physical_block: 512,
        }
    }
}

/// A disk.
pub struct Blk {
    config: BlkConfig,
    disk: Arc<Disk>,
    pool: Arc<Pool>,
    /// One for each queue, or none.
    rings: Vec<Arc<Mutex<Ring>>>,
    place: Place,
}

impl Blk {
    /// A disk over a bare back end.
    pub fn new(config: BlkConfig, backend: Arc<dyn BlockBackend>) -> Self {
        let behaviour =
            crate::block::disk::Behaviour { name: config.id.clone(), ..Default::default() };
        Blk::over(config, Arc::new(Disk::new(backend, behaviour)))
    }

    /// A disk over a back end with its limits and policies.
    pub fn over(config: BlkConfig, disk: Arc<Disk>) -> Self {
        let pool = Arc::new(Pool::new(&config.id));
        Blk { config, disk, pool, rings: Vec::new(), place: Place::Here }
    }

    /// Says where the bytes are.
    #[must_use]
    pub fn at(self, place: Place) -> Self {
        Blk { place, ..self }
    }

    /// Whether it is one file that bypasses the page cache.
    pub fn is_direct_file(&self) -> bool {
        let backend = self.disk.backend();
        backend.flushes_one_file() && !backend.is_buffered()
    }

    /// Gives each queue a ring that takes requests to the kernel. To be done before the process is
    /// confined.
    ///
    /// # Errors
    /// When the host has no io_uring, or forbids it; the disk does without, then.
    pub fn give_rings(&mut self) -> Result<()> {
        let ring = |_| Ring::new().map(|ring| Arc::new(Mutex::new(ring)));
        self.rings = (0..self.config.queues.max(1)).map(ring).collect::<Result<_>>()?;
        Ok(())
    }
}

impl VirtioDevice for Blk {
    fn kind(&self) -> Kind {
        Kind { id: 2, name: "virtio-blk", legacy_pci: 0x1001, class: (1, 0, 0) }
    }

    fn features(&self) -> u64 {
        let mut f = F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY | F_FLUSH;
        if self.disk.read_only() {
            f |= F_RO;
        } else {
            let offers = [
                (self.config.write_zeroes, F_WRITE_ZEROES),
                (self.config.discard, F_DISCARD),
                (self.config.config_wce, F_CONFIG_WCE),
            ];
            f |= offers.iter().filter(|o| o.0 == Offer::Yes).map(|o| o.1).sum::<u64>();
        }
        if self.config.queues > 1 {
            f |= F_MQ;
        }
        f
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.config.queue_size; usize::from(self.config.queues.max(1))]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut c = [0; 60];
        let logical = u64::from(self.config.logical_block);
        put_le(&mut c[0..8], self.disk.len() / logical * logical / 512);
        // Data segments of one request: the queue's size less header and status.
        put_le(&mut c[12..16], u64::from(self.config.queue_size) - 2);
        put_le(&mut c[20..24], logical);
        let ratio = self.config.physical_block / self.config.logical_block;
        put_le(&mut c[24..25], ratio.max(1).ilog2().into());
        c[32] = u8::from(self.disk.write_cache() == WriteCache::Writeback);
        put_le(&mut c[34..36], self.config.queues.max(1).into());
        for (sectors, segments) in [(36, 40), (48, 52)] {
            put_le(&mut c[sectors..sectors + 4], MAX_SEGMENT_SECTORS);
            put_le(&mut c[segments..segments + 4], MAX_SEGMENTS);
        }
        // Discards of single blocks are possible, though formats ignore parts of their units.
        put_le(&mut c[44..48], logical / 512);
        c[56] = 1;
        read_within(&c, offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        let allowed = self.features() & F_CONFIG_WCE != 0;
        if let (WRITEBACK, [value], true) = (offset, data, allowed) {
            let cache =
                if value & 1 == 1 { WriteCache::Writeback } else { WriteCache::Writethrough };
            self.disk.set_write_cache(cache);
            if cache == WriteCache::Writethrough {
                // What is in the cache now must be durable too. When this fails, later writes do too.
                let _ = self.disk.flush();
            }
        }
    }

    fn activate(&self, activation: Activation) -> Result<Vec<Box<dyn Work>>> {
        // Section 5.2.5.2: a driver that can neither flush nor ask whether it must.
        if activation.features & (F_FLUSH | F_CONFIG_WCE) == 0 {
            self.disk.set_write_cache(WriteCache::Writethrough);
        }
        let executor = Arc::new(Executor::new(self.disk.clone(), &self.config));
        let mut all: Vec<Box<dyn Work>> = Vec::new();
        for (i, queue) in activation.queues.into_iter().enumerate() {
            let Some(queue) = queue else { continue };
            let name = format!("{}/q{i}", self.config.id);
            let means = Means {
                memory: activation.memory.clone(),
                executor: executor.clone(),
                pool: self.pool.clone(),
                ring: self.rings.get(i).cloned(),
                place: self.place,
            };
            all.push(Box::new(BlkQueue::new(name, queue, means)?));
        }
        Ok(all)
    }

    fn reset(&self) {
        self.disk.set_write_cache(self.disk.initial_write_cache());
    }

    fn settle(&self, settle: Settle) {
        self.disk.hurry(settle == Settle::Begin);
    }

    fn flush(&self) -> Result<()> {
        self.disk.flush()
    }

    fn shut_down(&self) -> Result<()> {
        self.disk.close()
    }
}

#[cfg(test)]
mod ring_tests;
#[cfg(test)]
mod server_tests;
#[cfg(test)]
mod tests;
