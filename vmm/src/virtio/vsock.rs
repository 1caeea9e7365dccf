//! virtio-vsock (section 5.10) through the host's `/dev/vhost-vsock`: sockets between guest and host.
//!
//! The kernel serves the first two queues. The third carries one event only, "the connection of the
//! device was lost", which happens when a guest is moved to another host; its buffers wait here.

use std::fs::File;

use super::vhost::{Target, Vhost, VhostWork};
use super::{Activation, Kind, VirtioDevice, Work};
use crate::num::read_within;
use crate::{Error, Result};

/// Addresses below belong to the hypervisor and the host; the last stands for "any".
const CIDS: std::ops::Range<u64> = 3..0xffff_ffff;

/// The device.
pub struct Vsock {
    file: File,
    cid: u64,
}

impl Vsock {
    /// For a guest with the address `cid`, on an open `/dev/vhost-vsock`.
    ///
    /// # Errors
    /// When the address is reserved or taken.
    pub fn new(file: File, cid: u64) -> Result<Self> {
        if !CIDS.contains(&cid) {
            return Err(Error::invalid(format!(
                "guest-cid={cid}: addresses of guests are 3 to {}",
                CIDS.end - 1
            )));
        }
        Vhost::new(file.try_clone()?)?.set_guest_cid(cid)?;
        Ok(Vsock { file, cid })
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> Kind {
        Kind { id: 19, name: "vhost-vsock", legacy_pci: 0x1012, class: (7, 0x80, 0) }
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![128; 3]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_within(&self.cid.to_le_bytes(), offset, data);
    }

    fn activate(&self, activation: Activation) -> Result<Vec<Box<dyn Work>>> {
        let mut queues = activation.queues.into_iter();
        let (Some(Some(rx)), Some(Some(tx))) = (queues.next(), queues.next()) else {
            return Ok(Vec::new());
        };
        let device = Vhost::new(self.file.try_clone()?)?;
        let work = VhostWork::new(
            "vhost-vsock".into(),
            device,
            Target::Vsock,
            vec![rx, tx],
            activation.memory,
        )?;
        Ok(vec![Box::new(work.with_features(activation.features))])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_first() {
        let file = || File::open("/dev/null").unwrap();
        for cid in [0, 2, 0xffff_ffff, u64::MAX] {
            let e = Vsock::new(file(), cid).err().unwrap();
            assert!(e.report().contains("addresses of guests"), "{}", e.report());
        }
        assert!(Vsock::new(file(), 3).err().unwrap().report().contains("no vhost device"));
    }
}
