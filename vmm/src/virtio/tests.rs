//! The small devices, driven by a fake driver.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use super::VirtioDevice;
use super::balloon::Balloon;
use super::console::Console;
use super::driver::{Buffer, Driver};
use super::net::{Net, NetConfig};
use super::rng::{Quota, Rng, RngConfig};
use crate::devices::Captured;
use crate::net::NetBackend;

#[test]
fn rng_gives_different_bytes() {
    let mut d = Driver::new(Arc::new(Rng::open(&RngConfig::default()).unwrap()), 0);
    let at = d.add(0, &[Buffer::Write(32), Buffer::Write(32)]);
    assert_eq!(d.wait(0).1, 64);
    assert_ne!(d.bytes(at[0], 32), d.bytes(at[1], 32));
    // A request for gigabytes gets a part.
    d.descriptor(0, 5, 0x10_0000, u32::MAX, 2, 0);
    d.offer(0, 5);
    d.wait(0);
}

/// A driver from before virtio 1.0: registers in ports, rings one after the other from a page on.
#[test]
fn an_old_driver_uses_the_legacy_registers() {
    use super::pci::LEGACY_BAR;
    use crate::pci::Function;
    use vm_memory::{Bytes, GuestAddress};
    let d = Driver::new(Arc::new(Rng::open(&RngConfig::default()).unwrap()), 0);
    let bar = d.pci.bar(LEGACY_BAR);
    let get = |offset: u64, len: usize| {
        let mut b = [0; 8];
        bar.read(offset, &mut b[..len]);
        u64::from_le_bytes(b)
    };
    let set = |offset: u64, value: u64, len: usize| {
        bar.write(offset, &value.to_le_bytes()[..len]);
    };
    set(18, 0, 1);
    set(18, 3, 1);
    assert_eq!(get(0, 4) >> 28 & 3, 3, "indirect descriptors and event index are offered");
    set(4, 0xffff_ffff, 4);
    assert_eq!(get(4, 4), get(0, 4), "only what was offered can be taken");
    set(4, 0, 4);
    set(14, 0, 2);
    let size = get(12, 2);
    assert_eq!((size, get(8, 4)), (64, 0));
    set(8, 0x300, 4);
    assert_eq!(get(8, 4), 0x300);
    set(18, 7, 1);
    // One buffer of 16 bytes; the available ring follows the 64 descriptors, the used ring the next page.
    let (desc, avail, used) = (0x30_0000, 0x30_0000 + 16 * size, 0x30_1000);
    d.memory.write_obj(0x40_0000u64, GuestAddress(desc)).unwrap();
    d.memory.write_obj(16u32, GuestAddress(desc + 8)).unwrap();
    d.memory.write_obj(2u16, GuestAddress(desc + 12)).unwrap();
    d.memory.write_obj(1u16, GuestAddress(avail + 2)).unwrap();
    set(16, 0, 2);
    for _ in 0..5000 {
        if d.memory.read_obj::<u16>(GuestAddress(used + 2)).unwrap() == 1 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert_eq!(d.memory.read_obj::<u32>(GuestAddress(used + 8)).unwrap(), 16);
    assert_ne!(d.bytes(0x40_0000, 16), [0; 16]);
    assert_eq!(get(19, 1), 1, "interrupt status");
    assert_eq!(get(19, 1), 0, "cleared by reading");
    // Out of reach: the device says so instead of working.
    set(18, 0, 1);
    set(18, 3, 1);
    set(8, 0xffff_ffff, 4);
    set(18, 7, 1);
    assert_eq!(get(18, 1) & 0x40, 0x40);
}

#[test]
fn console_both_ways() {
    let out = Captured::default();
    let console = Arc::new(Console::new(Box::new(out.clone())).unwrap());
    let mut d = Driver::new(console.clone(), 0);
    d.add(1, &[Buffer::Read(b"hello "), Buffer::Read(b"host")]);
    d.wait(1);
    assert_eq!(out.text(), "hello host");
    assert_eq!(console.receive(b"early"), 5);
    let at = d.add(0, &[Buffer::Write(3)]);
    assert_eq!(d.wait(0).1, 3);
    assert_eq!(d.bytes(at[0], 3), b"ear");
    let at = d.add(0, &[Buffer::Write(10)]);
    assert_eq!(d.wait(0).1, 2);
    assert_eq!(d.bytes(at[0], 2), b"ly");
    assert_eq!(console.receive(&vec![0; 1 << 20]), 64 << 10);
}

#[test]
fn balloon_drops_pages_and_tells_sizes() {
    let balloon = Arc::new(Balloon::new(8 << 20, true).unwrap());
    let mut d = Driver::new(balloon.clone(), 0);
    assert_eq!(d.config(0, 4), 0);
    balloon.set_guest_memory(6 << 20).unwrap();
    assert!(balloon.set_guest_memory(9 << 20).is_err());
    assert_eq!(d.config(0, 4), 512);
    assert!(d.line.rises() > 0, "no interrupt for the configuration");
    use vm_memory::{Bytes, GuestAddress};
    for page in [0x300u64, 0x301, 0x302, 0x303] {
        d.memory.write_obj(9u8, GuestAddress(page << 12)).unwrap();
    }
    let numbers: Vec<u8> =
        [0x300u32, 0x301, u32::MAX].iter().flat_map(|n| n.to_le_bytes()).collect();
    d.add(0, &[Buffer::Read(&numbers)]);
    d.wait(0);
    assert_eq!(
        (d.bytes(0x30_0000, 1), d.bytes(0x30_1000, 1), d.bytes(0x30_2000, 1)),
        (vec![0], vec![0], vec![9])
    );
    d.add(1, &[Buffer::Read(&numbers[..4])]);
    d.wait(1);
    // Free page reporting: the buffer itself is dropped.
    d.descriptor(3, 0, 0x30_3000, 4096, 2, 0);
    d.offer(3, 0);
    d.wait(3);
    assert_eq!(d.bytes(0x30_3000, 1), [0]);
    d.set(super::pci::DEVICE + 4, 4, 256);
    assert_eq!(balloon.guest_memory(), 7 << 20);
    let mut stats = 4u16.to_le_bytes().to_vec();
    stats.extend_from_slice(&12345u64.to_le_bytes());
    d.add(2, &[Buffer::Read(&stats)]);
    for _ in 0..1000 {
        if !balloon.stats().is_empty() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert_eq!(balloon.stats(), [(4, 12345)]);
}

/// A cable whose other end is the test.
#[derive(Clone)]
struct Cable {
    to_guest: Arc<Mutex<VecDeque<Vec<u8>>>>,
    from_guest: Arc<Mutex<Vec<Vec<u8>>>>,
    event: Arc<EventFd>,
}

impl NetBackend for Cable {
    fn fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
    fn receive(&mut self, buf: &mut [u8]) -> std::io::Result<Option<usize>> {
        let mut q = self.to_guest.lock().unwrap();
        let Some(frame) = q.pop_front() else {
            let _ = self.event.read();
            return Ok(None);
        };
        buf[..12].fill(0);
        buf[12..12 + frame.len()].copy_from_slice(&frame);
        Ok(Some(12 + frame.len()))
    }
    fn send(&mut self, frame: &[u8]) -> std::io::Result<bool> {
        self.from_guest.lock().unwrap().push(frame.to_vec());
        Ok(true)
    }
    fn configure(&mut self, header_len: u8, _offloads: u64) -> std::io::Result<()> {
        assert_eq!(header_len, 12);
        Ok(())
    }
    fn offloads(&self) -> u64 {
        0
    }
    fn reopen(&self) -> std::io::Result<Box<dyn NetBackend>> {
        Ok(Box::new(self.clone()))
    }
}

fn card(without: u64) -> (Driver, Cable, Arc<Net>) {
    let cable = Cable {
        to_guest: Arc::default(),
        from_guest: Arc::default(),
        event: Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()),
    };
    let config = NetConfig { id: "n0".into(), ..NetConfig::default() };
    let net = Arc::new(Net::new(config, vec![Box::new(cable.clone())], Vec::new()).unwrap());
    (Driver::new(net.clone(), without), cable, net)
}

#[test]
fn frames_go_both_ways() {
    let (mut d, cable, net) = card(0);
    assert_eq!(d.config(0, 6), 0x5634_1200_5452);
    assert_eq!(d.config(6, 2), 1);
    d.add(1, &[Buffer::Read(&[0; 12]), Buffer::Read(b"frame")]);
    d.wait(1);
    assert_eq!(cable.from_guest.lock().unwrap()[0][12..], *b"frame");
    // Two buffers for one frame: 12 + 5 bytes into 10 + 10; the guest has only one at first.
    let a = d.add(0, &[Buffer::Write(10)]);
    cable.to_guest.lock().unwrap().push_back(b"hello".to_vec());
    cable.event.write(1).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    let b = d.add(0, &[Buffer::Write(10)]);
    assert_eq!((d.wait(0).1, d.wait(0).1), (10, 7));
    assert_eq!(d.bytes(b[0], 2), [2, 0], "number of merged buffers");
    assert_eq!(d.bytes(b[0] + 2, 5), b"hello");
    assert_eq!(d.bytes(a[0], 10), [0; 10]);
    net.set_link(false);
    assert_eq!(d.config(6, 2), 0);
    d.add(1, &[Buffer::Read(&[0; 12]), Buffer::Read(b"lost")]);
    d.wait(1);
    assert_eq!(cable.from_guest.lock().unwrap().len(), 1);
}

#[test]
fn without_merging_a_long_frame_is_dropped() {
    let (mut d, cable, _) = card(1 << 15);
    let at = d.add(0, &[Buffer::Write(20)]);
    cable.to_guest.lock().unwrap().extend([vec![1; 100], vec![2; 8]]);
    cable.event.write(1).unwrap();
    assert_eq!(d.wait(0).1, 20);
    assert_eq!(d.bytes(at[0] + 12, 8), [2; 8]);
}

#[test]
fn a_quota_of_random_bytes_is_kept() {
    let period = std::time::Duration::from_millis(50);
    let quota = Some(Quota { bytes: 100, period });
    let rng = Rng::open(&RngConfig { quota, ..RngConfig::default() }).unwrap();
    let mut d = Driver::new(Arc::new(rng), 0);
    let start = std::time::Instant::now();
    d.add(0, &[Buffer::Write(64)]);
    d.add(0, &[Buffer::Write(64)]);
    d.add(0, &[Buffer::Write(64)]);
    assert_eq!((d.wait(0).1, d.wait(0).1), (64, 36), "the second gets what is left");
    assert_eq!(d.wait(0).1, 64);
    assert!(start.elapsed() >= period, "the third waits for the next period");
    let e = Rng::open(&RngConfig { source: "/no/such".into(), quota: None }).unwrap_err();
    assert!(e.report().contains("/no/such"), "{}", e.report());
}

#[test]
fn the_balloon_asks_for_figures_and_offers_what_it_was_told_to() {
    let balloon = Arc::new(Balloon::new(8 << 20, false).unwrap());
    let mut d = Driver::new(balloon.clone(), 0);
    assert_eq!(balloon.features() & 1 << 2, 0);
    let oom = Balloon::new(8 << 20, true).unwrap().with_deflate_on_oom(true);
    assert_eq!(oom.features() & 0x26, 0x26);
    let stat = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
    d.add(2, &[Buffer::Read(&stat(4, 1))]);
    while balloon.stats().is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    balloon.request_stats();
    d.wait(2);
    d.add(2, &[Buffer::Read(&stat(4, 2))]);
    while balloon.stats() != [(4, 2)] {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
