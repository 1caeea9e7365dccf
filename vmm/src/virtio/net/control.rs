//! Commands of the control queue (section 5.1.6.5).

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::filter::Table;
use super::work::Side;
use super::{GUEST_OFFLOADS, lock};
use crate::num::{get_le, index};
use crate::virtio::{ActiveQueue, Broken, Chain, Work};

/// Longest command that is looked at: the largest table of addresses that anybody sends is much shorter.
const MOST: u64 = 64 << 10;
const OK: u8 = 0;
const ERROR: u8 = 1;

mod class {
    pub const RX: u8 = 0;
    pub const MAC: u8 = 1;
    pub const VLAN: u8 = 2;
    pub const ANNOUNCE: u8 = 3;
    pub const MQ: u8 = 4;
    pub const GUEST_OFFLOADS: u8 = 5;
}

/// Serves the control queue.
pub struct Control {
    name: String,
    queue: ActiveQueue,
    side: Side,
    pairs: usize,
}

impl Control {
    /// For a card with so many pairs of queues in use at most.
    pub fn new(name: String, queue: ActiveQueue, side: Side, pairs: usize) -> Self {
        Control { name, queue, side, pairs }
    }
}

impl Work for Control {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn sources(&self) -> Vec<i32> {
        vec![self.queue.doorbell()]
    }

    fn ready(&mut self, _source: usize) -> std::result::Result<(), Broken> {
        self.queue.answer();
        let (side, pairs) = (&self.side, self.pairs);
        self.queue.drain(&side.memory, |chain| {
            let ack = match read_command(side, chain) {
                Some(command) => carry_out(side, pairs, &command),
                None => ERROR,
            };
            chain
                .write(&side.memory, 0, &[ack])
                .map_err(|_| Broken("a control command has no room for its answer".into()))?;
            Ok(1)
        })
    }
}

fn read_command(side: &Side, chain: &Chain) -> Option<Vec<u8>> {
    if chain.readable_len() > MOST {
        return None;
    }
    let mut bytes = vec![0; index(chain.readable_len())];
    chain.read(&side.memory, 0, &mut bytes).ok()?;
    Some(bytes)
}

/// Carries a command out: class, command, data.
fn carry_out(side: &Side, pairs: usize, command: &[u8]) -> u8 {
    let [class, command, data @ ..] = command else { return ERROR };
    let shared = &side.shared;
    let filter = || shared.filter.write().unwrap_or_else(PoisonError::into_inner);
    let done = match (*class, *command) {
        (class::RX, mode) => match data {
            [on, ..] => set_mode(&mut filter().modes, mode, on & 1 == 1),
            [] => false,
        },
        (class::MAC, 0) => match tables(data) {
            Some((unicast, multicast)) => {
                let mut f = filter();
                (f.unicast, f.multicast) = (unicast, multicast);
                true
            }
            None => false,
        },
        (class::MAC, 1) => match data.first_chunk::<6>() {
            Some(mac) if data.len() == 6 => {
                *lock(&shared.mac) = *mac;
                filter().mac = *mac;
                true
            }
            _ => false,
        },
        (class::VLAN, command @ 0..=1) => match data {
            [a, b, ..] => filter().set_vlan(u16::from_le_bytes([*a, *b]), command == 0),
            _ => false,
        },
        (class::ANNOUNCE, 0) => {
            shared.announce.store(false, Ordering::Release);
            true
        }
        (class::MQ, 0) => match data {
            [a, b, ..] => {
                let wanted = usize::from(u16::from_le_bytes([*a, *b]));
                (1..=pairs).contains(&wanted) && shared.use_pairs(wanted).is_ok()
            }
            _ => false,
        },
        (class::GUEST_OFFLOADS, 0) => match data.first_chunk::<8>() {
            Some(bits) => set_offloads(side, u64::from_le_bytes(*bits)),
            None => false,
        },
        _ => false,
    };
    if done { OK } else { ERROR }
}

fn set_mode(modes: &mut super::filter::Modes, mode: u8, on: bool) -> bool {
    let place = match mode {
        0 => &mut modes.promiscuous,
        1 => &mut modes.all_multicast,
        2 => &mut modes.all_unicast,
        3 => &mut modes.no_multicast,
        4 => &mut modes.no_unicast,
        5 => &mut modes.no_broadcast,
        _ => return false,
    };
    *place = on;
    true
}

/// Two tables, each with the number of its addresses in front.
fn tables(data: &[u8]) -> Option<(Table, Table)> {
    let one = |data: &[u8]| -> Option<(Table, usize)> {
        let count = index(get_le(data.get(..4)?));
        let end = count.checked_mul(6)?.checked_add(4)?;
        Some((Table::from_bytes(data.get(4..end)?), end))
    };
    let (unicast, end) = one(data)?;
    let (multicast, _) = one(&data[end..])?;
    Some((unicast, multicast))
}

fn set_offloads(side: &Side, wanted: u64) -> bool {
    // Only what was agreed upon can be turned on again.
    let allowed = side.features & GUEST_OFFLOADS;
    wanted & !allowed == 0
        && lock(&side.shared.backends)
            .iter_mut()
            .all(|b| b.configure(side.header, wanted & allowed).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_cut_where_they_say() {
        let mut data = 1u32.to_le_bytes().to_vec();
        data.extend([1; 6]);
        data.extend(0u32.to_le_bytes());
        assert_eq!(tables(&data), Some((Table::Of(vec![[1; 6]]), Table::Empty)));
        assert_eq!(tables(&data[..13]), None);
        assert_eq!(tables(&[0xff; 8]), None);
    }
}
