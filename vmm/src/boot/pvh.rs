//! The PVH boot protocol (Xen, docs/misc/pvh): a start info structure in memory, its address in EBX,
//! 32-bit protected mode.

use super::e820::Range;
use super::kernel::{Initrd, Loaded, put};
use super::registers::Entry;
use super::{ACPI, CMDLINE, PVH_INFO};
use crate::Result;
use crate::mem::Memory;
use crate::num::{len_u64, put_le};

const MAGIC: u64 = 0x336e_c578;
const MODULES: u64 = PVH_INFO + 0x80;
const MAP: u64 = PVH_INFO + 0x100;

/// Writes the start info; returns how the first vCPU begins.
pub fn prepare(memory: &Memory, kernel: &Loaded, initrd: Initrd, map: &[Range]) -> Result<Entry> {
    let mut info = [0; 56];
    put_le(&mut info[0..4], MAGIC);
    // Version 1: with a memory map.
    put_le(&mut info[4..8], 1);
    if initrd.len > 0 {
        put_le(&mut info[12..16], 1);
        put_le(&mut info[16..24], MODULES);
        let mut module = [0; 32];
        put_le(&mut module[0..8], initrd.address);
        put_le(&mut module[8..16], initrd.len);
        put(memory, MODULES, &module)?;
    }
    put_le(&mut info[24..32], CMDLINE);
    put_le(&mut info[32..40], ACPI);
    put_le(&mut info[40..48], MAP);
    put_le(&mut info[48..52], len_u64(map.len()));
    put(memory, PVH_INFO, &info)?;
    let mut table = vec![0; 24 * map.len()];
    for (range, entry) in map.iter().zip(table.chunks_mut(24)) {
        put_le(&mut entry[0..8], range.base);
        put_le(&mut entry[8..16], range.len);
        put_le(&mut entry[16..20], range.kind as u64);
    }
    put(memory, MAP, &table)?;
    Ok(Entry::Protected { rip: kernel.entry, rbx: PVH_INFO, rsi: 0 })
}
