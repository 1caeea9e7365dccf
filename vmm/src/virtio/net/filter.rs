//! Which received frames the guest wants (section 5.1.6.5).

use crate::num::index;

/// Addresses that are kept of each kind; with more, all of that kind are let through.
const MOST_ADDRESSES: usize = 64;
const BROADCAST: [u8; 6] = [0xff; 6];
/// Type of a frame with a VLAN tag (IEEE 802.1Q).
const VLAN: [u8; 2] = [0x81, 0x00];

/// Modes that the driver turns on and off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Modes {
    /// Everything.
    pub promiscuous: bool,
    /// All frames to groups.
    pub all_multicast: bool,
    /// All frames to single stations.
    pub all_unicast: bool,
    /// No frames to groups.
    pub no_multicast: bool,
    /// No frames to single stations.
    pub no_unicast: bool,
    /// No frames to everybody.
    pub no_broadcast: bool,
}

/// Addresses of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Table {
    /// None.
    #[default]
    Empty,
    /// These.
    Of(Vec<[u8; 6]>),
    /// More than are kept.
    TooMany,
}

impl Table {
    /// From consecutive addresses.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let all: Vec<[u8; 6]> =
            bytes.chunks_exact(6).filter_map(|a| <[u8; 6]>::try_from(a).ok()).collect();
        match all.len() {
            0 => Table::Empty,
            1..=MOST_ADDRESSES => Table::Of(all),
            _ => Table::TooMany,
        }
    }

    fn has(&self, address: [u8; 6]) -> bool {
        match self {
            Table::Empty => false,
            Table::Of(all) => all.contains(&address),
            Table::TooMany => true,
        }
    }
}

/// The filter of a card.
#[derive(Clone, Debug)]
pub struct RxFilter {
    /// The card's own address.
    pub mac: [u8; 6],
    /// Modes.
    pub modes: Modes,
    /// Further single stations.
    pub unicast: Table,
    /// Groups.
    pub multicast: Table,
    /// One bit a VLAN; `None` lets all through.
    vlans: Option<Box<[u64; 64]>>,
}

impl RxFilter {
    /// Lets everything through: drivers that know no filter get what they are used to.
    pub fn new(mac: [u8; 6]) -> Self {
        let modes = Modes { promiscuous: true, ..Modes::default() };
        RxFilter { mac, modes, unicast: Table::Empty, multicast: Table::Empty, vlans: None }
    }

    /// The driver begins; with a VLAN filter nothing tagged gets through until it is named.
    pub fn begin(&mut self, vlan_filter: bool) {
        self.vlans = vlan_filter.then(|| Box::new([0; 64]));
    }

    /// A VLAN is wanted, or no longer. False when there is no such VLAN.
    pub fn set_vlan(&mut self, id: u16, wanted: bool) -> bool {
        let Some(vlans) = &mut self.vlans else { return false };
        let Some(word) = vlans.get_mut(usize::from(id) / 64) else { return false };
        let bit = 1 << (id % 64);
        *word = if wanted { *word | bit } else { *word & !bit };
        true
    }

    /// Whether a frame (without its virtio header) is for the guest.
    pub fn accepts(&self, frame: &[u8]) -> bool {
        if self.modes.promiscuous {
            return true;
        }
        let Some(to) = frame.first_chunk::<6>() else { return false };
        if let (Some(vlans), Some(tag)) = (&self.vlans, frame.get(12..16))
            && tag[..2] == VLAN
        {
            let id = (u64::from(tag[2]) << 8 | u64::from(tag[3])) & 0xfff;
            if vlans[index(id / 64)] >> (id % 64) & 1 == 0 {
                return false;
            }
        }
        let m = &self.modes;
        if *to == BROADCAST {
            !m.no_broadcast
        } else if to[0] & 1 == 1 {
            !m.no_multicast && (m.all_multicast || self.multicast.has(*to))
        } else {
            !m.no_unicast && (m.all_unicast || *to == self.mac || self.unicast.has(*to))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(to: [u8; 6], tag: Option<u16>) -> Vec<u8> {
        let mut f = to.to_vec();
        f.extend([2; 6]);
        if let Some(t) = tag {
            f.extend(VLAN);
            f.extend(t.to_be_bytes());
        }
        f.extend([8, 0, 1, 2]);
        f
    }

    #[test]
    fn modes_tables_and_vlans() {
        let (mac, other, group) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], [1, 0, 0x5e, 0, 0, 1]);
        let mut f = RxFilter::new(mac);
        f.begin(true);
        assert!(f.accepts(&frame(other, Some(7))), "promiscuous at first");
        f.modes.promiscuous = false;
        let to = |f: &RxFilter, a| f.accepts(&frame(a, None));
        assert_eq!([mac, other, group, BROADCAST].map(|a| to(&f, a)), [true, false, false, true]);
        f.unicast = Table::from_bytes(&other);
        f.multicast = Table::from_bytes(&group);
        assert!(to(&f, other) && to(&f, group));
        f.multicast = Table::from_bytes(&[9; 6 * 65]);
        assert_eq!(f.multicast, Table::TooMany);
        assert!(to(&f, group));
        f.modes = Modes { no_multicast: true, no_unicast: true, no_broadcast: true, ..f.modes };
        assert_eq!([mac, other, group, BROADCAST].map(|a| to(&f, a)), [false; 4]);
        f.modes = Modes { all_unicast: true, all_multicast: true, ..Modes::default() };
        assert!(to(&f, [4; 6]) && to(&f, [5; 6]));
        assert!(!f.accepts(&frame(mac, Some(0x2007))));
        assert!(f.set_vlan(7, true));
        assert!(f.accepts(&frame(mac, Some(0x2007))));
        assert!(f.set_vlan(7, false) && !f.set_vlan(4096, true));
        assert!(!f.accepts(&frame(mac, Some(7))));
        assert!(!f.accepts(&[1, 2, 3]));
    }
}
