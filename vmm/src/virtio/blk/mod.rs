//! virtio-blk (section 5.2).
//!
//! * [`request`]: takes a request apart; needs no disk.
//! * `execute`: carries it out on a [`crate::block::BlockBackend`].
//!
//! One thread a queue carries requests out one after the other, with one bounce buffer of a fixed size.
//! A flush covers everything completed before it, as each call of the back end is complete when it
//! returns.

mod execute;
pub mod request;

use std::sync::Arc;

use super::{Activation, ActiveQueue, Broken, Kind, VirtioDevice, Work};
use crate::Result;
use crate::block::BlockBackend;
use crate::mem::Memory;
use crate::num::{put_le, read_within};
use execute::Executor;

const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// Segments of a discard or write zeroes request.
pub const MAX_SEGMENTS: u64 = 32;
/// Sectors in one of them: 2 GiB.
pub const MAX_SEGMENT_SECTORS: u64 = 1 << 22;
const QUEUE_SIZE: u16 = 256;

/// How a disk is shown to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkConfig {
    /// Its name, for threads and messages.
    pub id: String,
    /// Serial number, at most 20 bytes are shown.
    pub serial: String,
    /// Queues.
    pub queues: u16,
    /// Whether discard requests reach the image.
    pub discard: bool,
}

/// A disk.
pub struct Blk {
    config: BlkConfig,
    backend: Arc<dyn BlockBackend>,
}

impl Blk {
    /// A disk over `backend`.
    pub fn new(config: BlkConfig, backend: Arc<dyn BlockBackend>) -> Self {
        Blk { config, backend }
    }
}

impl VirtioDevice for Blk {
    fn kind(&self) -> Kind {
        Kind { id: 2, name: "virtio-blk", legacy_pci: 0x1001, class: (1, 0, 0) }
    }

    fn features(&self) -> u64 {
        let mut f = F_SEG_MAX | F_BLK_SIZE | F_FLUSH;
        if self.backend.read_only() {
            f |= F_RO;
        } else {
            f |= F_WRITE_ZEROES;
            if self.config.discard {
                f |= F_DISCARD;
            }
        }
        if self.config.queues > 1 {
            f |= F_MQ;
        }
        f
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; usize::from(self.config.queues.max(1))]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut c = [0; 60];
        put_le(&mut c[0..8], self.backend.len() / 512);
        // Data segments of one request: the queue's size less header and status.
        put_le(&mut c[12..16], u64::from(QUEUE_SIZE) - 2);
        put_le(&mut c[20..24], 512);
        put_le(&mut c[34..36], self.config.queues.max(1).into());
        for (sectors, segments) in [(36, 40), (48, 52)] {
            put_le(&mut c[sectors..sectors + 4], MAX_SEGMENT_SECTORS);
            put_le(&mut c[segments..segments + 4], MAX_SEGMENTS);
        }
        // Discards of single sectors are possible, though formats ignore parts of their units.
        put_le(&mut c[44..48], 1);
        c[56] = 1;
        read_within(&c, offset, data);
    }

    fn activate(&self, activation: Activation) -> Result<Vec<Box<dyn Work>>> {
        let mut all: Vec<Box<dyn Work>> = Vec::new();
        for (i, queue) in activation.queues.into_iter().enumerate() {
            let Some(queue) = queue else { continue };
            let executor = Executor::new(self.backend.clone(), &self.config.serial);
            all.push(Box::new(BlkQueue {
                name: format!("{}/q{i}", self.config.id),
                queue,
                executor,
                memory: activation.memory.clone(),
            }));
        }
        Ok(all)
    }

    fn flush(&self) -> Result<()> {
        self.backend.flush()
    }

    fn shut_down(&self) -> Result<()> {
        self.backend.flush()?;
        self.backend.close()
    }
}

struct BlkQueue {
    name: String,
    queue: ActiveQueue,
    executor: Executor,
    memory: Arc<Memory>,
}

impl Work for BlkQueue {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn sources(&self) -> Vec<i32> {
        vec![self.queue.doorbell()]
    }

    fn ready(&mut self, _source: usize) -> std::result::Result<(), Broken> {
        self.queue.answer();
        let (memory, executor) = (&self.memory, &mut self.executor);
        self.queue.drain(memory, |chain| executor.serve(memory, chain))
    }
}

#[cfg(test)]
mod tests;
