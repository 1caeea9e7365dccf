//! virtio-console with one port (section 5.3, without the multiport feature).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::{Activation, ActiveQueue, Broken, Kind, VirtioDevice, Work};
use crate::chardev::FrontEnd;
use crate::devices::Output;
use crate::irq::Message;
use crate::mem::Memory;
use crate::num::{index, len_u64, put_le, read_within};
use crate::{Error, Result};

const F_SIZE: u64 = 1;
/// Most bytes that wait for the guest.
const BACKLOG: usize = 64 << 10;
/// Bytes taken from the guest at a time.
const PIECE: usize = 4096;

struct Shared {
    out: Mutex<Box<dyn Output>>,
    input: Mutex<VecDeque<u8>>,
    arrived: EventFd,
    size: Mutex<(u16, u16)>,
}

/// The device.
pub struct Console(Arc<Shared>);

impl Console {
    /// Characters of the guest go to `out`.
    pub fn new(out: Box<dyn Output>) -> Result<Self> {
        let arrived = EventFd::new(libc::EFD_NONBLOCK)
            .map_err(|e| Error::io(&e).context("cannot create an event descriptor"))?;
        Ok(Console(Arc::new(Shared {
            out: Mutex::new(out),
            input: Mutex::default(),
            arrived,
            size: Mutex::new((80, 25)),
        })))
    }

    /// Characters for the guest; returns how many were taken.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        let mut input = self.0.input.lock().unwrap_or_else(PoisonError::into_inner);
        let n = BACKLOG.saturating_sub(input.len()).min(bytes.len());
        input.extend(&bytes[..n]);
        self.0.arrived.raise();
        n
    }
}

impl FrontEnd for Console {
    fn receive(&self, bytes: &[u8]) -> usize {
        Console::receive(self, bytes)
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> Kind {
        Kind { id: 3, name: "virtio-serial", legacy_pci: 0x1003, class: (7, 0x80, 0) }
    }
    fn features(&self) -> u64 {
        F_SIZE
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![128, 128]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let (columns, rows) = *self.0.size.lock().unwrap_or_else(PoisonError::into_inner);
        let mut c = [0; 12];
        put_le(&mut c[0..2], columns.into());
        put_le(&mut c[2..4], rows.into());
        put_le(&mut c[4..8], 1);
        read_within(&c, offset, data);
    }
    fn activate(&self, mut activation: Activation) -> Result<Vec<Box<dyn Work>>> {
        let mut take = |i: usize| activation.queues.get_mut(i).and_then(Option::take);
        let (rx, tx) = (take(0), take(1));
        Ok(vec![Box::new(ConsoleWork {
            shared: self.0.clone(),
            rx,
            tx,
            memory: activation.memory,
        })])
    }
}

struct ConsoleWork {
    shared: Arc<Shared>,
    rx: Option<ActiveQueue>,
    tx: Option<ActiveQueue>,
    memory: Arc<Memory>,
}

impl ConsoleWork {
    fn transmit(&mut self) -> std::result::Result<(), Broken> {
        let (memory, shared) = (&self.memory, &self.shared);
        let Some(tx) = &mut self.tx else { return Ok(()) };
        tx.answer();
        tx.drain(memory, |chain| {
            let total = chain.readable_len();
            let mut buf = [0; PIECE];
            let mut at = 0;
            // A guest cannot keep the thread for ever with one enormous request.
            while at < total.min(len_u64(BACKLOG)) {
                let n = index(total - at).min(PIECE);
                if chain.read(memory, at, &mut buf[..n]).is_err() {
                    return Err(Broken("console output lies outside guest memory".into()));
                }
                shared.out.lock().unwrap_or_else(PoisonError::into_inner).put(&buf[..n]);
                at += len_u64(n);
            }
            Ok(0)
        })
    }

    fn receive(&mut self) -> std::result::Result<(), Broken> {
        let Some(rx) = &mut self.rx else { return Ok(()) };
        rx.answer();
        let _ = self.shared.arrived.read();
        let mut input = self.shared.input.lock().unwrap_or_else(PoisonError::into_inner);
        while !input.is_empty() {
            let Some(chain) = rx.pop_or_wait(&self.memory)? else { break };
            let n = input.len().min(index(chain.writable_len()));
            let bytes: Vec<u8> = input.drain(..n).collect();
            if chain.write(&self.memory, 0, &bytes).is_err() {
                return Err(Broken("a buffer for console input lies outside guest memory".into()));
            }
            rx.push(&self.memory, chain.head, u32::try_from(n).unwrap_or(0))?;
        }
        drop(input);
        rx.announce(&self.memory)
    }
}

impl Work for ConsoleWork {
    fn name(&self) -> String {
        "virtio-console".into()
    }
    fn sources(&self) -> Vec<i32> {
        use std::os::fd::AsRawFd;
        let bell = |q: &Option<ActiveQueue>| {
            q.as_ref().map_or(self.shared.arrived.as_raw_fd(), ActiveQueue::doorbell)
        };
        vec![bell(&self.tx), bell(&self.rx), self.shared.arrived.as_raw_fd()]
    }
    fn ready(&mut self, source: usize) -> std::result::Result<(), Broken> {
        if source == 0 { self.transmit() } else { self.receive() }
    }
}
