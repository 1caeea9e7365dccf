//! virtio-rng (section 5.4): random bytes from the host's kernel.

use std::sync::Arc;

use super::{Activation, ActiveQueue, Broken, Chain, Kind, VirtioDevice, Work};
use crate::Result;
use crate::mem::Memory;
use crate::num::index;

/// Most bytes given for one request: a guest cannot keep the host's kernel busy with one call.
const MOST: u64 = 64 << 10;

/// The device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rng;

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
        let memory = activation.memory;
        let queue = activation.queues.first_mut().and_then(Option::take);
        Ok(queue
            .map(|queue| -> Box<dyn Work> { Box::new(RngQueue { queue, memory }) })
            .into_iter()
            .collect())
    }
}

struct RngQueue {
    queue: ActiveQueue,
    memory: Arc<Memory>,
}

/// Fills a request.
fn fill(memory: &Memory, chain: &Chain) -> std::result::Result<u32, Broken> {
    let wanted = chain.writable_len().min(MOST);
    let mut bytes = vec![0; index(wanted)];
    let n = random(&mut bytes).map_err(|e| Broken(format!("no random bytes: {e}")))?;
    match chain.write(memory, 0, &bytes[..n]) {
        Ok(()) => Ok(u32::try_from(n).unwrap_or(0)),
        Err(_) => Err(Broken("a buffer for random bytes lies outside guest memory".into())),
    }
}

/// From the kernel's generator; `/dev/urandom` never blocks once the host has started.
fn random(buf: &mut [u8]) -> std::io::Result<usize> {
    use std::io::Read;
    let mut file = std::fs::File::open("/dev/urandom")?;
    file.read_exact(buf)?;
    Ok(buf.len())
}

impl Work for RngQueue {
    fn name(&self) -> String {
        "virtio-rng".into()
    }
    fn sources(&self) -> Vec<i32> {
        vec![self.queue.doorbell()]
    }
    fn ready(&mut self, _source: usize) -> std::result::Result<(), Broken> {
        self.queue.answer();
        let memory = &self.memory;
        self.queue.drain(memory, |chain| fill(memory, chain))
    }
}
