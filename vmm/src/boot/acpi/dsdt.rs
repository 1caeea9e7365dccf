//! The machine's devices in AML.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name,
    Package, Path, ResourceTemplate, Scope,
};

use super::Description;
use crate::devices::{acpi_pm, rtc};
use crate::mem::layout::{ECAM, ECAM_LEN, PCI32, PCI32_LEN};
use crate::num::{low8, low16, low32};
use crate::pci::routing;

/// The body of the DSDT.
pub fn aml(machine: &Description<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    // Soft off: SLP_TYP of both control blocks.
    let (s5, zero) = (acpi_pm::S5, 0u8);
    Name::new(Path::new("_S5_"), &Package::new(vec![&s5, &s5, &zero, &zero]))
        .to_aml_bytes(&mut out);
    let mut inside = Vec::new();
    pci(machine, &mut inside);
    board(&mut inside);
    for (i, (port, irq)) in machine.serial.iter().enumerate() {
        serial(i, *port, *irq, &mut inside);
    }
    if let Some(port) = machine.pvpanic {
        pvpanic(port, &mut inside);
    }
    for cpu in 0..machine.topology.max_cpus {
        processor(cpu, &mut inside);
    }
    out.extend(Scope::raw(Path::new("_SB_"), inside));
    out
}

fn io(base: u16, len: u8) -> IO {
    IO::new(base, base, 1, len)
}

fn pci(machine: &Description<'_>, out: &mut Vec<u8>) {
    let (start64, len64) = machine.pci64;
    let cache = AddressSpaceCacheable::NotCacheable;
    let resources = ResourceTemplate::new(vec![
        // One bus: a root bus without bridges, as MCFG says.
        &AddressSpace::new_bus_number(0u16, 0),
        &IO::new(0xcf8, 0xcf8, 1, 8),
        &AddressSpace::new_io(0u16, 0xcf7, None),
        &AddressSpace::new_io(0xd00u16, 0xffff, None),
        &AddressSpace::new_memory(cache, true, low32(PCI32), low32(PCI32 + (PCI32_LEN - 1)), None),
        &AddressSpace::new_memory(cache, true, start64, start64 + (len64 - 1), None),
    ])
    .to_vec();
    let mut routes = Vec::new();
    for device in 1..32u8 {
        for pin in 0..4u8 {
            let address = u32::from(device) << 16 | 0xffff;
            let gsi = routing::gsi(device, pin);
            let (zero, pin) = (0u8, pin);
            let entry = Package::new(vec![&address, &pin, &zero, &gsi]).to_vec();
            routes.push(entry);
        }
    }
    let raw: Vec<Raw> = routes.into_iter().map(Raw).collect();
    let list: Vec<&dyn Aml> = raw.iter().map(|r| -> &dyn Aml { r }).collect();
    let prt = Package::new(list);
    Device::new(
        Path::new("PCI0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
            &Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_SEG"), &0u8),
            &Name::new(Path::new("_BBN"), &0u8),
            &Name::new(Path::new("_UID"), &0u8),
            &Name::new(Path::new("_CRS"), &Raw(resources)),
            &Name::new(Path::new("_PRT"), &prt),
        ],
    )
    .to_aml_bytes(out);
}

/// What the board itself occupies: configuration space, power management, the clock.
fn board(out: &mut Vec<u8>) {
    Device::new(
        Path::new("MBRD"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, low32(ECAM), low32(ECAM_LEN)),
                    &io(acpi_pm::BASE, low8(acpi_pm::LEN.into())),
                ]),
            ),
        ],
    )
    .to_aml_bytes(out);
    Device::new(
        Path::new("RTC0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0B00")),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &io(rtc::BASE, 2),
                    &Interrupt::new(true, true, false, false, rtc::IRQ),
                ]),
            ),
        ],
    )
    .to_aml_bytes(out);
}

fn serial(index: usize, port: u16, irq: u32, out: &mut Vec<u8>) {
    let number = low8(crate::num::len_u64(index) + 1);
    Device::new(
        Path::new(&format!("COM{number}")),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &number),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &io(port, 8),
                    &Interrupt::new(true, true, false, false, irq),
                ]),
            ),
        ],
    )
    .to_aml_bytes(out);
}

fn pvpanic(port: u16, out: &mut Vec<u8>) {
    // Present, enabled, not shown, working.
    Device::new(
        Path::new("PEVT"),
        vec![
            &Name::new(Path::new("_HID"), &"QEMU0001"),
            &Name::new(Path::new("_STA"), &0xfu8),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&io(port, 1)])),
        ],
    )
    .to_aml_bytes(out);
}

fn processor(index: u32, out: &mut Vec<u8>) {
    Device::new(
        Path::new(&format!("C{:03X}", low16(index.into()) & 0xfff)),
        vec![&Name::new(Path::new("_HID"), &"ACPI0007"), &Name::new(Path::new("_UID"), &index)],
    )
    .to_aml_bytes(out);
}

/// AML that is bytes already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

/// An object's bytes.
trait ToVec {
    fn to_vec(&self) -> Vec<u8>;
}

impl<T: Aml> ToVec for T {
    fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.to_aml_bytes(&mut bytes);
        bytes
    }
}
