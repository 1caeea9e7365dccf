//! The control queue and several pairs of queues, driven by a fake driver.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};

use super::*;
use crate::devices::Lifecycle;
use crate::virtio::driver::{Buffer, Driver};

/// One queue of a back end whose other end is the test.
#[derive(Clone)]
struct Cable {
    to_guest: Arc<Mutex<VecDeque<Vec<u8>>>>,
    from_guest: Arc<Mutex<Vec<Vec<u8>>>>,
    event: Arc<EventFd>,
    log: Arc<Mutex<Vec<String>>>,
    number: usize,
}

impl NetBackend for Cable {
    fn fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
    fn receive(&mut self, buf: &mut [u8]) -> std::io::Result<Option<usize>> {
        let Some(frame) = self.to_guest.lock().unwrap().pop_front() else {
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
    fn configure(&mut self, _header_len: u8, offloads: u64) -> std::io::Result<()> {
        self.log.lock().unwrap().push(format!("{} offloads {offloads:#x}", self.number));
        Ok(())
    }
    fn offloads(&self) -> u64 {
        1 | 1 << 1 | 1 << 7
    }
    fn set_queue(&mut self, state: QueueState) -> std::io::Result<()> {
        self.log.lock().unwrap().push(format!("{} {state:?}", self.number));
        Ok(())
    }
    fn reopen(&self) -> std::io::Result<Box<dyn NetBackend>> {
        Ok(Box::new(self.clone()))
    }
}

fn card(pairs: usize, without: u64) -> (Driver, Vec<Cable>, Arc<Net>) {
    let log: Arc<Mutex<Vec<String>>> = Arc::default();
    let cables: Vec<Cable> = (0..pairs)
        .map(|number| Cable {
            to_guest: Arc::default(),
            from_guest: Arc::default(),
            event: Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()),
            log: log.clone(),
            number,
        })
        .collect();
    let backends = cables.iter().map(|c| -> Box<dyn NetBackend> { Box::new(c.clone()) }).collect();
    let config = NetConfig { id: "n0".into(), mtu: 9000, ..NetConfig::default() };
    let net = Arc::new(Net::new(config, backends, Vec::new()).unwrap());
    (Driver::new(net.clone(), without), cables, net)
}

/// Sends a control command; returns the answer.
fn command(d: &mut Driver, queue: usize, class: u8, command: u8, data: &[u8]) -> u8 {
    let at = d.add(queue, &[Buffer::Read(&[class, command]), Buffer::Read(data), Buffer::Write(1)]);
    d.wait(queue);
    d.bytes(at[2], 1)[0]
}

/// Sends a frame to the guest after one that it surely gets; returns whether it arrives.
fn arrives(d: &mut Driver, cable: &Cable, frame: &[u8]) -> bool {
    let first = d.add(0, &[Buffer::Write(200)]);
    let second = [0xff; 30];
    cable.to_guest.lock().unwrap().extend([frame.to_vec(), second.to_vec()]);
    cable.event.write(1).unwrap();
    d.wait(0);
    let got = d.bytes(first[0] + 12, frame.len()) == frame;
    if got {
        // Room for the second one.
        d.add(0, &[Buffer::Write(200)]);
        d.wait(0);
    }
    got
}

#[test]
fn filters_follow_the_control_queue() {
    let (mut d, cables, net) = card(1, 0);
    let cable = &cables[0];
    let mac = net.mac();
    let to = |mac: [u8; 6]| [mac.to_vec(), vec![1; 20]].concat();
    let other = [2, 0, 0, 0, 0, 9];
    assert!(arrives(&mut d, cable, &to(other)), "promiscuous at first");
    assert_eq!(command(&mut d, 2, 0, 0, &[0]), 0);
    assert!(!arrives(&mut d, cable, &to(other)));
    assert!(arrives(&mut d, cable, &to(mac)));
    let table = [&1u32.to_le_bytes()[..], &other, &0u32.to_le_bytes()].concat();
    assert_eq!(command(&mut d, 2, 1, 0, &table), 0);
    assert!(arrives(&mut d, cable, &to(other)));
    let new = [0x52, 0x54, 0, 1, 1, 1];
    assert_eq!(command(&mut d, 2, 1, 1, &new), 0);
    assert_eq!((net.mac(), d.config(0, 6)), (new, 0x0101_0100_5452));
    assert!(!arrives(&mut d, cable, &to(mac)));
    let tagged = [&new[..], &[1; 6], &[0x81, 0, 0, 5], &[1; 20]].concat();
    assert!(!arrives(&mut d, cable, &tagged));
    assert_eq!(command(&mut d, 2, 2, 0, &[5, 0]), 0);
    assert!(arrives(&mut d, cable, &tagged));
    for (class, cmd, data) in [
        (0, 9, &[1][..]),
        (0, 0, &[]),
        (1, 0, &[9, 0, 0, 0]),
        (1, 1, &[1]),
        (9, 0, &[0]),
        (4, 0, &[2, 0]),
    ] {
        assert_eq!(command(&mut d, 2, class, cmd, data), 1, "{class} {cmd}");
    }
    net.announce();
    assert_eq!((d.config(6, 2), d.config(10, 2)), (3, 9000));
    assert_eq!(command(&mut d, 2, 3, 0, &[]), 0);
    assert_eq!(d.config(6, 2), 1);
    d.pci.reset();
    assert_eq!(net.mac(), mac);
}

#[test]
fn pairs_are_turned_on_by_the_driver() {
    let (mut d, cables, _) = card(3, 0);
    assert_eq!(d.config(8, 2), 3);
    let log = || std::mem::take(&mut *cables[0].log.lock().unwrap());
    assert_eq!(log()[..3], ["0 Attached", "1 Detached", "2 Detached"]);
    assert_eq!(command(&mut d, 6, 4, 0, &[2, 0]), 0);
    assert_eq!(log(), ["0 Attached", "1 Attached", "2 Detached"]);
    assert_eq!(command(&mut d, 6, 4, 0, &[4, 0]), 1);
    assert_eq!(command(&mut d, 6, 4, 0, &[0, 0]), 1);
    for q in [1, 3, 5] {
        d.add(q, &[Buffer::Read(&[0; 12]), Buffer::Read(b"frame")]);
        d.wait(q);
    }
    assert!(cables.iter().all(|c| c.from_guest.lock().unwrap().len() == 1));
    assert_eq!(command(&mut d, 6, 5, 0, &(1u64 << 1).to_le_bytes()), 0);
    assert_eq!(log(), ["0 offloads 0x2", "1 offloads 0x2", "2 offloads 0x2"]);
    assert_eq!(command(&mut d, 6, 5, 0, &(1u64 << 8).to_le_bytes()), 1, "was not agreed upon");
    // Without multiqueue the control queue is the third.
    let (mut d, _, _) = card(3, F_MQ);
    assert_eq!(command(&mut d, 2, 0, 0, &[1]), 0);
}

#[test]
fn a_frame_that_cannot_be_one_is_dropped() {
    let (mut d, cables, _) = card(1, 0);
    d.add(1, &[Buffer::Read(&[0; 5])]);
    d.wait(1);
    d.descriptor(1, 5, 0x10_0000, 70_000, 0, 0);
    d.offer(1, 5);
    d.wait(1);
    assert!(cables[0].from_guest.lock().unwrap().is_empty());
    d.add(2, &[Buffer::Read(&[0, 0, 1])]);
    d.wait_broken();
}

#[test]
fn a_tap_interface_with_several_queues_serves_all_pairs() {
    use crate::net::config::TapConfig;
    let config = TapConfig { queues: 2, ..TapConfig::default() };
    let opened = match crate::net::open::tap(&config) {
        Ok(opened) => opened,
        Err(e) => {
            eprintln!("SKIPPED a real tap interface: {}", e.report());
            return;
        }
    };
    let net = Arc::new(Net::new(NetConfig::default(), opened.queues, Vec::new()).unwrap());
    let mut d = Driver::new(net, 0);
    let send_on = |d: &mut Driver, q: usize| {
        d.add(q, &[Buffer::Read(&[0; 12]), Buffer::Read(&[0xff; 60])]);
        d.wait(q);
    };
    for count in [1u8, 2, 1, 2] {
        assert_eq!(command(&mut d, 4, 4, 0, &[count, 0]), 0);
        // Frames on a pair that is off are dropped; nothing breaks.
        send_on(&mut d, 1);
        send_on(&mut d, 3);
    }
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(d.get(20, 1), 0xf, "no thread has given up");
}
