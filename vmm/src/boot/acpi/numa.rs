//! SRAT and SLIT: which memory and which processors belong together, and how far apart they are.

use super::table;
use crate::cpu::Topology;
use crate::mem::{MemoryConfig, layout};
use crate::num::{len_u64, low8, put_le};

/// 5.2.16. vCPUs that no node has named belong to the first one.
pub fn srat(memory: &MemoryConfig, topology: &Topology) -> Vec<u8> {
    let mut body = vec![0; 12];
    body[0] = 1;
    for cpu in 0..topology.max_cpus {
        let node = memory.nodes.iter().position(|n| n.cpus.contains(&cpu)).unwrap_or(0);
        let apic = low8(topology.apic_id(cpu).into());
        let domain = u32::try_from(node).unwrap_or(0).to_le_bytes();
        body.extend_from_slice(&[0, 16, domain[0], apic, 1, 0, 0, 0, 0]);
        body.extend_from_slice(&domain[1..]);
        body.extend_from_slice(&[0; 4]);
    }
    let mut before = 0;
    for (node, part) in memory.nodes.iter().enumerate() {
        for piece in layout::place(before, part.size) {
            let mut e = [0; 40];
            e[0] = 1;
            e[1] = 40;
            put_le(&mut e[2..6], len_u64(node));
            put_le(&mut e[8..16], piece.guest);
            put_le(&mut e[16..24], piece.len);
            e[28] = 1;
            body.extend_from_slice(&e);
        }
        before += part.size;
    }
    table(*b"SRAT", 3, &body)
}

/// 5.2.17.
pub fn slit(memory: &MemoryConfig) -> Vec<u8> {
    let n = memory.nodes.len();
    let mut body = len_u64(n).to_le_bytes().to_vec();
    for from in 0..n {
        body.extend((0..n).map(|to| memory.distance(from, to)));
    }
    table(*b"SLIT", 1, &body)
}
