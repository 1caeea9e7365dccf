//! Linux' boot protocol: the boot parameters in memory (Documentation/arch/x86/boot.rst and
//! zero-page.rst).

use super::e820::Range;
use super::kernel::{Initrd, Loaded, Protocol, put};
use super::registers::Entry;
use super::{ACPI, CMDLINE, ZERO_PAGE};
use crate::Result;
use crate::mem::Memory;
use crate::num::put_le;

/// Writes the boot parameters; returns how the first vCPU begins.
pub fn prepare(
    memory: &Memory,
    kernel: &Loaded,
    initrd: Initrd,
    cmdline_len: usize,
    map: &[Range],
) -> Result<Entry> {
    let mut page = vec![0; 4096];
    page[0x1f1..0x1f1 + kernel.setup_header.len()].copy_from_slice(&kernel.setup_header);
    let version = u16::from_le_bytes([page[0x206], page[0x207]]);
    let mut field = |at: usize, len: usize, value: u64| put_le(&mut page[at..at + len], value);
    // acpi_rsdp_addr
    field(0x70, 8, ACPI);
    // type_of_loader: undefined
    field(0x210, 1, 0xff);
    // ramdisk_image, ramdisk_size
    field(0x218, 4, initrd.address);
    field(0x21c, 4, initrd.len);
    // ext_ramdisk_image, ext_ramdisk_size
    field(0xc0, 4, initrd.address >> 32);
    field(0xc4, 4, initrd.len >> 32);
    if version >= 0x202 {
        // cmd_line_ptr
        field(0x228, 4, CMDLINE);
    } else {
        // cl_magic, cl_offset: relative to the parameters
        field(0x20, 2, 0xa33f);
        field(0x22, 2, CMDLINE - ZERO_PAGE);
    }
    if version >= 0x206 {
        // cmdline_size
        field(0x238, 4, crate::num::len_u64(cmdline_len));
    }
    let extended = map.iter().find(|r| r.base == 0x10_0000).map_or(0, |r| r.len);
    // alt_mem_k, for kernels that do not look at the map
    field(0x1e0, 4, extended >> 10);
    let entries = map.len().min(128);
    field(0x1e8, 1, crate::num::len_u64(entries));
    for (i, range) in map.iter().take(entries).enumerate() {
        let at = 0x2d0 + 20 * i;
        field(at, 8, range.base);
        field(at + 8, 8, range.len);
        field(at + 16, 4, range.kind as u64);
    }
    put(memory, ZERO_PAGE, &page)?;
    Ok(match kernel.protocol {
        Protocol::Linux32 => Entry::Protected { rip: kernel.entry, rbx: 0, rsi: ZERO_PAGE },
        _ => Entry::Long { rip: kernel.entry, rsi: ZERO_PAGE, rsp: 0x8ff0 },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::e820;
    use crate::mem::{Backend, MemoryConfig, build};
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn parameters_are_where_kernels_look() {
        let m = build(&MemoryConfig::simple(8 << 20, Backend::default())).unwrap();
        let mut header = vec![0; 0x7b];
        header[0x206 - 0x1f1] = 0x0f;
        header[0x207 - 0x1f1] = 2;
        let kernel = Loaded {
            protocol: Protocol::Linux64,
            entry: 0x10_0200,
            setup_header: header,
            initrd_max: u64::MAX,
            end: 0,
        };
        let initrd = Initrd { address: 0x1234_5000, len: 77 };
        let entry = prepare(&m, &kernel, initrd, 5, &e820::map(8 << 20)).unwrap();
        assert_eq!(entry, Entry::Long { rip: 0x10_0200, rsi: ZERO_PAGE, rsp: 0x8ff0 });
        let word = |at: u64| m.read_obj::<u32>(GuestAddress(ZERO_PAGE + at)).unwrap();
        assert_eq!((word(0x218), word(0x21c), word(0x228)), (0x1234_5000, 77, 0x2_0000));
        assert_eq!(word(0x70), 0xe_0000);
        assert_eq!(m.read_obj::<u8>(GuestAddress(ZERO_PAGE + 0x1e8)).unwrap(), 6);
        assert_eq!(word(0x2d0 + 8), 0x9_fc00);
    }
}
