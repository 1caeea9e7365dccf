//! Moving frames between a pair of queues and the back end.

use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::Shared;
use crate::block::vector::GuestPieces;
use crate::mem::Memory;
use crate::net::NetBackend;
use crate::num::{index, len_u64, put_le};
use crate::virtio::{ActiveQueue, Broken, Chain, Work};

/// A frame with segmentation offload and its header.
const FRAME: usize = 65_562;
/// Frames moved in one direction before the other gets its turn.
const BURST: usize = 256;

/// What the threads of one activation have in common.
#[derive(Clone)]
pub struct Side {
    /// The guest's memory.
    pub memory: Arc<Memory>,
    /// The card.
    pub(super) shared: Arc<Shared>,
    /// Bytes of the header in front of a frame.
    pub header: u8,
    /// A frame may go into several buffers.
    pub merge: bool,
    /// Features agreed upon.
    pub features: u64,
}

/// A pair of queues and its queue of the back end.
pub struct Pair {
    /// The thread's name.
    pub name: String,
    /// The back end's queue.
    pub backend: Box<dyn NetBackend>,
    /// What the guest receives with.
    pub rx: ActiveQueue,
    /// What it sends with.
    pub tx: ActiveQueue,
    /// Rung when the link or the number of pairs in use has changed.
    pub event: EventFd,
    /// Which pair.
    pub number: usize,
}

/// Serves a pair of queues.
pub struct NetWork {
    pair: Pair,
    side: Side,
    frame: Vec<u8>,
    /// Bytes of a frame in `frame` that the guest has had no buffers for.
    waiting: Option<usize>,
    /// For frames that cannot be sent straight out of guest memory.
    copy: Vec<u8>,
}

const TX: usize = 0;
const RX: usize = 1;
const BACKEND: usize = 2;
const EVENT: usize = 3;

impl NetWork {
    /// For a pair.
    pub fn new(pair: Pair, side: Side) -> Self {
        NetWork { pair, side, frame: vec![0; FRAME], waiting: None, copy: Vec::new() }
    }

    fn transmit(&mut self) -> std::result::Result<(), Broken> {
        self.pair.tx.answer();
        let up = self.side.shared.up();
        let memory = &self.side.memory;
        let (backend, copy, header) = (&mut self.pair.backend, &mut self.copy, self.side.header);
        self.pair.tx.drain(memory, |chain| {
            // A frame that has no header, or is longer than any, is dropped.
            let len = chain.readable_len();
            if !up || len < u64::from(header) || len > len_u64(FRAME) {
                return Ok(0);
            }
            let Some(pieces) = GuestPieces::gather(memory, chain.readable_pieces(0, len)) else {
                return Err(Broken("a frame lies outside guest memory".into()));
            };
            let failed = |e: std::io::Error| Broken(format!("cannot send: {e}"));
            if backend.send_direct(&pieces).map_err(failed)?.is_none() {
                copy.resize(index(len), 0);
                chain
                    .read(memory, 0, copy)
                    .map_err(|_| Broken("a frame lies outside guest memory".into()))?;
                backend.send(copy).map_err(failed)?;
            }
            Ok(0)
        })
    }

    fn receive(&mut self) -> std::result::Result<(), Broken> {
        for _ in 0..BURST {
            if !self.attached() {
                break;
            }
            if self.waiting.is_none() {
                let got = self.pair.backend.receive(&mut self.frame);
                self.waiting = got.map_err(|e| Broken(format!("cannot receive: {e}")))?;
            }
            let Some(len) = self.waiting else { break };
            if self.wanted(len) && !self.deliver(len)? {
                break;
            }
            self.waiting = None;
        }
        self.pair.rx.announce(&self.side.memory)
    }

    /// Whether the back end's queue can be used.
    fn attached(&self) -> bool {
        self.pair.number < self.side.shared.pairs_on.load(Ordering::Acquire)
    }

    /// Whether the frame in `frame` is for the guest.
    fn wanted(&self, len: usize) -> bool {
        let frame = self.frame.get(usize::from(self.side.header)..len).unwrap_or(&[]);
        let shared = &self.side.shared;
        shared.up() && shared.filter.read().unwrap_or_else(PoisonError::into_inner).accepts(frame)
    }

    /// Gives a frame to the guest; false when there are no buffers.
    fn deliver(&mut self, len: usize) -> std::result::Result<bool, Broken> {
        let memory = &self.side.memory;
        let mut chains: Vec<Chain> = Vec::new();
        let mut room = 0;
        while room < len_u64(len) {
            if !self.side.merge && !chains.is_empty() {
                // Too long for the only buffer: dropped, as a real card would.
                self.pair.rx.unpop();
                return Ok(true);
            }
            match self.pair.rx.pop_or_wait(memory)? {
                Some(chain) if chain.writable_len() == 0 => {
                    return Err(Broken("a receive buffer that cannot be written".into()));
                }
                Some(chain) => {
                    room += chain.writable_len();
                    chains.push(chain);
                }
                None => {
                    for _ in &chains {
                        self.pair.rx.unpop();
                    }
                    return Ok(false);
                }
            }
        }
        if self.side.merge {
            put_le(&mut self.frame[10..12], len_u64(chains.len()));
        }
        let mut at = 0;
        for chain in &chains {
            let n = index(chain.writable_len()).min(len - at);
            if chain.write(memory, 0, &self.frame[at..at + n]).is_err() {
                return Err(Broken("a receive buffer lies outside guest memory".into()));
            }
            self.pair.rx.push(memory, chain.head, u32::try_from(n).unwrap_or(0))?;
            at += n;
        }
        Ok(true)
    }
}

impl Work for NetWork {
    fn name(&self) -> String {
        self.pair.name.clone()
    }
    fn sources(&self) -> Vec<i32> {
        let p = &self.pair;
        vec![p.tx.doorbell(), p.rx.doorbell(), p.backend.fd(), p.event.as_raw_fd()]
    }
    fn wants(&self, source: usize) -> bool {
        // While a frame waits for buffers, further frames do so in the back end.
        source != BACKEND || (self.waiting.is_none() && self.attached())
    }
    fn ready(&mut self, source: usize) -> std::result::Result<(), Broken> {
        match source {
            TX => self.transmit(),
            RX => {
                self.pair.rx.answer();
                self.receive()
            }
            EVENT => {
                let _ = self.pair.event.read();
                self.receive()
            }
            _ => self.receive(),
        }
    }
}
