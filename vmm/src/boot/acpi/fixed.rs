//! FADT, FACS, MADT, MCFG.

use super::table;
use crate::cpu::Topology;
use crate::devices::acpi_pm;
use crate::mem::layout::{ECAM, IOAPIC, LAPIC};
use crate::num::{low8, low32, put_le};

/// A generic address structure for I/O ports (5.2.3.2): width in bits and access size.
fn port(address: u16, bits: u8) -> [u8; 12] {
    let access = match bits {
        8 => 1,
        16 => 2,
        _ => 3,
    };
    let mut g = [1, bits, 0, access, 0, 0, 0, 0, 0, 0, 0, 0];
    put_le(&mut g[4..12], address.into());
    g
}

/// 5.2.9, revision 6.3. Offsets are of the whole table.
pub fn fadt(facs: u64, dsdt: u64) -> Vec<u8> {
    let mut t = vec![0; 276];
    let mut set = |at: usize, len: usize, value: u64| put_le(&mut t[at..at + len], value);
    set(36, 4, facs);
    set(40, 4, dsdt);
    // SCI_INT; no SMI_CMD: the machine is always in ACPI mode.
    set(46, 2, acpi_pm::SCI.into());
    set(56, 4, acpi_pm::BASE.into());
    set(64, 4, u64::from(acpi_pm::BASE) + 4);
    set(76, 4, u64::from(acpi_pm::BASE) + 8);
    // Lengths of the event block, the control block, the timer.
    set(88, 1, 4);
    set(89, 1, 2);
    set(91, 1, 4);
    // No C2, no C3.
    set(96, 2, 0xfff);
    set(98, 2, 0xfff);
    // Century byte in CMOS memory.
    set(108, 1, 0x32);
    // There are legacy devices; no keyboard controller to look for; no VGA.
    set(109, 2, 1 | 1 << 2);
    // WBINVD works, C1 works, no sleep button, reset register.
    set(112, 4, 1 | 1 << 2 | 1 << 5 | 1 << 10);
    set(128, 1, acpi_pm::RESET_VALUE.into());
    // FADT minor version.
    set(131, 1, 3);
    // X_FIRMWARE_CTRL stays zero, as the 32-bit field is used.
    set(140, 8, dsdt);
    t[116..128].copy_from_slice(&port(acpi_pm::RESET_PORT, 8));
    t[148..160].copy_from_slice(&port(acpi_pm::BASE, 32));
    t[172..184].copy_from_slice(&port(acpi_pm::BASE + 4, 16));
    t[208..220].copy_from_slice(&port(acpi_pm::BASE + 8, 32));
    t[268..276].copy_from_slice(b"RKVM\0\0\0\0");
    table(*b"FACP", 6, &t[36..])
}

/// 5.2.10.
pub fn facs() -> [u8; 64] {
    let mut t = [0; 64];
    t[..4].copy_from_slice(b"FACS");
    t[4] = 64;
    t[32] = 2;
    t
}

/// 5.2.12.
pub fn madt(topology: &Topology) -> Vec<u8> {
    let mut body = vec![0; 8];
    put_le(&mut body[0..4], LAPIC);
    // The two 8259 are there.
    put_le(&mut body[4..8], 1);
    for index in 0..topology.max_cpus {
        let present = index < topology.cpus;
        let (uid, apic) = (low8(index.into()), low8(topology.apic_id(index).into()));
        body.extend_from_slice(&[0, 8, uid, apic, u8::from(present), 0, 0, 0]);
    }
    // The I/O APIC; its number is the one KVM's has.
    body.extend_from_slice(&[1, 12, 0, 0]);
    body.extend_from_slice(&low32(IOAPIC).to_le_bytes());
    body.extend_from_slice(&[0; 4]);
    // The timer is at pin 2; the system control interrupt is level-triggered and active high.
    body.extend_from_slice(&[2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    body.extend_from_slice(&[2, 10, 0, 9, 9, 0, 0, 0, 0xd, 0]);
    // Non-maskable interrupts at LINT1 of all.
    body.extend_from_slice(&[4, 6, 0xff, 0, 0, 1]);
    table(*b"APIC", 4, &body)
}

/// PCI Firmware Specification 3.3, 4.1.2.
pub fn mcfg() -> Vec<u8> {
    let mut body = vec![0; 24];
    put_le(&mut body[8..16], ECAM);
    // From bus 0 to bus 0, all that there is: Linux probes each further one with an exit per device (0.2 s for 255).
    body[19] = 0;
    table(*b"MCFG", 1, &body)
}
