//! A fake driver: plays the guest's side of registers and rings. For tests and fuzz targets.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::VirtioDevice;
use super::pci::{DEVICE, MODERN_BAR, NOTIFY, Settings, VirtioPci};
use crate::bus::Device;
use crate::irq::{RecordedLine, RecordedVectors};
use crate::mem::{Backend, Memory, MemoryConfig, build};
use crate::num::{get_le, len_u64};
use crate::pci::Function;

/// Where data buffers begin.
pub const DATA: u64 = 0x10_0000;
const RINGS: u64 = 0x1_0000;
const SIZE: u16 = 16;

/// A buffer for the device.
pub enum Buffer<'a> {
    /// To be read.
    Read(&'a [u8]),
    /// To be written.
    Write(u32),
}

/// A driver of one device.
pub struct Driver {
    /// The device behind its transport.
    pub pci: Arc<VirtioPci>,
    /// The guest's memory: 8 MiB.
    pub memory: Arc<Memory>,
    /// The pin of its interrupt.
    pub line: Arc<RecordedLine>,
    modern: Arc<dyn Device>,
    next_desc: Vec<u16>,
    avail: Vec<u16>,
    used: Vec<u16>,
    next_data: u64,
}

impl Driver {
    /// Sets a device up with the features it offers, minus `without`.
    pub fn new(device: Arc<dyn VirtioDevice>, without: u64) -> Self {
        let memory = Arc::new(build(&MemoryConfig::simple(8 << 20, Backend::default())).unwrap());
        let line = Arc::new(RecordedLine::default());
        let queues = device.queue_sizes().len();
        let pci = VirtioPci::new(
            device,
            Settings {
                memory: memory.clone(),
                vectors: Arc::new(RecordedVectors::default()),
                line: line.clone(),
                doorbells: None,
            },
        )
        .unwrap();
        let modern = pci.bar(MODERN_BAR);
        let d = Driver {
            pci,
            memory,
            line,
            modern,
            next_desc: vec![0; queues],
            avail: vec![0; queues],
            used: vec![0; queues],
            next_data: DATA,
        };
        d.set(20, 1, 0);
        d.set(20, 1, 3);
        for select in 0..2u32 {
            d.set(0, 4, select.into());
            let offered = d.get(4, 4);
            d.set(8, 4, select.into());
            d.set(12, 4, offered & !(without >> (32 * select)));
        }
        d.set(20, 1, 0xb);
        assert_eq!(d.get(20, 1), 0xb, "features refused");
        for q in 0..queues {
            d.set(22, 2, len_u64(q));
            d.set(24, 2, SIZE.into());
            for (i, ring) in Self::rings(q).into_iter().enumerate() {
                d.set(32 + 8 * len_u64(i), 8, ring);
            }
            d.set(28, 2, 1);
        }
        d.set(20, 1, 0xf);
        d
    }

    fn rings(q: usize) -> [u64; 3] {
        let base = RINGS + 0x4000 * len_u64(q);
        [base, base + 0x1000, base + 0x2000]
    }

    /// Writes a register.
    pub fn set(&self, offset: u64, len: usize, value: u64) {
        self.modern.write(offset, &value.to_le_bytes()[..len]);
    }

    /// Reads a register.
    pub fn get(&self, offset: u64, len: usize) -> u64 {
        let mut b = [0; 8];
        self.modern.read(offset, &mut b[..len]);
        get_le(&b[..len])
    }

    /// Reads the device's configuration.
    pub fn config(&self, offset: u64, len: usize) -> u64 {
        self.get(DEVICE + offset, len)
    }

    /// Stores a descriptor.
    pub fn descriptor(&self, q: usize, i: u16, at: u64, len: u32, flags: u16, next: u16) {
        let d = Self::rings(q)[0] + 16 * u64::from(i);
        self.memory.write_obj(at, GuestAddress(d)).unwrap();
        self.memory.write_obj(len, GuestAddress(d + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(d + 12)).unwrap();
        self.memory.write_obj(next, GuestAddress(d + 14)).unwrap();
    }

    /// Makes descriptor `head` available, and rings.
    pub fn offer(&mut self, q: usize, head: u16) {
        let avail = Self::rings(q)[1];
        let slot = avail + 4 + 2 * u64::from(self.avail[q] % SIZE);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.avail[q] = self.avail[q].wrapping_add(1);
        self.set_avail(q, self.avail[q]);
    }

    /// Offers descriptors `0..count`, and rings once.
    pub fn offer_all(&mut self, q: usize, count: u16) {
        for head in 0..count {
            let slot = Self::rings(q)[1] + 4 + 2 * u64::from(self.avail[q] % SIZE);
            self.memory.write_obj(head, GuestAddress(slot)).unwrap();
            self.avail[q] = self.avail[q].wrapping_add(1);
        }
        self.set_avail(q, self.avail[q]);
    }

    /// Sets the available index, and rings.
    pub fn set_avail(&self, q: usize, index: u16) {
        self.memory.write_obj(index, GuestAddress(Self::rings(q)[1] + 2)).unwrap();
        self.set(NOTIFY + 4 * len_u64(q), 2, len_u64(q));
    }

    /// Offers buffers as one request; returns their addresses.
    pub fn add(&mut self, q: usize, buffers: &[Buffer<'_>]) -> Vec<u64> {
        let first = self.next_desc[q];
        let mut places = Vec::new();
        for (n, buffer) in buffers.iter().enumerate() {
            let i = self.next_desc[q];
            self.next_desc[q] = (i + 1) % SIZE;
            let more = u16::from(n + 1 < buffers.len());
            let at = self.next_data;
            let (len, flags) = match buffer {
                Buffer::Read(bytes) => {
                    self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
                    (u32::try_from(bytes.len()).unwrap(), more)
                }
                Buffer::Write(len) => (*len, more | 2),
            };
            self.descriptor(q, i, at, len, flags, self.next_desc[q]);
            places.push(at);
            self.next_data += u64::from(len).next_multiple_of(64);
            if self.next_data > 6 << 20 {
                self.next_data = DATA;
            }
        }
        self.offer(q, first);
        places
    }

    /// How many requests of a queue have come back, modulo 65536.
    pub fn completed(&self, q: usize) -> u16 {
        self.memory.read_obj(GuestAddress(Self::rings(q)[2] + 2)).unwrap()
    }

    /// Waits for the next request to come back; returns its number and how many bytes were written.
    pub fn wait(&mut self, q: usize) -> (u32, u32) {
        let used = Self::rings(q)[2];
        let end = Instant::now() + Duration::from_secs(10);
        while self.memory.read_obj::<u16>(GuestAddress(used + 2)).unwrap() == self.used[q] {
            assert!(
                Instant::now() < end,
                "a request does not come back; status {:#x}",
                self.get(20, 1)
            );
            std::thread::sleep(Duration::from_micros(50));
        }
        let entry = used + 4 + 8 * u64::from(self.used[q] % SIZE);
        self.used[q] = self.used[q].wrapping_add(1);
        let word = |at| self.memory.read_obj::<u32>(GuestAddress(at)).unwrap();
        (word(entry), word(entry + 4))
    }

    /// Bytes of guest memory.
    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut b = vec![0; len];
        self.memory.read_slice(&mut b, GuestAddress(at)).unwrap();
        b
    }

    /// Waits until the device says that it needs a reset.
    pub fn wait_broken(&self) {
        let end = Instant::now() + Duration::from_secs(10);
        while self.get(20, 1) & 0x40 == 0 {
            assert!(Instant::now() < end, "the device does not ask for a reset");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
