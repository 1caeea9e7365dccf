//! How much swap and memory a set of guests needs.
//!
//! The sum of the field's guides: all guests plus what the host keeps for itself, minus the memory there is, is
//! what swap must cover; on top comes what the distribution recommends for the host alone.

use serde::Serialize;

use crate::host::Host;
use crate::units::{GIB, MIB, show_size};
use crate::wanted::{Guests, Wanted};

/// Memory a launcher needs beyond the guest's: a fixed part, and page tables (8 bytes for each 4 KiB, twice).
pub fn overhead(guests: &[Guests]) -> u64 {
    let one = |guest: &Guests| {
        let fixed = 64 * MIB + u64::from(guest.vcpus).saturating_mul(8 * MIB);
        fixed.saturating_add(guest.memory / 256)
    };
    guests.iter().map(|guest| guest.count.saturating_mul(one(guest))).fold(0, u64::saturating_add)
}

/// The sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Sum {
    /// Bytes of memory of the host.
    pub ram: u64,
    /// Kept for the host.
    pub reserve: u64,
    /// All guests.
    pub guests: u64,
    /// Guests + reserve - memory, at least 0.
    pub overcommit: u64,
    /// What the RHEL 5 and 6 guides recommend for the host itself (2, 4, 8 or 16 GiB by memory size).
    pub base_classic: u64,
    /// What RHEL 7 and later recommend: twice the memory up to 2 GiB, as much up to 8, 4 GiB at least above.
    pub base_current: u64,
}

impl Sum {
    /// Sums up.
    pub fn new(ram: u64, reserve: u64, guests: u64) -> Self {
        let overcommit = guests.saturating_add(reserve).saturating_sub(ram);
        // Firmware and kernel take a little, so a "32 GiB" host shows less: round up to whole GiB for the rules.
        let gib = ram.div_ceil(GIB);
        let base_classic = match gib {
            0..4 => 2,
            4..16 => 4,
            16..64 => 8,
            _ => 16,
        } * GIB;
        let base_current = match gib {
            0..=2 => ram.saturating_mul(2),
            3..=8 => ram,
            _ => 4 * GIB,
        };
        Self { ram, reserve, guests, overcommit, base_classic, base_current }
    }

    /// Swap by the classic rule.
    pub fn swap_classic(&self) -> u64 {
        self.overcommit.saturating_add(self.base_classic)
    }

    /// Swap by the current rule.
    pub fn swap_current(&self) -> u64 {
        self.overcommit.saturating_add(self.base_current)
    }
}

/// One node's hugepages for the planned guests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodePages {
    /// Node.
    pub node: u32,
    /// Its memory.
    pub memory: u64,
    /// Guests placed on it.
    pub guests: u64,
    /// Pages these need.
    pub pages: u64,
    /// Pages there now.
    pub configured: u64,
}

/// The whole answer of `rhostprep memory`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// The sum.
    pub sum: Sum,
    /// Guests as given: number, bytes.
    pub guests: Vec<(u64, u64)>,
    /// Percent of guest memory that same-page merging is trusted to save.
    pub ksm_share: u32,
    /// Swap configured now, compressed memory not counted.
    pub swap_now: u64,
    /// Swap lacking by the classic rule.
    pub swap_missing: u64,
    /// Launchers' own memory.
    pub overhead: u64,
    /// Bytes a hugepage.
    pub page: u64,
    /// Per-node hugepages.
    pub nodes: Vec<NodePages>,
    /// Guests that fit on no node whole.
    pub unplaced: u64,
}

impl MemoryPlan {
    /// Makes the plan. `ram` overrides the host's memory (sums for another machine).
    pub fn new(host: &Host, wanted: &Wanted, ksm_share: u32, ram: Option<u64>, page: u64) -> Self {
        let other_host = ram.is_some();
        let ram = ram.unwrap_or_else(|| host.meminfo().bytes("MemTotal"));
        let guest_memory = u128::from(wanted.guest_memory());
        let kept = guest_memory * u128::from(100 - ksm_share.min(100)) / 100;
        let sum = Sum::new(ram, wanted.reserve(), u64::try_from(kept).unwrap_or(u64::MAX));
        let swap_now =
            host.swaps().iter().filter(|swap| !swap.zram).map(|swap| swap.size).sum::<u64>();
        // Nodes are those of this host; they say nothing about another one.
        let (nodes, unplaced) =
            if other_host { (Vec::new(), 0) } else { place(host, wanted, page.max(4096)) };
        let needed = if sum.overcommit == 0 { 0 } else { sum.swap_classic() };
        Self {
            guests: wanted.guests.iter().map(|guest| (guest.count, guest.memory)).collect(),
            ksm_share,
            swap_now,
            swap_missing: needed.saturating_sub(swap_now),
            overhead: overhead(&wanted.guests),
            page,
            nodes,
            unplaced,
            sum,
        }
    }

    /// As text.
    pub fn text(&self) -> String {
        use std::fmt::Write as _;
        let mut out = String::new();
        let Sum { ram, reserve, guests, overcommit, .. } = self.sum;
        let terms: Vec<String> = self
            .guests
            .iter()
            .map(|(count, memory)| format!("{count} x {}", show_size(*memory)))
            .collect();
        let terms = if terms.is_empty() { "no guests".to_owned() } else { terms.join(" + ") };
        let shared = match self.ksm_share {
            0 => String::new(),
            share => format!(", less {share} % shared = {}", show_size(guests)),
        };
        // Writing to a String cannot fail.
        let mut line = |text: String| {
            let _ = writeln!(out, "{text}");
        };
        line(format!("guests        {terms}{shared}"));
        line(format!(
            "memory        {} here, {} kept for the host",
            show_size(ram),
            show_size(reserve)
        ));
        line(format!(
            "launchers     about {} on top of the guests' own memory",
            show_size(self.overhead)
        ));
        if overcommit == 0 {
            let room = ram.saturating_sub(reserve).saturating_sub(guests);
            line(format!("swap          not needed for guests; {} left", show_size(room)));
        } else {
            line(format!(
                "overcommit    {terms}{shared} + {} - {} = {}",
                show_size(reserve),
                show_size(ram),
                show_size(overcommit)
            ));
            line(format!(
                "swap          {} + {} = {}   (Red Hat's rule of RHEL 5 and 6 for the host itself)",
                show_size(overcommit),
                show_size(self.sum.base_classic),
                show_size(self.sum.swap_classic())
            ));
            line(format!(
                "              {} + {} = {}   (current rule)",
                show_size(overcommit),
                show_size(self.sum.base_current),
                show_size(self.sum.swap_current())
            ));
        }
        line(format!("configured    {} of swap", show_size(self.swap_now)));
        if self.swap_missing > 0 {
            line(format!("missing       {}", show_size(self.swap_missing)));
            line(format!(
                "to do         rhostprep apply --swap /var/swapfile={}M",
                self.swap_missing.div_ceil(MIB)
            ));
        } else {
            line("missing       nothing".to_owned());
        }
        for node in &self.nodes {
            line(format!(
                "hugepages     node {}: {} guests, {} pages of {} needed, {} there",
                node.node,
                node.guests,
                node.pages,
                show_size(self.page),
                node.configured
            ));
        }
        if self.unplaced > 0 {
            line(format!(
                "hugepages     {} guests fit on no node: hugepages cannot be swapped",
                self.unplaced
            ));
        }
        out
    }
}

/// Puts guests on nodes, largest first, each whole on the node with most room.
fn place(host: &Host, wanted: &Wanted, page: u64) -> (Vec<NodePages>, u64) {
    let topology = host.topology();
    let nodes = &topology.nodes;
    let share = wanted.reserve() / (nodes.len().max(1) as u64);
    let mut room: Vec<u64> = nodes.iter().map(|node| node.memory.saturating_sub(share)).collect();
    let mut out: Vec<NodePages> = nodes
        .iter()
        .map(|node| NodePages {
            node: node.id,
            memory: node.memory,
            guests: 0,
            pages: 0,
            configured: host
                .huge_pools(Some(node.id))
                .iter()
                .find(|pool| pool.page == page)
                .map_or(0, |pool| pool.total),
        })
        .collect();
    let mut groups = wanted.guests.clone();
    groups.sort_by_key(|guest| std::cmp::Reverse(guest.memory));
    let mut unplaced = 0_u64;
    for group in groups {
        let pages = group.memory.div_ceil(page);
        let bytes = pages.saturating_mul(page);
        // Far beyond any host: no need to place one by one.
        let mut left = group.count.min(100_000);
        while left > 0 {
            let best =
                (0..room.len()).max_by_key(|index| (room[*index], std::cmp::Reverse(*index)));
            let Some(best) = best.filter(|index| room[*index] >= bytes) else { break };
            room[best] -= bytes;
            out[best].guests += 1;
            out[best].pages = out[best].pages.saturating_add(pages);
            left -= 1;
        }
        unplaced =
            unplaced.saturating_add(left).saturating_add(group.count.saturating_sub(100_000));
    }
    (out, unplaced)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_guides() {
        let sum = Sum::new(32 * GIB, 4 * GIB, 64 * GIB);
        assert_eq!(sum.overcommit, 36 * GIB);
        assert_eq!(sum.swap_classic(), 44 * GIB);
        assert_eq!(sum.swap_current(), 40 * GIB);
    }

    #[test]
    fn no_overflow() {
        let sum = Sum::new(1, u64::MAX, u64::MAX);
        assert_eq!(sum.swap_classic(), u64::MAX);
    }
}
