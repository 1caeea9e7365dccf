//! virtio-net (section 5.1).
//!
//! * `work`: moving frames between a pair of queues and the back end.
//! * `control`: commands of the control queue.
//! * `filter`: which received frames the guest wants.
//!
//! One thread a pair of queues moves frames both ways, or the host's kernel does (vhost) and a thread only
//! passes interrupts on. A received frame goes into one buffer, or into several when the driver has
//! agreed to merge them. When the guest has no buffers, frames wait in the back end.
//!
//! With vhost the kernel delivers frames without asking the filter: a guest then gets what the
//! interface gets, as with QEMU.

mod control;
mod filter;
#[cfg(test)]
mod tests;
mod work;

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use vmm_sys_util::eventfd::EventFd;

use super::vhost::{Target, Vhost, VhostWork};
use super::{Activation, ActiveQueue, Kind, VirtioDevice, Work, feature};
use crate::irq::Message;
use crate::net::{NetBackend, QueueState};
use crate::num::{len_u64, put_le, read_within};
use crate::{Error, Result};
use control::Control;
use filter::RxFilter;
use work::{NetWork, Pair, Side};

const F_CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;
const F_CTRL_VQ: u64 = 1 << 17;
const F_CTRL_RX: u64 = 1 << 18;
const F_CTRL_VLAN: u64 = 1 << 19;
const F_CTRL_RX_EXTRA: u64 = 1 << 20;
const F_GUEST_ANNOUNCE: u64 = 1 << 21;
const F_MQ: u64 = 1 << 22;
const F_CTRL_MAC_ADDR: u64 = 1 << 23;
const GUEST_OFFLOADS: u64 = 1 << 1 | 1 << 7 | 1 << 8 | 1 << 9;
/// Status bits of the configuration.
const LINK_UP: u64 = 1;
const ANNOUNCE: u64 = 2;
/// Size of a queue unless the user wants another.
pub const QUEUE_SIZE: u16 = 256;

/// How a card is shown to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// Its name, for threads and messages.
    pub id: String,
    /// Its address.
    pub mac: [u8; 6],
    /// Requests of a queue, a power of two.
    pub queue_size: u16,
    /// Greatest frame that the guest should send (`host_mtu=`), 0 for what it likes.
    pub mtu: u16,
}

impl Default for NetConfig {
    fn default() -> Self {
        NetConfig {
            id: String::new(),
            mac: [0x52, 0x54, 0, 0x12, 0x34, 0x56],
            queue_size: QUEUE_SIZE,
            mtu: 0,
        }
    }
}

/// What the threads of a card share.
struct Shared {
    /// One a pair of queues.
    backends: Mutex<Vec<Box<dyn NetBackend>>>,
    link: AtomicBool,
    announce: AtomicBool,
    filter: RwLock<RxFilter>,
    mac: Mutex<[u8; 6]>,
    changed: Mutex<Option<Arc<dyn Message>>>,
    /// Rung when the link changes, or the number of pairs in use; one a pair of queues.
    link_events: Vec<EventFd>,
    /// Pairs in use: the first ones.
    pairs_on: AtomicUsize,
    /// Header length and accepted features, while active.
    active: Mutex<Option<(u8, u64)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn up(&self) -> bool {
        self.link.load(Ordering::Acquire)
    }

    fn config_changed(&self) {
        if let Some(c) = &*lock(&self.changed) {
            c.raise();
        }
    }

    /// Whether a pair is used now: its queue of the back end is attached, and the link is up.
    fn moves(&self, pair: usize) -> bool {
        pair < self.pairs_on.load(Ordering::Acquire) && self.up()
    }

    /// Frames arrive on the first `count` pairs only. Threads use a queue of the back end only while it is
    /// attached: its descriptor is in error otherwise.
    fn use_pairs(&self, count: usize) -> std::io::Result<()> {
        let mut backends = lock(&self.backends);
        for backend in backends.iter_mut().take(count) {
            backend.set_queue(QueueState::Attached)?;
        }
        self.pairs_on.store(count, Ordering::Release);
        self.link_events.iter().for_each(Message::raise);
        for backend in backends.iter_mut().skip(count) {
            backend.set_queue(QueueState::Detached)?;
        }
        Ok(())
    }
}

/// A network card.
pub struct Net {
    config: NetConfig,
    shared: Arc<Shared>,
    vhost: Vec<File>,
    pairs: usize,
    offloads: u64,
}

impl Net {
    /// A card in front of a back end, one handle a pair of queues (at least one). `vhost` has as many
    /// descriptors of the kernel's virtio-net, or none.
    ///
    /// # Errors
    /// When the numbers do not match, or the kernel's virtio-net lacks something.
    pub fn new(
        config: NetConfig,
        backends: Vec<Box<dyn NetBackend>>,
        vhost: Vec<File>,
    ) -> Result<Self> {
        let pairs = backends.len();
        if pairs == 0 || !(vhost.is_empty() || vhost.len() == pairs) {
            return Err(Error::invalid(format!(
                "{}: {} descriptors of vhost for {pairs} pairs of queues",
                config.id,
                vhost.len()
            )));
        }
        let offloads = backends[0].offloads();
        let mut link_events = Vec::new();
        for _ in 0..pairs {
            let event = EventFd::new(libc::EFD_NONBLOCK)
                .map_err(|e| Error::io(&e).context("cannot create an event descriptor"))?;
            link_events.push(event);
        }
        let shared = Arc::new(Shared {
            backends: Mutex::new(backends),
            link: AtomicBool::new(true),
            announce: AtomicBool::new(false),
            filter: RwLock::new(RxFilter::new(config.mac)),
            mac: Mutex::new(config.mac),
            changed: Mutex::default(),
            link_events,
            pairs_on: AtomicUsize::new(1),
            active: Mutex::default(),
        });
        shared.use_pairs(1)?;
        for file in &vhost {
            Vhost::new(file.try_clone()?)?;
        }
        Ok(Net { config, shared, vhost, pairs, offloads })
    }

    /// Plugs the cable in, or pulls it out (`set_link`).
    pub fn set_link(&self, up: bool) {
        if self.shared.link.swap(up, Ordering::AcqRel) != up {
            self.shared.link_events.iter().for_each(Message::raise);
            self.shared.config_changed();
        }
    }

    /// Whether the cable is in.
    pub fn link(&self) -> bool {
        self.shared.up()
    }

    /// The card's address; the guest may have changed it.
    pub fn mac(&self) -> [u8; 6] {
        *lock(&self.shared.mac)
    }

    /// Asks the guest to tell the network where it is now (after it was moved).
    pub fn announce(&self) {
        self.shared.announce.store(true, Ordering::Release);
        self.shared.config_changed();
    }

    fn work_of_pair(
        &self,
        pair: usize,
        rx: ActiveQueue,
        tx: ActiveQueue,
        side: &Side,
    ) -> Result<Box<dyn Work>> {
        let backend = lock(&self.shared.backends)
            .get(pair)
            .ok_or_else(|| Error::invalid("a pair of queues without a back end"))?
            .reopen()?;
        let name = format!("{}/net{pair}", self.config.id);
        let event = self.shared.link_events[pair].try_clone()?;
        let Some(file) = self.vhost.get(pair) else {
            let own = Pair { name, backend, rx, tx, event, number: pair };
            return Ok(Box::new(NetWork::new(own, side.clone())));
        };
        let fd = backend
            .for_vhost()
            .ok_or_else(|| Error::unsupported("this back end does not work with vhost"))?
            .try_clone_to_owned()?;
        let shared = self.shared.clone();
        let target = Target::Net { fd, event, up: Box::new(move || shared.moves(pair)) };
        let vhost = Vhost::new(file.try_clone()?)?;
        let work = VhostWork::new(name, vhost, target, vec![rx, tx], side.memory.clone())?
            .with_features(side.features);
        Ok(Box::new(work))
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> Kind {
        Kind { id: 1, name: "virtio-net", legacy_pci: 0x1000, class: (2, 0, 0) }
    }

    fn features(&self) -> u64 {
        let mut f = F_MAC | F_STATUS | F_MRG_RXBUF | F_CTRL_VQ | F_GUEST_ANNOUNCE | self.offloads;
        f |= F_CTRL_MAC_ADDR;
        if self.vhost.is_empty() {
            f |= F_CTRL_RX | F_CTRL_VLAN | F_CTRL_RX_EXTRA;
        }
        if self.offloads & GUEST_OFFLOADS != 0 {
            f |= F_CTRL_GUEST_OFFLOADS;
        }
        if self.pairs > 1 {
            f |= F_MQ;
        }
        if self.config.mtu > 0 {
            f |= F_MTU;
        }
        f
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![self.config.queue_size; 2 * self.pairs];
        sizes.push(64);
        sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut c = [0; 12];
        c[..6].copy_from_slice(&self.mac());
        let mut status = if self.shared.up() { LINK_UP } else { 0 };
        if self.shared.announce.load(Ordering::Acquire) {
            status |= ANNOUNCE;
        }
        put_le(&mut c[6..8], status);
        put_le(&mut c[8..10], len_u64(self.pairs));
        put_le(&mut c[10..12], self.config.mtu.into());
        read_within(&c, offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        // Only drivers that know no other way set the address here (section 5.1.4).
        let old = matches!(*lock(&self.shared.active), Some((_, features))
            if features & (F_CTRL_MAC_ADDR | feature::VERSION_1) == 0);
        let at = crate::num::index(offset);
        let mut mac = lock(&self.shared.mac);
        if let (true, Some(part)) = (old, mac.get_mut(at..at.saturating_add(data.len()))) {
            part.copy_from_slice(data);
            self.shared.filter.write().unwrap_or_else(PoisonError::into_inner).mac = *mac;
        }
    }

    fn activate(&self, mut activation: Activation) -> Result<Vec<Box<dyn Work>>> {
        let features = activation.features;
        let merge = features & F_MRG_RXBUF != 0;
        let header = if merge || features & feature::VERSION_1 != 0 { 12 } else { 10 };
        for backend in lock(&self.shared.backends).iter_mut() {
            backend.configure(header, features & GUEST_OFFLOADS)?;
        }
        *lock(&self.shared.active) = Some((header, features));
        *lock(&self.shared.changed) = Some(activation.config_changed);
        self.shared
            .filter
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .begin(features & F_CTRL_VLAN != 0);
        let side = Side {
            memory: activation.memory,
            shared: self.shared.clone(),
            header,
            merge,
            features,
        };
        // Section 5.1.2: where the control queue is depends on what was agreed upon.
        let pairs = if features & F_MQ != 0 { self.pairs } else { 1 };
        let mut take = |i: usize| activation.queues.get_mut(i).and_then(Option::take);
        let mut all: Vec<Box<dyn Work>> = Vec::new();
        for pair in 0..pairs {
            if let (Some(rx), Some(tx)) = (take(2 * pair), take(2 * pair + 1)) {
                all.push(self.work_of_pair(pair, rx, tx, &side)?);
            }
        }
        if let (Some(queue), true) = (take(2 * pairs), features & F_CTRL_VQ != 0) {
            let name = format!("{}/netctl", self.config.id);
            all.push(Box::new(Control::new(name, queue, side, pairs)));
        }
        Ok(all)
    }

    fn reset(&self) {
        *lock(&self.shared.changed) = None;
        *lock(&self.shared.active) = None;
        *lock(&self.shared.mac) = self.config.mac;
        self.shared.announce.store(false, Ordering::Release);
        *self.shared.filter.write().unwrap_or_else(PoisonError::into_inner) =
            RxFilter::new(self.config.mac);
        // Queues that cannot be turned off now were not turned on.
        let _ = self.shared.use_pairs(1);
    }
}
