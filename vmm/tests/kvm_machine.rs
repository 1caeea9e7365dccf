//! Whole machines with kernels of our own: ELF with a PVH note, on the host's KVM.
#![allow(unsafe_code, missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::arch::global_asm;
use std::path::{Path, PathBuf};

use common::kvm;
use vmm::chardev::config::FileMode;
use vmm::chardev::{CharKind, Standard};
use vmm::machine::config::{DeviceConfig, DeviceKind, Drive, OnReset};
use vmm::machine::{Command, Exit, Machine, MachineConfig, Silent};

/// An ELF file with one segment at 1 MiB and a PVH note.
fn elf(code: &[u8]) -> Vec<u8> {
    let mut b = vec![0; 64 + 2 * 56];
    b[..6].copy_from_slice(b"\x7fELF\x02\x01");
    (b[18], b[32], b[54], b[56]) = (62, 64, 56, 2);
    let data = b.len() as u64;
    let mut note = Vec::new();
    for w in [4u32, 4, 18] {
        note.extend_from_slice(&w.to_le_bytes());
    }
    note.extend_from_slice(b"Xen\0");
    note.extend_from_slice(&0x10_0000u32.to_le_bytes());
    let header = |kind: u32, offset: u64, len: u64| {
        let mut h = vec![0; 56];
        h[..4].copy_from_slice(&kind.to_le_bytes());
        h[8..16].copy_from_slice(&offset.to_le_bytes());
        h[24..32].copy_from_slice(&0x10_0000u64.to_le_bytes());
        h[32..40].copy_from_slice(&len.to_le_bytes());
        h[40..48].copy_from_slice(&len.to_le_bytes());
        h
    };
    let load = header(1, data, code.len() as u64);
    let notes = header(4, data + code.len() as u64, note.len() as u64);
    b[64..120].copy_from_slice(&load);
    b[120..176].copy_from_slice(&notes);
    b.extend_from_slice(code);
    b.extend_from_slice(&note);
    b
}

struct Bench {
    folder: tempfile::TempDir,
    config: MachineConfig,
}

impl Bench {
    fn new(code: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("kernel");
        std::fs::write(&kernel, elf(code)).unwrap();
        let kind = CharKind::File {
            path: folder.path().join("serial"),
            mode: FileMode::Truncate,
            input: None,
        };
        let mut config = MachineConfig {
            chardevs: vec![("serial0".into(), kind.into())],
            serial: vec!["serial0".into()],
            debug_exit: Some(0xf4),
            ..MachineConfig::default()
        };
        config.kernel.kernel = kernel;
        config.cpu.model = "host".into();
        Bench { folder, config }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self) -> Exit {
        let machine =
            Machine::build(self.config.clone(), Standard::default(), &mut Silent).unwrap();
        let handle = machine.handle();
        // A guest that hangs ends the test, with what it has said.
        std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_secs(60));
            handle.send(Command::Quit);
        });
        machine.run().unwrap()
    }

    fn said(&self) -> String {
        read(&self.path("serial"))
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned()
}

// Prints the start info's magic on the serial port, restarts once (the number of starts is in CMOS
// memory) through the reset register, then powers off.
global_asm!(
    ".pushsection .rodata.guest_life, \"a\"",
    "guest_life_start:",
    ".code32",
    "cmp dword ptr [ebx], 0x336ec578",
    "jne 9f",
    "mov edx, 0x3f8",
    "mov al, 'P'",
    "out dx, al",
    // CMOS byte 0x50: how often we have begun.
    "mov al, 0x50",
    "out 0x70, al",
    "in al, 0x71",
    "cmp al, 1",
    "je 2f",
    "mov al, 1",
    "out 0x71, al",
    "mov edx, 0xcf9",
    "mov al, 0x0f",
    "out dx, al",
    "1: jmp 1b",
    "2: mov edx, 0x604",
    "mov ax, 0x3400",
    "out dx, ax",
    "3: jmp 3b",
    "9: mov al, 9",
    "out 0xf4, al",
    "4: jmp 4b",
    "guest_life_end:",
    ".popsection",
    ".code64",
);

#[test]
fn begins_restarts_and_powers_off() {
    if kvm().is_none() {
        return;
    }
    let code = guest_code!(guest_life_start, guest_life_end);
    let mut bench = Bench::new(code);
    assert_eq!(bench.run(), Exit::PowerOff);
    assert_eq!(bench.said(), "PP");
    bench.config.on_reset = OnReset::End;
    assert_eq!(bench.run(), Exit::Reset);
    assert_eq!(bench.said(), "P");
}

// Drives virtio-blk by itself: modern registers of the first device, one queue, one request that reads
// sector 1 of the disk to 0x300000, then prints eight bytes of it.
global_asm!(
    ".pushsection .rodata.guest_blk, \"a\"",
    "guest_blk_start:",
    ".code32",
    // The address of BAR 4 of slot 1, by the configuration ports. 64-bit BARs lie beyond 4 GiB: place it
    // at 0xd0000000 instead.
    "mov edx, 0xcf8",
    "mov eax, 0x80000820",
    "out dx, eax",
    "mov edx, 0xcfc",
    "mov eax, 0xd0000000",
    "out dx, eax",
    "mov edx, 0xcf8",
    "mov eax, 0x80000824",
    "out dx, eax",
    "mov edx, 0xcfc",
    "xor eax, eax",
    "out dx, eax",
    "mov esi, 0xd0000000",
    "mov byte ptr [esi + 20], 0",
    "mov byte ptr [esi + 20], 3",
    // Take VERSION_1 only.
    "mov dword ptr [esi + 8], 1",
    "mov dword ptr [esi + 12], 1",
    "mov byte ptr [esi + 20], 0xb",
    "test byte ptr [esi + 20], 8",
    "jz 9f",
    "mov word ptr [esi + 22], 0",
    "mov word ptr [esi + 24], 8",
    "mov dword ptr [esi + 32], 0x200000",
    "mov dword ptr [esi + 36], 0",
    "mov dword ptr [esi + 40], 0x201000",
    "mov dword ptr [esi + 44], 0",
    "mov dword ptr [esi + 48], 0x202000",
    "mov dword ptr [esi + 52], 0",
    "mov word ptr [esi + 28], 1",
    "mov byte ptr [esi + 20], 0xf",
    // Header at 0x203000: read, sector 1.
    "mov dword ptr [0x203000], 0",
    "mov dword ptr [0x203008], 1",
    // Three descriptors.
    "mov dword ptr [0x200000], 0x203000",
    "mov dword ptr [0x200008], 16",
    "mov dword ptr [0x20000c], 0x10001",
    "mov dword ptr [0x200010], 0x300000",
    "mov dword ptr [0x200018], 512",
    "mov dword ptr [0x20001c], 0x20003",
    "mov dword ptr [0x200020], 0x204000",
    "mov dword ptr [0x200028], 1",
    "mov dword ptr [0x20002c], 2",
    "mov byte ptr [0x204000], 0xff",
    "mov word ptr [0x201004], 0",
    "mov word ptr [0x201002], 1",
    "mov word ptr [esi + 0x3000], 0",
    "1: cmp word ptr [0x202002], 1",
    "jne 1b",
    "cmp byte ptr [0x204000], 0",
    "jne 9f",
    "mov esi, 0x300000",
    "mov ecx, 8",
    "mov edx, 0x3f8",
    "rep outsb",
    "mov al, 0",
    "out 0xf4, al",
    "3: jmp 3b",
    "9: mov al, 9",
    "out 0xf4, al",
    "4: jmp 4b",
    "guest_blk_end:",
    ".popsection",
    ".code64",
);

#[test]
fn a_guest_reads_its_disk() {
    if kvm().is_none() {
        return;
    }
    let code = guest_code!(guest_blk_start, guest_blk_end);
    let mut bench = Bench::new(code);
    let mut disk = vec![0; 1 << 20];
    disk[512..520].copy_from_slice(b"sector 1");
    std::fs::write(bench.path("disk"), disk).unwrap();
    let drive = Drive {
        id: "d0".into(),
        image: imgcore::graph::open::OpenRequest::file(bench.path("disk").to_string_lossy())
            .with_driver(Some("raw")),
        ..Drive::default()
    };
    // As a person would have it: confined, and with -snapshot.
    let drive = Drive { persistence: vmm::block::config::Persistence::Temporary, ..drive };
    bench.config.sandbox =
        vmm::sandbox::Sandbox::On { removed: Vec::new(), commit: vmm::sandbox::Commit::Denied };
    let shown = vmm::virtio::blk::BlkConfig::default();
    let kind = DeviceKind::Blk { drive: Box::new(drive), queues: Some(1), shown };
    bench.config.devices.push(DeviceConfig { id: "d0".into(), slot: Some(1), kind });
    // The thread that runs a machine is confined for good.
    let exit = std::thread::scope(|s| s.spawn(|| bench.run()).join().unwrap());
    assert_eq!(exit, Exit::Code(1), "{}", bench.said());
    assert_eq!(bench.said(), "sector 1");
}
