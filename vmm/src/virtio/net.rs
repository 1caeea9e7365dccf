//! virtio-net with one pair of queues (section 5.1).
//!
//! One thread moves frames both ways. A received frame goes into one buffer, or into several when the
//! driver has agreed to merge them. When the guest has no buffers, frames wait in the back end.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Activation, ActiveQueue, Broken, Chain, Kind, VirtioDevice, Work, feature};
use crate::Result;
use crate::mem::Memory;
use crate::net::NetBackend;
use crate::num::{index, len_u64, put_le, read_within};

const F_MAC: u64 = 1 << 5;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;
const GUEST_OFFLOADS: u64 = 1 << 1 | 1 << 7 | 1 << 8 | 1 << 9;
/// A frame with segmentation offload and its header.
const FRAME: usize = 65_562;
/// Frames moved in one direction before the other gets its turn.
const BURST: usize = 256;

/// How a card is shown to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// Its name, for threads and messages.
    pub id: String,
    /// Its address.
    pub mac: [u8; 6],
}

/// Whether the cable is in.
type Link = Arc<Mutex<bool>>;

/// A network card.
pub struct Net {
    config: NetConfig,
    backend: Mutex<Box<dyn NetBackend>>,
    offloads: u64,
    link: Link,
    changed: Mutex<Option<Arc<dyn crate::irq::Message>>>,
}

impl Net {
    /// A card in front of `backend`.
    pub fn new(config: NetConfig, backend: Box<dyn NetBackend>) -> Self {
        let offloads = backend.offloads();
        Net {
            config,
            backend: Mutex::new(backend),
            offloads,
            link: Arc::new(Mutex::new(true)),
            changed: Mutex::default(),
        }
    }

    /// Plugs the cable in, or pulls it out (`set_link`).
    pub fn set_link(&self, up: bool) {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = up;
        if let Some(c) = &*self.changed.lock().unwrap_or_else(PoisonError::into_inner) {
            c.raise();
        }
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> Kind {
        Kind { id: 1, name: "virtio-net", legacy_pci: 0x1000, class: (2, 0, 0) }
    }
    fn features(&self) -> u64 {
        F_MAC | F_STATUS | F_MRG_RXBUF | self.offloads
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![256, 256]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut c = [0; 12];
        c[..6].copy_from_slice(&self.config.mac);
        put_le(&mut c[6..8], (*self.link.lock().unwrap_or_else(PoisonError::into_inner)).into());
        put_le(&mut c[8..10], 1);
        read_within(&c, offset, data);
    }
    fn activate(&self, mut activation: Activation) -> Result<Vec<Box<dyn Work>>> {
        let features = activation.features;
        let merge = features & F_MRG_RXBUF != 0;
        let long = merge || features & feature::VERSION_1 != 0;
        let header = if long { 12 } else { 10 };
        let mut backend = self.backend.lock().unwrap_or_else(PoisonError::into_inner).reopen()?;
        backend.configure(header, features & GUEST_OFFLOADS)?;
        *self.changed.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(activation.config_changed);
        let mut take = |i: usize| activation.queues.get_mut(i).and_then(Option::take);
        let (Some(rx), Some(tx)) = (take(0), take(1)) else { return Ok(Vec::new()) };
        Ok(vec![Box::new(NetWork {
            name: self.config.id.clone(),
            backend,
            rx,
            tx,
            memory: activation.memory,
            merge,
            frame: vec![0; FRAME],
            waiting: None,
            link: self.link.clone(),
        })])
    }
    fn reset(&self) {
        *self.changed.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

struct NetWork {
    name: String,
    backend: Box<dyn NetBackend>,
    rx: ActiveQueue,
    tx: ActiveQueue,
    memory: Arc<Memory>,
    merge: bool,
    frame: Vec<u8>,
    /// Bytes of a frame in `frame` that the guest has had no buffers for.
    waiting: Option<usize>,
    link: Link,
}

const TX: usize = 0;
const RX: usize = 1;
const BACKEND: usize = 2;

impl NetWork {
    fn up(&self) -> bool {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn transmit(&mut self) -> std::result::Result<(), Broken> {
        self.tx.answer();
        let up = self.up();
        let (memory, backend) = (&self.memory, &mut self.backend);
        let mut buf = vec![0; FRAME];
        self.tx.drain(memory, |chain| {
            let n = index(chain.readable_len()).min(FRAME);
            if chain.read(memory, 0, &mut buf[..n]).is_err() {
                return Err(Broken("a frame lies outside guest memory".into()));
            }
            if up {
                backend.send(&buf[..n]).map_err(|e| Broken(format!("cannot send: {e}")))?;
            }
            Ok(0)
        })
    }

    fn receive(&mut self) -> std::result::Result<(), Broken> {
        for _ in 0..BURST {
            if self.waiting.is_none() {
                let got = self.backend.receive(&mut self.frame);
                self.waiting = got.map_err(|e| Broken(format!("cannot receive: {e}")))?;
            }
            let Some(len) = self.waiting else { break };
            if self.up() && !self.deliver(len)? {
                break;
            }
            self.waiting = None;
        }
        self.rx.announce(&self.memory)
    }

    /// Gives a frame to the guest; false when there are no buffers.
    fn deliver(&mut self, len: usize) -> std::result::Result<bool, Broken> {
        let mut chains: Vec<Chain> = Vec::new();
        let mut room = 0;
        while room < len_u64(len) {
            if !self.merge && !chains.is_empty() {
                // Too long for the only buffer: dropped, as a real card would.
                self.rx.unpop();
                return Ok(true);
            }
            match self.rx.pop_or_wait(&self.memory)? {
                Some(chain) if chain.writable_len() == 0 => {
                    return Err(Broken("a receive buffer that cannot be written".into()));
                }
                Some(chain) => {
                    room += chain.writable_len();
                    chains.push(chain);
                }
                None => {
                    for _ in &chains {
                        self.rx.unpop();
                    }
                    return Ok(false);
                }
            }
        }
        if self.merge {
            put_le(&mut self.frame[10..12], len_u64(chains.len()));
        }
        let mut at = 0;
        for chain in &chains {
            let n = index(chain.writable_len()).min(len - at);
            if chain.write(&self.memory, 0, &self.frame[at..at + n]).is_err() {
                return Err(Broken("a receive buffer lies outside guest memory".into()));
            }
            self.rx.push(&self.memory, chain.head, u32::try_from(n).unwrap_or(0))?;
            at += n;
        }
        Ok(true)
    }
}

impl Work for NetWork {
    fn name(&self) -> String {
        format!("{}/net", self.name)
    }
    fn sources(&self) -> Vec<i32> {
        vec![self.tx.doorbell(), self.rx.doorbell(), self.backend.fd()]
    }
    fn wants(&self, source: usize) -> bool {
        // While a frame waits for buffers, further frames do so in the back end.
        source != BACKEND || self.waiting.is_none()
    }
    fn ready(&mut self, source: usize) -> std::result::Result<(), Broken> {
        match source {
            TX => self.transmit(),
            RX => {
                self.rx.answer();
                self.receive()
            }
            _ => self.receive(),
        }
    }
}
