//! virtio-balloon (section 5.5): the guest gives pages back and takes them again; free page reporting.
//!
//! A page in the balloon is dropped on the host (MADV_DONTNEED, or a hole in a file); when the guest uses
//! it again it finds zeroes. Pages of 4 KiB only are dropped: parts of huge pages would do harm.

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::chain::Span;
use super::{Activation, ActiveQueue, Broken, Chain, Kind, VirtioDevice, Work};
use crate::irq::Message;
use crate::mem::Memory;
use crate::mem::discard::discard;
use crate::num::{get_le, index, len_u64, low32, put_le, read_within};
use crate::{Error, Result};

const F_STATS: u64 = 1 << 1;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_REPORTING: u64 = 1 << 5;
const PAGE: u64 = 4096;

/// What the guest says about its memory (section 5.5.6.4): tag and bytes (or a count).
pub type Stats = Vec<(u16, u64)>;

#[derive(Default)]
struct State {
    /// Pages that the balloon should have.
    target: u32,
    /// Pages that it has, as the guest says.
    actual: u32,
    changed: Option<Arc<dyn Message>>,
    stats: Stats,
    watcher: Option<Watcher>,
}

/// Told how many bytes the guest has left, whenever the guest says so. Called from vCPU threads.
pub type Watcher = Arc<dyn Fn(u64) + Send + Sync>;

/// The device.
pub struct Balloon {
    state: Arc<Mutex<State>>,
    memory_len: u64,
    reporting: bool,
    deflate_on_oom: bool,
    ask: Arc<EventFd>,
}

impl Balloon {
    /// For a guest with `memory_len` bytes; with free page reporting if `reporting`.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new(memory_len: u64, reporting: bool) -> Result<Self> {
        let ask = EventFd::new(libc::EFD_NONBLOCK)
            .map_err(|e| Error::io(&e).context("cannot create an event descriptor"))?;
        let ask = Arc::new(ask);
        Ok(Balloon { state: Arc::default(), memory_len, reporting, deflate_on_oom: false, ask })
    }

    /// Whether the guest takes pages back by itself before it kills processes (`deflate-on-oom=`).
    #[must_use]
    pub fn with_deflate_on_oom(self, deflate_on_oom: bool) -> Self {
        Balloon { deflate_on_oom, ..self }
    }

    /// Asks the guest for newer figures; they come when it gets round to it.
    pub fn request_stats(&self) {
        self.ask.raise();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest should have this many bytes left.
    ///
    /// # Errors
    /// When it has fewer in all.
    pub fn set_guest_memory(&self, bytes: u64) -> Result<()> {
        let pages = self.memory_len.checked_sub(bytes).ok_or_else(|| {
            Error::invalid(format!(
                "the guest has {} MiB of memory, the balloon cannot make them {} MiB",
                self.memory_len >> 20,
                bytes >> 20
            ))
        })? / PAGE;
        let mut state = self.lock();
        state.target = low32(pages);
        if let Some(changed) = &state.changed {
            changed.raise();
        }
        Ok(())
    }

    /// Bytes that the guest has left, as far as it has said.
    pub fn guest_memory(&self) -> u64 {
        self.memory_len.saturating_sub(u64::from(self.lock().actual) * PAGE)
    }

    /// Who is told of changes.
    pub fn watch(&self, watcher: Watcher) {
        self.lock().watcher = Some(watcher);
    }

    /// What the guest last said about its memory.
    pub fn stats(&self) -> Stats {
        self.lock().stats.clone()
    }
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> Kind {
        Kind { id: 5, name: "virtio-balloon", legacy_pci: 0x1002, class: (0, 0xff, 0) }
    }
    fn features(&self) -> u64 {
        let offered = [(self.deflate_on_oom, F_DEFLATE_ON_OOM), (self.reporting, F_REPORTING)];
        offered.iter().filter(|o| o.0).fold(F_STATS, |all, o| all | o.1)
    }
    fn queue_sizes(&self) -> Vec<u16> {
        // Inflate, deflate, statistics, reporting (the third queue of free page hints is not offered, so
        // reporting takes its number).
        vec![128; if self.reporting { 4 } else { 3 }]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        let mut c = [0; 16];
        put_le(&mut c[0..4], state.target.into());
        put_le(&mut c[4..8], state.actual.into());
        read_within(&c, offset, data);
    }
    fn write_config(&self, offset: u64, data: &[u8]) {
        if offset == 4 && data.len() == 4 {
            let watcher = {
                let mut state = self.lock();
                state.actual = low32(get_le(data));
                state.watcher.clone()
            };
            if let Some(tell) = watcher {
                tell(self.guest_memory());
            }
        }
    }
    fn activate(&self, activation: Activation) -> Result<Vec<Box<dyn Work>>> {
        self.lock().changed = Some(activation.config_changed);
        Ok(vec![Box::new(BalloonWork {
            state: self.state.clone(),
            queues: activation.queues,
            memory: activation.memory,
            stats_request: None,
            ask: self.ask.clone(),
        })])
    }
    fn reset(&self) {
        let mut state = self.lock();
        state.actual = 0;
        state.changed = None;
        state.stats.clear();
    }
}

struct BalloonWork {
    state: Arc<Mutex<State>>,
    queues: Vec<Option<ActiveQueue>>,
    memory: Arc<Memory>,
    /// The buffer by which the guest waits to be asked again.
    stats_request: Option<u16>,
    /// Rung when newer figures are wanted.
    ask: Arc<EventFd>,
}

/// The pages whose numbers are in a request, as ranges.
pub fn pages(memory: &Memory, chain: &Chain) -> Option<Vec<Span>> {
    /// More page numbers than any driver sends (256).
    const MOST: u64 = 64 << 10;
    let mut bytes = vec![0; index(chain.readable_len().min(4 * MOST) & !3)];
    chain.read(memory, 0, &mut bytes).ok()?;
    let mut all: Vec<Span> = Vec::new();
    for number in bytes.chunks(4).map(get_le) {
        let at = number * PAGE;
        match all.last_mut() {
            Some(s) if s.at.0 + u64::from(s.len) == at && u64::from(s.len) < 1 << 30 => {
                s.len += low32(PAGE);
            }
            _ => all.push(Span { at: vm_memory::GuestAddress(at), len: low32(PAGE) }),
        }
    }
    Some(all)
}

impl BalloonWork {
    fn statistics(&mut self) -> std::result::Result<(), Broken> {
        let Some(queue) = self.queues.get_mut(2).and_then(Option::as_mut) else { return Ok(()) };
        queue.answer();
        while let Some(chain) = queue.pop_or_wait(&self.memory)? {
            let mut bytes = vec![0; index(chain.readable_len().min(10 * 64))];
            if chain.read(&self.memory, 0, &mut bytes).is_ok() {
                let entry = |e: &[u8]| (crate::num::low16(get_le(&e[..2])), get_le(&e[2..]));
                let stats = bytes.chunks_exact(10).map(entry).collect();
                self.state.lock().unwrap_or_else(PoisonError::into_inner).stats = stats;
            }
            // Kept: giving it back is the question for newer figures.
            if let Some(old) = self.stats_request.replace(chain.head) {
                queue.push(&self.memory, old, 0)?;
            }
        }
        queue.announce(&self.memory)
    }
}

impl BalloonWork {
    /// Gives the buffer back: that is the question.
    fn ask_for_stats(&mut self) -> std::result::Result<(), Broken> {
        let _ = self.ask.read();
        let Some(queue) = self.queues.get_mut(2).and_then(Option::as_mut) else { return Ok(()) };
        if let Some(buffer) = self.stats_request.take() {
            queue.push(&self.memory, buffer, 0)?;
            queue.announce(&self.memory)?;
        }
        Ok(())
    }
}

impl Work for BalloonWork {
    fn name(&self) -> String {
        "virtio-balloon".into()
    }
    fn sources(&self) -> Vec<i32> {
        let bells = self.queues.iter().flatten().map(ActiveQueue::doorbell);
        bells.chain([self.ask.as_raw_fd()]).collect()
    }
    fn ready(&mut self, source: usize) -> std::result::Result<(), Broken> {
        let present = self.queues.iter().enumerate().filter(|(_, q)| q.is_some()).map(|(i, _)| i);
        let Some(i) = present.clone().nth(source) else { return self.ask_for_stats() };
        if i == 2 {
            return self.statistics();
        }
        let memory = &self.memory;
        let Some(queue) = self.queues.get_mut(i).and_then(Option::as_mut) else { return Ok(()) };
        queue.answer();
        queue.drain(memory, |chain| {
            let given_back = match i {
                0 => pages(memory, chain).unwrap_or_default(),
                // Deflating needs nothing: the page comes back when it is touched.
                1 => Vec::new(),
                _ => chain.writable.to_vec(),
            };
            for span in given_back {
                // Outside guest memory, or memory that cannot be dropped: nothing happens.
                let _ = discard(memory, span.at, len_u64(index(span.len.into())));
            }
            Ok(0)
        })
    }
}
