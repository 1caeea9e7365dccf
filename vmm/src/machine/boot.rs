//! What lies in memory when the guest begins.

use crate::boot::acpi::{self, Description};
use crate::boot::kernel::{self, Files, Protocol};
use crate::boot::registers::{self, Entry};
use crate::boot::{ACPI, SMBIOS, e820, linux, pvh, smbios};
use crate::devices::pvpanic;
use crate::devices::serial::PORTS;
use crate::mem::{Memory, layout};
use crate::{Error, Result};

use super::MachineConfig;

/// Loads kernel, ramdisks, command line and tables; returns how the first vCPU begins.
pub fn load(config: &MachineConfig, memory: &Memory, mut files: Files) -> Result<Entry> {
    let size = config.memory.size();
    let map = e820::map(size);
    let loaded = files.load_kernel(memory)?;
    let initrd = files.load_initrds(memory, size, &loaded)?;
    let cmdline_len = kernel::write_cmdline(memory, &config.kernel.append)?;
    let tables = acpi::build(&Description {
        topology: &config.topology,
        memory: &config.memory,
        serial: &PORTS[..config.serial.len().min(PORTS.len())],
        pvpanic: config.pvpanic.then_some(pvpanic::PORT),
        pci64: (layout::pci64(size), layout::PCI64_LEN),
    })?;
    put(memory, ACPI, &tables)?;
    put(memory, SMBIOS, &smbios::build(&config.smbios, &config.topology, size)?)?;
    let entry = match loaded.protocol {
        Protocol::Pvh => pvh::prepare(memory, &loaded, initrd, &map)?,
        Protocol::Linux64 | Protocol::Linux32 => {
            linux::prepare(memory, &loaded, initrd, cmdline_len, &map)?
        }
    };
    registers::write_tables(memory, entry)?;
    Ok(entry)
}

fn put(memory: &Memory, at: u64, bytes: &[u8]) -> Result<()> {
    use vm_memory::{Bytes, GuestAddress};
    memory.write_slice(bytes, GuestAddress(at)).map_err(|e| {
        Error::invalid(format!("tables at {at:#x} are outside guest memory: {e}"))
            .hint("Give the guest more memory (-m)")
    })
}
