//! Guests of our own in every mode of the processor, on the host's KVM.
#![allow(unsafe_code, missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::arch::global_asm;
use std::time::Duration;

use common::{Bench, CODE, kvm};
use vm_memory::{Bytes, GuestAddress};
use vmm::boot::registers::{Entry, PML4};
use vmm::bus::Effect;
use vmm::vcpu::Wish;

const REAL: Entry = Entry::Real { segment: 0, offset: 0x1000 };

// Real mode, then protected, long mode, and privilege level 3 with floating point; one letter each.
global_asm!(
    ".pushsection .rodata.guest_modes, \"a\"",
    ".balign 16",
    "guest_modes_start:",
    ".code16",
    "cli",
    "xor ax, ax",
    "mov ds, ax",
    "mov dx, 0xe9",
    "mov al, 'R'",
    "out dx, al",
    // lgdt [gdtr]
    ".byte 0x0f, 0x01, 0x16",
    ".word 5f - guest_modes_start + 0x1000",
    "mov eax, cr0",
    "or al, 1",
    "mov cr0, eax",
    // jmp 8:1f
    ".byte 0xea",
    ".word 1f - guest_modes_start + 0x1000",
    ".word 8",
    ".code32",
    "1:",
    "mov ax, 0x10",
    "mov ds, ax",
    "mov es, ax",
    "mov ss, ax",
    "mov dx, 0xe9",
    "mov al, 'P'",
    "out dx, al",
    "mov eax, cr4",
    "or eax, 0x620",
    "mov cr4, eax",
    "mov eax, 0x9000",
    "mov cr3, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 0x100",
    "wrmsr",
    "mov eax, cr0",
    "and eax, 0x9fffffff",
    "or eax, 0x80000000",
    "mov cr0, eax",
    // jmp 0x18:2f
    ".byte 0xea",
    ".long 2f - guest_modes_start + 0x1000",
    ".word 0x18",
    ".code64",
    "2:",
    "mov dx, 0xe9",
    "mov al, 'L'",
    "out dx, al",
    "mov rsp, 0x8000",
    "mov rax, 0x10",
    "push 0x23",
    "push 0x7000",
    "push 0x3002",
    "push 0x2b",
    "lea rax, [rip + 3f]",
    "push rax",
    "iretq",
    "3:",
    "mov dx, 0xe9",
    "mov al, 'U'",
    "out dx, al",
    "mov eax, 3",
    "cvtsi2sd xmm0, eax",
    "mov ecx, 1000000",
    "4:",
    "addsd xmm1, xmm0",
    "dec ecx",
    "jnz 4b",
    "cvttsd2si rax, xmm1",
    // Three million.
    "cmp rax, 3000000",
    "mov al, 7",
    "je 6f",
    "mov al, 8",
    "6:",
    "mov dx, 0xf4",
    "out dx, al",
    "7: jmp 7b",
    ".balign 8",
    "5:",
    ".word 6*8-1",
    ".long 8f - guest_modes_start + 0x1000",
    ".balign 8",
    "8:",
    ".quad 0",
    ".quad 0x00cf9b000000ffff",
    ".quad 0x00cf93000000ffff",
    ".quad 0x00af9b000000ffff",
    ".quad 0x00cff3000000ffff",
    ".quad 0x00affb000000ffff",
    "guest_modes_end:",
    ".popsection",
);

#[test]
fn real_protected_long_and_user_mode() {
    let Some(kvm) = kvm() else { return };
    let code = guest_code!(guest_modes_start, guest_modes_end);
    let bench = Bench::new(&kvm, code, &[REAL]);
    // The page tables of long mode, which the guest itself turns on.
    let long = Entry::Long { rip: 0, rsi: 0, rsp: 0 };
    vmm::boot::registers::write_tables(&bench.memory, long).unwrap();
    assert_eq!(bench.memory.read_obj::<u64>(GuestAddress(PML4)).unwrap() & 7, 7);
    assert_eq!(bench.run(), Effect::Exit(7 << 1 | 1));
    assert_eq!(bench.debug.text(), "RPLU");
}

// Counts in memory for ever; level 3 is not needed for so little.
global_asm!(
    ".pushsection .rodata.guest_count, \"a\"",
    "guest_count_start:",
    ".code64",
    "2:",
    "inc qword ptr [0x8000]",
    "jmp 2b",
    "guest_count_end:",
    ".popsection",
);

#[test]
fn two_vcpus_pause_go_on_and_stop() {
    let Some(kvm) = kvm() else { return };
    let code = guest_code!(guest_count_start, guest_count_end);
    let long = Entry::Long { rip: CODE, rsi: 0, rsp: 0x8000 };
    let mut bench = Bench::new(&kvm, code, &[long, long]);
    let count = |b: &Bench| b.memory.read_obj::<u64>(GuestAddress(0x8000)).unwrap();
    assert_eq!(count(&bench), 0, "a vCPU runs before it is told to");
    let mut last = 0;
    for _ in 0..5 {
        bench.group.resume();
        for _ in 0..2000 {
            if count(&bench) > last {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        bench.group.pause().unwrap();
        let now = count(&bench);
        assert!(now > last, "vCPUs do not run");
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(count(&bench), now, "a vCPU runs while paused");
        last = now;
    }
    let rip = bench.group.with(1, |v| v.regs().map(|r| r.rip)).unwrap().unwrap();
    assert!((CODE..CODE + 0x20).contains(&rip), "{rip:#x}");
    bench.group.resume();
    let regs = bench.group.with(0, |v| v.sregs().map(|s| s.cr3)).unwrap().unwrap();
    assert_eq!(regs, PML4, "a job for a running vCPU");
    assert_eq!(bench.group.thread_ids().iter().flatten().count(), 2);
    assert_eq!(bench.group.stop().len(), 2);
    assert_eq!(bench.group.control().wish(), Wish::Stop);
    bench.group.resume();
    assert!(bench.group.with(0, |_| ()).is_err());
}

// A triple fault: no interrupt table, then an exception.
global_asm!(
    ".pushsection .rodata.guest_fault, \"a\"",
    "guest_fault_start:",
    ".code64",
    "xor eax, eax",
    "mov ds, eax",
    "ud2",
    "guest_fault_end:",
    ".popsection",
);

#[test]
fn a_triple_fault_asks_for_reset() {
    let Some(kvm) = kvm() else { return };
    let code = guest_code!(guest_fault_start, guest_fault_end);
    let bench = Bench::new(&kvm, code, &[Entry::Long { rip: CODE, rsi: 0, rsp: 0x8000 }]);
    assert_eq!(bench.run(), Effect::Reset);
}

// String output, and an access to an address where nothing is.
global_asm!(
    ".pushsection .rodata.guest_io, \"a\"",
    "guest_io_start:",
    ".code64",
    "lea rsi, [rip + 1f]",
    "mov ecx, 5",
    "mov dx, 0xe9",
    "rep outsb",
    "mov rbx, 0xd0000000",
    "mov eax, [rbx]",
    "mov [rbx + 4], eax",
    "not eax",
    "mov dx, 0xf4",
    "out dx, al",
    "2: jmp 2b",
    "1: .ascii \"hello\"",
    "guest_io_end:",
    ".popsection",
);

#[test]
fn string_output_and_open_bus() {
    let Some(kvm) = kvm() else { return };
    let code = guest_code!(guest_io_start, guest_io_end);
    let bench = Bench::new(&kvm, code, &[Entry::Long { rip: CODE, rsi: 0, rsp: 0x8000 }]);
    assert_eq!(bench.run(), Effect::Exit(1));
    assert_eq!(bench.debug.text(), "hello");
    // The instruction that caused the effect is complete.
    let rip = bench.group.with(0, |v| v.regs().map(|r| r.rip)).unwrap().unwrap();
    let code = guest_code!(guest_io_start, guest_io_end);
    let at = usize::try_from(rip - CODE).unwrap();
    assert_eq!(code[at..at + 2], [0xeb, 0xfe], "not at the final jump: {rip:#x}");
}
