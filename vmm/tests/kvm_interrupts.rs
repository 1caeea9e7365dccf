//! irqfd, ioeventfd, MSI routes and pins, with a guest that answers interrupts.
#![allow(unsafe_code, missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::arch::global_asm;
use std::sync::Arc;

use common::{Bench, CODE, kvm};
use vmm::boot::registers::Entry;
use vmm::bus::Effect;
use vmm::irq::{Level, Line, Message, MsiTarget, Vector};
use vmm::kvm::routes::Routes;
use vmm::kvm::vm::{Doorbell, Pin};
use vmm_sys_util::eventfd::EventFd;

// Makes an interrupt table with two gates, turns on the local APIC, rings at port 0x700 and at
// 0xd0000000, and waits. Vector 0x41 writes 'M' and raises the count; vector 0x42 writes 'P'. After three
// interrupts it exits.
global_asm!(
    ".pushsection .rodata.guest_irq, \"a\"",
    "guest_irq_start:",
    ".code64",
    "mov rsp, 0x8000",
    // Gates at 0x2000 + 16 * vector: offset low, selector, present interrupt gate, offset high.
    "lea rax, [rip + 3f]",
    "mov rdi, 0x2410",
    "call 9f",
    "lea rax, [rip + 4f]",
    "mov rdi, 0x2420",
    "call 9f",
    "lidt [rip + 8f]",
    "mov rbx, 0xfee00000",
    "mov dword ptr [rbx + 0xf0], 0x1ff",
    "mov dword ptr [rbx + 0x80], 0",
    "xor ebp, ebp",
    "sti",
    "mov dx, 0x700",
    "mov ax, 1",
    "out dx, ax",
    "mov rcx, 0xd0000000",
    "mov [rcx], ax",
    "2: cmp ebp, 3",
    "jne 2b",
    "mov al, 1",
    "mov dx, 0xf4",
    "out dx, al",
    "5: jmp 5b",
    "3: mov al, 'M'",
    "jmp 6f",
    "4: mov al, 'P'",
    "6: mov dx, 0xe9",
    "out dx, al",
    "inc ebp",
    "mov dword ptr [rbx + 0xb0], 0",
    "iretq",
    "9: mov [rdi], ax",
    "mov word ptr [rdi + 2], 0x10",
    "mov word ptr [rdi + 4], 0x8e00",
    "shr rax, 16",
    "mov [rdi + 6], ax",
    "shr rax, 16",
    "mov [rdi + 8], eax",
    "mov dword ptr [rdi + 12], 0",
    "ret",
    ".balign 8",
    "8: .word 0xfff",
    ".quad 0x2000",
    "guest_irq_end:",
    ".popsection",
);

#[test]
fn doorbells_reach_the_host_and_messages_the_guest() {
    let Some(kvm) = kvm() else { return };
    let code = guest_code!(guest_irq_start, guest_irq_end);
    let bench = Bench::new(&kvm, code, &[Entry::Long { rip: CODE, rsi: 0, rsp: 0x8000 }]);
    let (port, mmio) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
    bench.vm.attach_doorbell(&port, Doorbell::PortValue(0x700, 1)).unwrap();
    bench.vm.attach_doorbell(&mmio, Doorbell::Mmio(0xd000_0000)).unwrap();
    let routes = Routes::new(bench.vm.clone());
    let (a, b) = (routes.allocate().unwrap(), routes.allocate().unwrap());
    assert_ne!(a.gsi(), b.gsi());
    let target = MsiTarget { address: 0xfee0_0000, data: 0x41 };
    a.set(Some(target)).unwrap();
    b.set(Some(MsiTarget { data: 0x42, ..target })).unwrap();
    bench.group.resume();
    assert_eq!(port.read().unwrap(), 1);
    assert_eq!(mmio.read().unwrap(), 1);
    a.raise();
    wait_for(&bench, "M");
    b.raise();
    wait_for(&bench, "MP");
    // Masked, it does not arrive; unmasked with another vector, it does.
    b.set(None).unwrap();
    b.raise();
    b.set(Some(target)).unwrap();
    let _ = b.event().read();
    bench.vm.signal_msi(0xfee0_0000, 0x41).unwrap();
    assert_eq!(bench.wait(), Effect::Exit(3));
    assert!(bench.debug.text().starts_with("MPM"), "{}", bench.debug.text());
    bench.vm.detach_doorbell(&mmio, Doorbell::Mmio(0xd000_0000)).unwrap();
    assert!(bench.vm.detach_doorbell(&mmio, Doorbell::Mmio(0xd000_0000)).is_err());
    let gsi = a.gsi();
    drop(a);
    assert_eq!(routes.allocate().unwrap().gsi(), gsi, "a dropped route is free again");
}

fn wait_for(bench: &Bench, text: &str) {
    for _ in 0..5000 {
        if bench.debug.text() == text {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("debug port says {:?}, not {text:?}", bench.debug.text());
}

#[test]
fn pins_can_be_set_in_any_order() {
    let Some(kvm) = kvm() else { return };
    let vm = Arc::new(kvm.create_vm().unwrap());
    vm.create_chips().unwrap();
    let pin = Pin::new(vm.clone(), 4);
    pin.set(Level::High);
    pin.set(Level::High);
    pin.pulse();
    // The table with pins only is what the kernel starts with; sending it must succeed.
    let routes = Routes::new(vm);
    routes.allocate().unwrap().set(Some(MsiTarget { address: 0xfee0_0000, data: 1 })).unwrap();
}
