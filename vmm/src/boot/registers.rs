//! Processor states in which guests begin.
//!
//! The tables for protected and long mode lie in the first 64 KiB, which kernels leave alone until
//! they have made their own.

use kvm_bindings::{kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress};

use crate::kvm::Vcpu;
use crate::mem::Memory;
use crate::num::{index, low16, low32};
use crate::{Error, Result};

/// Global descriptor table.
pub const GDT: u64 = 0x500;
/// Top-level page table; the others follow: one of the second level, four of the third.
pub const PML4: u64 = 0x9000;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Descriptors: null, null, code (64-bit), data, task state; the selectors that the Linux boot protocol
/// asks for (`__BOOT_CS` 0x10, `__BOOT_DS` 0x18).
const CODE64: u64 = 0x00af_9b00_0000_ffff;
const CODE32: u64 = 0x00cf_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
const TSS: u64 = 0x008f_8b00_0000_ffff;

/// How a guest begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// 16-bit code at `segment:offset`; other registers as after power-on.
    Real {
        /// Code segment.
        segment: u16,
        /// Instruction pointer.
        offset: u16,
    },
    /// The processor's own reset vector, for firmware.
    Reset,
    /// 32-bit protected mode without paging (PVH, and Linux' 32-bit boot protocol).
    Protected {
        /// Instruction pointer.
        rip: u64,
        /// PVH: address of the start info.
        rbx: u64,
        /// Linux: address of the boot parameters.
        rsi: u64,
    },
    /// 64-bit mode, the first 4 GiB mapped one to one, `rsi` given (Linux' 64-bit boot protocol).
    Long {
        /// Instruction pointer.
        rip: u64,
        /// Linux: address of the boot parameters.
        rsi: u64,
        /// Stack pointer.
        rsp: u64,
    },
}

/// Writes the tables that `entry` needs.
pub fn write_tables(memory: &Memory, entry: Entry) -> Result<()> {
    let code = match entry {
        Entry::Real { .. } | Entry::Reset => return Ok(()),
        Entry::Protected { .. } => CODE32,
        Entry::Long { .. } => CODE64,
    };
    let put = |at: u64, value: u64| {
        memory.write_obj(value, GuestAddress(at)).map_err(|e| {
            Error::invalid(format!("boot tables do not fit into guest memory at {at:#x}: {e}"))
        })
    };
    for (i, descriptor) in [0, 0, code, DATA, TSS].into_iter().enumerate() {
        put(GDT + 8 * crate::num::len_u64(i), descriptor)?;
    }
    if matches!(entry, Entry::Long { .. }) {
        // Present, writable, user; 2 MiB pages.
        let (pdpt, pd) = (PML4 + 0x1000, PML4 + 0x2000);
        put(PML4, pdpt | 7)?;
        for gib in 0..4 {
            put(pdpt + 8 * gib, (pd + 0x1000 * gib) | 7)?;
        }
        for page in 0..2048 {
            put(pd + 8 * page, (page << 21) | 0x87)?;
        }
    }
    Ok(())
}

/// Puts a vCPU into the state of `entry`. A fresh vCPU, or one to be reset.
pub fn apply(vcpu: &Vcpu, entry: Entry) -> Result<()> {
    let mut sregs = reset_sregs(&vcpu.sregs()?);
    let mut regs = kvm_regs { rflags: 2, rip: 0xfff0, ..Default::default() };
    match entry {
        Entry::Reset => {}
        Entry::Real { segment, offset } => {
            sregs.cs.base = u64::from(segment) << 4;
            sregs.cs.selector = segment;
            regs.rip = offset.into();
        }
        Entry::Protected { rip, rbx, rsi } => {
            flat(&mut sregs, CODE32);
            sregs.cr0 = CR0_PE | CR0_ET;
            regs.rip = rip;
            regs.rbx = rbx;
            regs.rsi = rsi;
        }
        Entry::Long { rip, rsi, rsp } => {
            flat(&mut sregs, CODE64);
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.cr3 = PML4;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
            regs.rip = rip;
            regs.rsi = rsi;
            regs.rsp = rsp;
            regs.rbp = rsp;
        }
    }
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&regs)?;
    // fcw and mxcsr as after FNINIT and reset (SDM volume 1, 8.1.5 and 11.6.4).
    vcpu.set_fpu(&kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() })
}

/// SDM volume 3, table 10-1. The APIC base is the machine's, not ours to change.
fn reset_sregs(now: &kvm_sregs) -> kvm_sregs {
    let data = kvm_segment { limit: 0xffff, type_: 3, present: 1, s: 1, ..Default::default() };
    let code = kvm_segment { base: 0xffff_0000, selector: 0xf000, type_: 11, ..data };
    let system = kvm_segment { s: 0, ..data };
    let mut sregs = kvm_sregs {
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: kvm_segment { type_: 11, ..system },
        ldt: kvm_segment { type_: 2, ..system },
        // Cache disable, not write through, extension type.
        cr0: 0x6000_0010,
        apic_base: now.apic_base,
        ..Default::default()
    };
    sregs.gdt.limit = 0xffff;
    sregs.idt.limit = 0xffff;
    sregs
}

fn flat(sregs: &mut kvm_sregs, code: u64) {
    let data = segment(3, DATA);
    sregs.cs = segment(2, code);
    for s in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *s = data;
    }
    sregs.tr = segment(4, TSS);
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 5 * 8 - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
}

/// A descriptor as the hidden part of a segment register (SDM volume 3, figure 3-8).
fn segment(number: u16, d: u64) -> kvm_segment {
    let bit = |n: u32| crate::num::low8((d >> n) & 1);
    let limit = low32((d & 0xffff) | ((d >> 32) & 0xf_0000));
    let g = bit(55);
    kvm_segment {
        base: ((d >> 16) & 0xff_ffff) | ((d >> 32) & 0xff00_0000),
        limit: if g == 1 { (limit << 12) | 0xfff } else { limit },
        selector: low16(u64::from(number) * 8),
        type_: crate::num::low8((d >> 40) & 15),
        present: bit(47),
        dpl: crate::num::low8((d >> 45) & 3),
        db: bit(54),
        s: bit(44),
        l: bit(53),
        g,
        avl: bit(52),
        ..Default::default()
    }
}

/// Where a table may be put without being in the way of the boot tables: for checks.
pub fn overlaps_tables(at: u64, len: usize) -> bool {
    let end = at.saturating_add(crate::num::len_u64(len));
    let tables = [(GDT, 0x28), (PML4, 0x6000)];
    tables.iter().any(|(base, size)| at < base + size && *base < end) || index(at) == usize::MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_become_segments() {
        let code = segment(2, CODE64);
        assert_eq!((code.base, code.limit, code.selector), (0, u32::MAX, 0x10));
        assert_eq!((code.l, code.db, code.s, code.type_, code.present), (1, 0, 1, 11, 1));
        let tss = segment(4, TSS);
        assert_eq!((tss.s, tss.type_, tss.limit), (0, 11, u32::MAX));
    }

    #[test]
    fn tables_are_known_to_be_there() {
        assert!(overlaps_tables(0x4f8, 16) && overlaps_tables(0xe000, 1));
        assert!(!overlaps_tables(0x1000, 0x1000) && !overlaps_tables(0xf000, 0x1000));
    }
}
