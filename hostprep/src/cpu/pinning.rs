//! A proposal which vCPU runs on which CPU.
//!
//! Rules: the first core of every node stays with the host; a guest stays on one node when it fits; it gets
//! whole cores, so that siblings never serve two guests; one vCPU a CPU; emulator threads run on the host's CPUs
//! of the same node.

use serde::Serialize;

use crate::host::Host;
use crate::units::CpuSet;
use crate::wanted::Wanted;

/// One guest's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GuestPlace {
    /// Guest number, from 1.
    pub guest: u64,
    /// Node it stays on; None when it spans nodes.
    pub node: Option<u32>,
    /// CPU of each vCPU.
    pub vcpus: Vec<u32>,
    /// CPUs of the emulator's other threads, as a list.
    pub emulator: String,
}

/// The whole proposal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Proposal {
    /// Guests that got a place.
    pub guests: Vec<GuestPlace>,
    /// CPUs for isolcpus=, as a list.
    pub isolate: String,
    /// CPUs that stay with the host, as a list.
    pub host: String,
    /// Guests that got none.
    pub unplaced: u64,
}

struct NodeRoom {
    node: u32,
    house: CpuSet,
    cores: Vec<CpuSet>,
}

/// Proposes places for the wanted guests.
pub fn propose(host: &Host, wanted: &Wanted) -> Proposal {
    let topology = host.topology();
    let mut rooms: Vec<NodeRoom> = topology
        .nodes
        .iter()
        .filter(|node| !node.cpus.is_empty())
        .map(|node| {
            let mut cores: Vec<CpuSet> = topology
                .core_sets()
                .into_iter()
                .filter(|core| core.0.first().is_some_and(|cpu| node.cpus.contains(*cpu)))
                .collect();
            let house = if cores.is_empty() { CpuSet::default() } else { cores.remove(0) };
            NodeRoom { node: node.id, house, cores }
        })
        .collect();
    let house: CpuSet = rooms.iter().flat_map(|room| room.house.0.iter().copied()).collect();
    let mut proposal = Proposal { host: house.to_string(), ..Proposal::default() };
    let mut isolate = CpuSet::default();
    let mut number = 0;
    let mut groups = wanted.guests.clone();
    // Large guests first: small ones fit into what is left.
    groups.sort_by_key(|guest| std::cmp::Reverse(guest.vcpus));
    for group in groups {
        let vcpus = usize::try_from(group.vcpus).unwrap_or(usize::MAX);
        for done in 0..group.count {
            number += 1;
            let Some((node, cpus)) = take(&mut rooms, vcpus) else {
                // Equal guests: where this one does not fit, the rest do not either.
                proposal.unplaced = proposal.unplaced.saturating_add(group.count - done);
                break;
            };
            isolate.0.extend(cpus.iter().copied());
            let emulator = node
                .and_then(|node| rooms.iter().find(|room| room.node == node))
                .map_or_else(|| house.to_string(), |room| room.house.to_string());
            let used = cpus.into_iter().take(vcpus).collect();
            proposal.guests.push(GuestPlace { guest: number, node, vcpus: used, emulator });
        }
    }
    proposal.isolate = isolate.to_string();
    proposal
}

/// Takes whole cores for `vcpus`: from the node with the tightest fit, else across nodes.
fn take(rooms: &mut [NodeRoom], vcpus: usize) -> Option<(Option<u32>, Vec<u32>)> {
    let capacity = |room: &NodeRoom| room.cores.iter().map(CpuSet::len).sum::<usize>();
    let fits = (0..rooms.len()).filter(|index| capacity(&rooms[*index]) >= vcpus);
    if let Some(best) = fits.min_by_key(|index| capacity(&rooms[*index])) {
        let node = rooms[best].node;
        let mut cpus = Vec::new();
        take_cores(&mut rooms[best], vcpus, &mut cpus);
        return Some((Some(node), cpus));
    }
    if rooms.iter().map(capacity).sum::<usize>() < vcpus {
        return None;
    }
    let mut cpus = Vec::new();
    for room in rooms.iter_mut() {
        take_cores(room, vcpus, &mut cpus);
    }
    Some((None, cpus))
}

fn take_cores(room: &mut NodeRoom, vcpus: usize, cpus: &mut Vec<u32>) {
    while cpus.len() < vcpus && !room.cores.is_empty() {
        cpus.extend(room.cores.remove(0).0);
    }
}

impl Proposal {
    /// As text, with the commands that follow from it.
    pub fn text(&self) -> String {
        use std::fmt::Write as _;
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(out, "host     CPUs {}", self.host);
        for place in &self.guests {
            let pairs: Vec<String> =
                place.vcpus.iter().enumerate().map(|(vcpu, cpu)| format!("{vcpu}={cpu}")).collect();
            let node =
                place.node.map_or_else(|| "spans nodes".to_owned(), |node| format!("node {node}"));
            let _ = writeln!(
                out,
                "guest {:<3} {node}: vCPU {}; emulator threads on {}",
                place.guest,
                pairs.join(" "),
                place.emulator
            );
        }
        if self.unplaced > 0 {
            let _ = writeln!(
                out,
                "{} guests get no CPUs of their own: leave those to the scheduler",
                self.unplaced
            );
        }
        if !self.isolate.is_empty() {
            let _ = writeln!(
                out,
                "isolate  rhostprep apply --isolate {}   (after a reboot)",
                self.isolate
            );
        }
        if let Some(place) = self.guests.first() {
            let pairs: Vec<String> = place
                .vcpus
                .iter()
                .enumerate()
                .map(|(vcpu, cpu)| format!("--vcpu {vcpu}={cpu}"))
                .collect();
            let _ = writeln!(
                out,
                "pin      rhostprep pin PID {} --emulator {}",
                pairs.join(" "),
                place.emulator
            );
        }
        out
    }
}
