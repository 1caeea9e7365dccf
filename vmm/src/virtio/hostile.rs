//! Drivers that do whatever they like: random registers, random rings, random times. No device may panic,
//! hang or keep its thread from ending.
//!
//! The test here rolls dice; the fuzz targets let a fuzzer choose.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::VirtioDevice;
use super::balloon::Balloon;
use super::blk::{Blk, BlkConfig, Offer};
use super::console::Console;
use super::driver::Driver;
use super::net::{Net, NetConfig};
use super::pci::{LEGACY_BAR, MODERN_BAR, MSIX_BAR};
use super::rng::{Rng, RngConfig};
use crate::block::{BlockBackend, Unmap};
use crate::devices::{Captured, Lifecycle};
use crate::net::NetBackend;
use crate::num::{index, len_u64};
use crate::pci::Function;

/// Chooses what a driver does next.
pub trait Whim {
    /// Any number.
    fn roll(&mut self) -> u64;

    /// A number below `n`.
    fn below(&mut self, n: u64) -> u64 {
        self.roll() % n
    }

    /// Numbers that tend to be special.
    fn value(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => self.below(16),
            3 => 1 << self.below(64),
            4 => (1u64 << self.below(64)).wrapping_sub(1),
            5 => 0x1_0000 + self.below(0x1_0000),
            6 => (8 << 20) - self.below(64),
            _ => self.roll(),
        }
    }
}

/// A fuzzer's input: each choice below 256 takes a byte.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take(&mut self, n: usize) -> u64 {
        let (now, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        crate::num::get_le(now)
    }
}

impl Whim for Input<'_> {
    fn roll(&mut self) -> u64 {
        self.take(8)
    }
    fn below(&mut self, n: u64) -> u64 {
        let bytes = match n {
            0..=0x100 => 1,
            0x101..=0x1_0000 => 2,
            _ => 8,
        };
        self.take(bytes) % n
    }
}

/// Which device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// A disk over plain bytes.
    Blk,
    /// A disk over a temporary qcow2 overlay.
    BlkImage,
    /// The same, with rings that take requests to the kernel where the host has such a thing.
    BlkRing,
    /// A network card.
    Net,
    /// The balloon.
    Balloon,
    /// A console.
    Console,
    /// Random numbers.
    Rng,
}

impl Victim {
    /// All of them.
    pub const ALL: [Victim; 7] = [
        Victim::Blk,
        Victim::BlkImage,
        Victim::BlkRing,
        Victim::Net,
        Victim::Balloon,
        Victim::Console,
        Victim::Rng,
    ];

    fn device(self) -> Arc<dyn VirtioDevice> {
        let config =
            BlkConfig { id: "d".into(), queues: 2, discard: Offer::Yes, ..BlkConfig::default() };
        match self {
            Victim::Blk => Arc::new(Blk::new(config, Arc::new(Disk(Mutex::new(vec![0; 1 << 20]))))),
            Victim::BlkImage => Arc::new(Blk::new(config, Arc::new(overlay()))),
            Victim::BlkRing => {
                let mut blk = Blk::new(config, Arc::new(overlay()));
                // Without io_uring threads serve it: the ring's own tests say that they skip.
                let _ = blk.give_rings();
                Arc::new(blk)
            }
            Victim::Net => {
                let cable = || -> Box<dyn NetBackend> {
                    let event = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
                    Box::new(Echo { frames: Arc::default(), event })
                };
                let cables = vec![cable(), cable()];
                Arc::new(Net::new(NetConfig::default(), cables, Vec::new()).unwrap())
            }
            Victim::Balloon => {
                Arc::new(Balloon::new(8 << 20, true).unwrap().with_deflate_on_oom(true))
            }
            Victim::Console => {
                let console = Console::new(Box::new(Captured::default())).unwrap();
                console.receive(&[b'x'; 4096]);
                Arc::new(console)
            }
            Victim::Rng => Arc::new(Rng::open(&RngConfig::default()).unwrap()),
        }
    }
}

/// An overlay over a file that no name leads to any more.
fn overlay() -> Arc<imgcore::graph::Node> {
    use imgcore::graph::open::{OpenOptions, OpenRequest, open};
    static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let n = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let folder = std::env::temp_dir();
    let path = folder.join(format!("hostile-{}-{n}", std::process::id()));
    std::fs::write(&path, vec![0x5a; 1 << 20]).unwrap();
    let request = OpenRequest::file(path.to_string_lossy()).with_driver(Some("raw"));
    let below = open(&request, &OpenOptions::default());
    std::fs::remove_file(&path).unwrap();
    imgcore::graph::temporary::overlay(&folder, below.unwrap()).unwrap()
}

/// Lets a fuzzer's input drive a device, then takes it down in every way.
pub fn drive(victim: Victim, input: &[u8]) {
    let mut whim = Input(input);
    let mut d = Driver::new(victim.device(), whim.take(1) << 28);
    while !whim.0.is_empty() {
        act(&mut d, &mut whim);
    }
    take_down(&d);
}

fn take_down(d: &Driver) {
    d.pci.pause().unwrap();
    d.pci.resume().unwrap();
    d.pci.reset();
    d.pci.shut_down().unwrap();
}

struct Disk(Mutex<Vec<u8>>);

impl BlockBackend for Disk {
    fn len(&self) -> u64 {
        len_u64(self.0.lock().unwrap().len())
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&self, at: u64, buf: &mut [u8]) -> crate::Result<()> {
        buf.copy_from_slice(&self.0.lock().unwrap()[index(at)..index(at) + buf.len()]);
        Ok(())
    }
    fn write(&self, at: u64, buf: &[u8]) -> crate::Result<()> {
        self.0.lock().unwrap()[index(at)..index(at) + buf.len()].copy_from_slice(buf);
        Ok(())
    }
    fn flush(&self) -> crate::Result<()> {
        Ok(())
    }
    fn discard(&self, at: u64, len: u64) -> crate::Result<()> {
        assert!(at + len <= self.len());
        Ok(())
    }
    fn write_zeroes(&self, at: u64, len: u64, _unmap: Unmap) -> crate::Result<()> {
        assert!(at + len <= self.len());
        Ok(())
    }
    fn close(&self) -> crate::Result<()> {
        Ok(())
    }
}

/// Sends back what it is sent.
#[derive(Clone)]
struct Echo {
    frames: Arc<Mutex<VecDeque<Vec<u8>>>>,
    event: Arc<EventFd>,
}

impl NetBackend for Echo {
    fn fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
    fn receive(&mut self, buf: &mut [u8]) -> std::io::Result<Option<usize>> {
        let Some(frame) = self.frames.lock().unwrap().pop_front() else {
            let _ = self.event.read();
            return Ok(None);
        };
        let n = frame.len().min(buf.len());
        buf[..n].copy_from_slice(&frame[..n]);
        Ok((n > 0).then_some(n))
    }
    fn send(&mut self, frame: &[u8]) -> std::io::Result<bool> {
        let mut frames = self.frames.lock().unwrap();
        if frames.len() < 64 {
            frames.push_back(frame.to_vec());
            let _ = self.event.write(1);
        }
        Ok(true)
    }
    fn configure(&mut self, _header_len: u8, _offloads: u64) -> std::io::Result<()> {
        Ok(())
    }
    fn offloads(&self) -> u64 {
        0
    }
    fn reopen(&self) -> std::io::Result<Box<dyn NetBackend>> {
        Ok(Box::new(self.clone()))
    }
}

/// One thing that a driver may do.
fn act(d: &mut Driver, dice: &mut impl Whim) {
    let queues = 4;
    match dice.below(10) {
        // A register of any BAR, any width.
        0 => {
            let bar = [LEGACY_BAR, MSIX_BAR, MODERN_BAR][index(dice.below(3))];
            let offset = match dice.below(4) {
                0 => dice.below(64),
                1 => 0x1000 * dice.below(4) + dice.below(64),
                _ => dice.below(0x4000),
            };
            let len = [1, 2, 4, 8][index(dice.below(4))];
            let value = dice.value().to_le_bytes();
            d.pci.bar(bar).write(offset, &value[..len]);
            let mut back = [0; 8];
            d.pci.bar(bar).read(offset, &mut back[..len]);
        }
        // A descriptor.
        1..=4 => {
            let q = index(dice.below(queues));
            let i = crate::num::low16(dice.below(16));
            let (at, len) = (dice.value(), crate::num::low32(dice.value()));
            let len = if dice.below(4) == 0 { len } else { len % 5000 };
            let at = if dice.below(3) == 0 { at } else { 0x10_0000 + dice.below(0x10_0000) };
            let flags = crate::num::low16(dice.below(8));
            d.descriptor(q, i, at, len, flags, crate::num::low16(dice.below(17)));
        }
        // Request headers where descriptors point.
        5 => {
            let at = 0x10_0000 + dice.below(0x10_0000);
            for i in 0..4 {
                let word = if i == 0 { dice.below(15) } else { dice.below(4096) };
                d.memory.write_obj(word, GuestAddress(at + 8 * i)).unwrap();
            }
        }
        // Available ring entries and indexes.
        6..=8 => {
            let q = index(dice.below(queues));
            let avail = 0x1_1000 + 0x4000 * len_u64(q);
            let entry = crate::num::low16(dice.below(18));
            d.memory.write_obj(entry, GuestAddress(avail + 4 + 2 * dice.below(17))).unwrap();
            let now: u16 = d.memory.read_obj(GuestAddress(avail + 2)).unwrap();
            let step = if dice.below(20) == 0 { dice.value() } else { dice.below(4) };
            d.set_avail(q, now.wrapping_add(crate::num::low16(step)));
        }
        // Configuration space.
        _ => {
            let value = dice.value().to_le_bytes();
            d.pci.config_write(crate::num::low16(dice.below(256)), &value[..4]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::*;

    /// xorshift64*, so that a failure repeats.
    struct Dice(u64);

    impl Whim for Dice {
        fn roll(&mut self) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
        }
    }

    #[test]
    fn random_drivers_do_no_harm() {
        static PANICS: AtomicUsize = AtomicUsize::new(0);
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let thread = std::thread::current();
            let name = thread.name().unwrap_or_default();
            // Threads of devices have names that tests do not have.
            if name.starts_with("virtio") || name.contains("/q") || name.contains("/net") {
                PANICS.fetch_add(1, Ordering::SeqCst);
            }
            before(info);
        }));
        let began = Instant::now();
        for seed in 1..40u64 {
            for (n, victim) in Victim::ALL.into_iter().enumerate() {
                let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + len_u64(n));
                let mut d = Driver::new(victim.device(), 0);
                for _ in 0..300 {
                    act(&mut d, &mut dice);
                }
                take_down(&d);
                assert_eq!(PANICS.load(Ordering::SeqCst), 0, "{victim:?}, seed {seed}");
            }
        }
        assert!(began.elapsed() < Duration::from_secs(60), "a device keeps its thread busy");
    }

    #[test]
    fn inputs_of_a_fuzzer_are_taken_to_their_end() {
        for victim in Victim::ALL {
            drive(victim, &[]);
            drive(victim, &[1; 300]);
        }
    }
}
