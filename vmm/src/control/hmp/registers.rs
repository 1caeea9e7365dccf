//! `info registers`, and registers by name.

use std::fmt::Write as _;

use kvm_bindings::kvm_segment;

use crate::control::steered::CpuState;

const EFER_LMA: u64 = 1 << 10;

/// In 64-bit mode or its 32-bit compatibility.
fn long(cpu: &CpuState) -> bool {
    cpu.sregs.efer & EFER_LMA != 0
}

fn code64(cpu: &CpuState) -> bool {
    long(cpu) && cpu.sregs.cs.l != 0
}

/// A register by the name that people know.
pub fn by_name(cpu: &CpuState, name: &str) -> Option<u64> {
    let (r, s) = (&cpu.regs, &cpu.sregs);
    Some(match name {
        "eax" | "rax" => r.rax,
        "ebx" | "rbx" => r.rbx,
        "ecx" | "rcx" => r.rcx,
        "edx" | "rdx" => r.rdx,
        "esi" | "rsi" => r.rsi,
        "edi" | "rdi" => r.rdi,
        "ebp" | "rbp" | "fp" => r.rbp,
        "esp" | "rsp" | "sp" => r.rsp,
        "r8" => r.r8,
        "r9" => r.r9,
        "r10" => r.r10,
        "r11" => r.r11,
        "r12" => r.r12,
        "r13" => r.r13,
        "r14" => r.r14,
        "r15" => r.r15,
        "eip" | "rip" => r.rip,
        // Where the next instruction lies: segments count outside 64-bit code.
        "pc" => r.rip.wrapping_add(if code64(cpu) { 0 } else { s.cs.base }),
        "eflags" | "rflags" => r.rflags,
        "cs" => s.cs.selector.into(),
        "ds" => s.ds.selector.into(),
        "es" => s.es.selector.into(),
        "fs" => s.fs.selector.into(),
        "gs" => s.gs.selector.into(),
        "ss" => s.ss.selector.into(),
        "cs.base" => s.cs.base,
        "ds.base" => s.ds.base,
        "es.base" => s.es.base,
        "fs.base" => s.fs.base,
        "gs.base" => s.gs.base,
        "ss.base" => s.ss.base,
        "cr0" => s.cr0,
        "cr2" => s.cr2,
        "cr3" => s.cr3,
        "cr4" => s.cr4,
        "efer" => s.efer,
        _ => return None,
    })
}

/// Attributes as they stand in the upper half of a descriptor (Intel SDM volume 3, 3.4.5).
fn attributes(s: &kvm_segment) -> u32 {
    let bit = |on: u8, at: u32| u32::from(on != 0) << at;
    (u32::from(s.type_) & 0xf) << 8
        | bit(s.s, 12)
        | (u32::from(s.dpl) & 3) << 13
        | bit(s.present, 15)
        | (s.limit >> 16 & if s.g == 0 { 0xf } else { 0 }) << 16
        | bit(s.avl, 20)
        | bit(s.l, 21)
        | bit(s.db, 22)
        | bit(s.g, 23)
}

fn segment(out: &mut String, name: &str, s: &kvm_segment, wide: bool) {
    let width = if wide { 16 } else { 8 };
    let _ = write!(
        out,
        "{name:<3}={:04x} {:0width$x} {:08x} {:08x}",
        s.selector,
        s.base,
        s.limit,
        attributes(s)
    );
    if s.present != 0 {
        let _ = write!(out, " DPL={} ", s.dpl);
        out.push_str(&kind(s, wide));
    }
    out.push('\n');
}

/// What a descriptor describes.
fn kind(s: &kvm_segment, wide: bool) -> String {
    let t = s.type_;
    let flag = |bit: u8, c: char| if t & bit != 0 { c } else { '-' };
    if s.s == 0 {
        let names = [
            "Reserved",
            "TSS16-avl",
            "LDT",
            "TSS16-busy",
            "CallGate16",
            "TaskGate",
            "IntGate16",
            "TrapGate16",
            "Reserved",
            "TSS64-avl",
            "Reserved",
            "TSS64-busy",
            "CallGate64",
            "Reserved",
            "IntGate64",
            "TrapGate64",
        ];
        let name = names[usize::from(t & 15)];
        return if wide { name.into() } else { name.replace("64", "32") };
    }
    if t & 8 != 0 {
        let size = if s.l != 0 {
            "CS64"
        } else if s.db != 0 {
            "CS32"
        } else {
            "CS16"
        };
        format!("{size} [{}{}{}]", flag(4, 'C'), flag(2, 'R'), flag(1, 'A'))
    } else {
        let size = if s.db != 0 { "DS" } else { "DS16" };
        format!("{size} [{}{}{}]", flag(4, 'E'), flag(2, 'W'), flag(1, 'A'))
    }
}

fn flags(value: u64) -> String {
    let f = |bit: u32, c: char| if value >> bit & 1 != 0 { c } else { '-' };
    [(10, 'D'), (11, 'O'), (7, 'S'), (6, 'Z'), (4, 'A'), (2, 'P'), (0, 'C')]
        .iter()
        .map(|(bit, c)| f(*bit, *c))
        .collect()
}

/// All registers of a vCPU, laid out as QEMU does.
pub fn show(index: usize, cpu: &CpuState) -> String {
    let mut o = format!("\nCPU#{index}\n");
    let (r, s) = (&cpu.regs, &cpu.sregs);
    let privilege = s.ss.dpl & 3;
    let halted = u8::from(cpu.halted);
    let mode = format!(
        "{:08x} [{}] CPL={privilege} II=0 A20=1 SMM=0 HLT={halted}",
        r.rflags,
        flags(r.rflags)
    );
    let wide = long(cpu);
    if wide {
        let rows = [
            [("RAX", r.rax), ("RBX", r.rbx), ("RCX", r.rcx), ("RDX", r.rdx)],
            [("RSI", r.rsi), ("RDI", r.rdi), ("RBP", r.rbp), ("RSP", r.rsp)],
            [("R8 ", r.r8), ("R9 ", r.r9), ("R10", r.r10), ("R11", r.r11)],
            [("R12", r.r12), ("R13", r.r13), ("R14", r.r14), ("R15", r.r15)],
        ];
        for row in rows {
            let row: Vec<String> = row.iter().map(|(n, v)| format!("{n}={v:016x}")).collect();
            let _ = writeln!(o, "{}", row.join(" "));
        }
        let _ = writeln!(o, "RIP={:016x} RFL={mode}", r.rip);
    } else {
        let low = |v: u64| v & 0xffff_ffff;
        let _ = writeln!(
            o,
            "EAX={:08x} EBX={:08x} ECX={:08x} EDX={:08x}\nESI={:08x} EDI={:08x} EBP={:08x} ESP={:08x}\nEIP={:08x} EFL={mode}",
            low(r.rax),
            low(r.rbx),
            low(r.rcx),
            low(r.rdx),
            low(r.rsi),
            low(r.rdi),
            low(r.rbp),
            low(r.rsp),
            low(r.rip)
        );
    }
    let all = [
        ("ES", &s.es),
        ("CS", &s.cs),
        ("SS", &s.ss),
        ("DS", &s.ds),
        ("FS", &s.fs),
        ("GS", &s.gs),
        ("LDT", &s.ldt),
        ("TR", &s.tr),
    ];
    for (name, seg) in all {
        segment(&mut o, name, seg, wide);
    }
    let width = if wide { 16 } else { 8 };
    let _ = writeln!(o, "GDT=     {:0width$x} {:08x}", s.gdt.base, s.gdt.limit);
    let _ = writeln!(o, "IDT=     {:0width$x} {:08x}", s.idt.base, s.idt.limit);
    let _ = writeln!(
        o,
        "CR0={:08x} CR2={:0width$x} CR3={:0width$x} CR4={:08x}",
        s.cr0, s.cr2, s.cr3, s.cr4
    );
    for (i, value) in cpu.debug.db.iter().enumerate() {
        let _ = write!(o, "DR{i}={value:016x} ");
    }
    let _ = writeln!(o, "\nDR6={:016x} DR7={:016x} ", cpu.debug.dr6, cpu.debug.dr7);
    let _ = writeln!(o, "EFER={:016x}", s.efer);
    vectors(&mut o, cpu, wide);
    o
}

fn vectors(o: &mut String, cpu: &CpuState, wide: bool) {
    let f = &cpu.fpu;
    let _ = writeln!(
        o,
        "FCW={:04x} FSW={:04x} [ST={}] FTW={:02x} MXCSR={:08x}",
        f.fcw,
        f.fsw,
        f.fsw >> 11 & 7,
        f.ftwx,
        f.mxcsr
    );
    let half = |bytes: &[u8]| crate::num::get_le(bytes);
    for pair in 0..4 {
        let one = |i: usize| {
            let b = &f.fpr[i];
            format!("FPR{i}={:016x} {:04x}", half(&b[..8]), half(&b[8..10]))
        };
        let _ = writeln!(o, "{} {}", one(2 * pair), one(2 * pair + 1));
    }
    for pair in 0..if wide { 8 } else { 4 } {
        let one = |i: usize| {
            let b = &f.xmm[i];
            format!("XMM{i:02}={:016x} {:016x}", half(&b[8..16]), half(&b[..8]))
        };
        let _ = writeln!(o, "{} {}", one(2 * pair), one(2 * pair + 1));
    }
}
