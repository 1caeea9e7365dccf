//! ACPI tables (ACPI 6.5).
//!
//! * [`dsdt`]: the machine's devices in AML.
//! * [`fixed`]: FADT, FACS, MADT, MCFG.
//! * [`numa`]: SRAT, SLIT.
//!
//! All tables lie one after the other behind the root pointer, at a place where kernels search for it.

pub mod dsdt;
pub mod fixed;
pub mod numa;

use acpi_tables::sdt::Sdt;

use super::{ACPI, ACPI_LEN};
use crate::cpu::Topology;
use crate::mem::MemoryConfig;
use crate::num::{len_u64, low8, low32, put_le};
use crate::{Error, Result};

/// The names in every table's header.
pub const OEM: [u8; 6] = *b"RKVM  ";
/// The second one.
pub const OEM_TABLE: [u8; 8] = *b"RKVMMACH";

/// What the tables describe.
#[derive(Clone, Debug)]
pub struct Description<'a> {
    /// Processors.
    pub topology: &'a Topology,
    /// Memory and its nodes.
    pub memory: &'a MemoryConfig,
    /// Serial ports: I/O port and interrupt.
    pub serial: &'a [(u16, u32)],
    /// Port of pvpanic, if it is there.
    pub pvpanic: Option<u16>,
    /// Window for 64-bit BARs: first address and length.
    pub pci64: (u64, u64),
}

/// A table with its header; the length and checksum are right.
pub(super) fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut t = Sdt::new(signature, 36, revision, OEM, OEM_TABLE, 1);
    t.append_slice(body);
    t.as_slice().to_vec()
}

/// A byte that makes the sum of all bytes zero.
pub(super) fn checksum(bytes: &[u8]) -> u8 {
    0u8.wrapping_sub(bytes.iter().fold(0, |sum, b| sum.wrapping_add(*b)))
}

/// Tables one after the other.
struct Heap {
    bytes: Vec<u8>,
}

impl Heap {
    /// Appends at a multiple of 64; returns the address.
    fn push(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(64), 0);
        let at = ACPI + len_u64(self.bytes.len());
        self.bytes.extend_from_slice(table);
        at
    }
}

/// All tables, to be stored at [`ACPI`].
///
/// # Errors
/// When they do not fit (hundreds of vCPUs with dozens of nodes).
pub fn build(machine: &Description<'_>) -> Result<Vec<u8>> {
    let mut heap = Heap { bytes: vec![0; 36] };
    let facs = heap.push(&fixed::facs());
    let dsdt = heap.push(&table(*b"DSDT", 2, &dsdt::aml(machine)));
    let mut all = vec![
        heap.push(&fixed::fadt(facs, dsdt)),
        heap.push(&fixed::madt(machine.topology)),
        heap.push(&fixed::mcfg()),
    ];
    if machine.memory.numa {
        all.push(heap.push(&numa::srat(machine.memory, machine.topology)));
        all.push(heap.push(&numa::slit(machine.memory)));
    }
    let entries: Vec<u8> = all.iter().flat_map(|a| a.to_le_bytes()).collect();
    let xsdt = heap.push(&table(*b"XSDT", 1, &entries));
    let small: Vec<u8> = all.iter().flat_map(|a| low32(*a).to_le_bytes()).collect();
    let rsdt = heap.push(&table(*b"RSDT", 1, &small));
    let root = rsdp(rsdt, xsdt);
    heap.bytes[..root.len()].copy_from_slice(&root);
    if heap.bytes.len() > ACPI_LEN {
        return Err(Error::new(
            crate::ErrorKind::TooLarge,
            format!("ACPI tables take {} bytes, there is room for {ACPI_LEN}", heap.bytes.len()),
        )
        .hint("Use fewer vCPUs or NUMA nodes"));
    }
    Ok(heap.bytes)
}

/// 5.2.5.3, revision 2.
fn rsdp(rsdt: u64, xsdt: u64) -> [u8; 36] {
    let mut r = [0; 36];
    r[..8].copy_from_slice(b"RSD PTR ");
    r[9..15].copy_from_slice(&OEM);
    r[15] = 2;
    put_le(&mut r[16..20], rsdt);
    r[20] = low8(36);
    put_le(&mut r[24..32], xsdt);
    r[8] = checksum(&r[..20]);
    r[32] = checksum(&r);
    r
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::Node;
    use std::process::Command;

    fn tables() -> Vec<u8> {
        let topology = Topology { cpus: 6, max_cpus: 6, sockets: 2, cores: 3, threads: 1 };
        let node = |size, cpus| Node { size, cpus, ..Node::default() };
        let memory = MemoryConfig {
            nodes: vec![node(2 << 30, vec![0, 1, 2]), node(2 << 30, vec![3, 4, 5])],
            numa: true,
            distances: vec![vec![10, 31], vec![31, 10]],
        };
        let serial = [(0x3f8, 4), (0x2f8, 3)];
        build(&Description {
            topology: &topology,
            memory: &memory,
            serial: &serial,
            pvpanic: Some(0x505),
            pci64: (6 << 30, 1 << 36),
        })
        .unwrap()
    }

    fn at(all: &[u8], address: u64) -> &[u8] {
        let start = usize::try_from(address - ACPI).unwrap();
        let len = u32::from_le_bytes(all[start + 4..start + 8].try_into().unwrap());
        &all[start..start + usize::try_from(len).unwrap()]
    }

    fn every_table(all: &[u8]) -> Vec<&[u8]> {
        let word = |b: &[u8], i: usize| u64::from_le_bytes(b[i..i + 8].try_into().unwrap());
        let xsdt = at(all, word(all, 24));
        let mut list = vec![xsdt];
        list.extend(xsdt[36..].chunks(8).map(|c| at(all, word(c, 0))));
        let fadt = list.iter().find(|t| t.starts_with(b"FACP")).unwrap();
        list.push(at(all, word(fadt, 140)));
        list
    }

    #[test]
    fn checksums_and_pointers_are_right() {
        let all = tables();
        assert!(all.starts_with(b"RSD PTR "));
        assert_eq!((checksum(&all[..20]), checksum(&all[..36])), (0, 0));
        let names: Vec<_> = every_table(&all)
            .iter()
            .map(|t| String::from_utf8_lossy(&t[..4]).into_owned())
            .collect();
        assert_eq!(names, ["XSDT", "FACP", "APIC", "MCFG", "SRAT", "SLIT", "DSDT"]);
        for t in every_table(&all) {
            assert_eq!(checksum(t), 0);
        }
    }

    /// The reference compiler takes every table apart, and compiles what it found again without errors.
    #[test]
    fn iasl_accepts_every_table() {
        if Command::new("iasl").arg("-v").output().is_err() {
            eprintln!("SKIPPED: iasl is not installed (Debian: acpica-tools)");
            return;
        }
        let all = tables();
        for t in every_table(&all) {
            let folder = tempfile::tempdir().unwrap();
            let name = String::from_utf8_lossy(&t[..4]).to_lowercase();
            std::fs::write(folder.path().join(format!("{name}.aml")), t).unwrap();
            let run = |args: &[&str]| {
                let out =
                    Command::new("iasl").args(args).current_dir(folder.path()).output().unwrap();
                let text = format!(
                    "{}{}",
                    String::from_utf8_lossy(&out.stdout),
                    String::from_utf8_lossy(&out.stderr)
                );
                assert!(out.status.success() && !text.contains("ACPI Error"), "{name}: {text}");
                text
            };
            run(&["-d", &format!("{name}.aml")]);
            // Tables of data compile to themselves; AML must compile without warnings.
            let text = run(&[&format!("{name}.dsl")]);
            assert!(text.contains(" 0 Errors"), "{text}");
            assert!(name != "dsdt" || text.contains("0 Warnings"), "{text}");
        }
    }
}
