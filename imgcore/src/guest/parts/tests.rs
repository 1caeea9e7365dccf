//! Tables made with sfdisk, sgdisk, fdisk and LVM, compared with what sfdisk and LVM say; and hostile ones.

use proptest::prelude::*;
use serde_json::Value;

use super::gpt::CopyState;
use super::*;
use crate::guest::content::Content;
use crate::guest::testing::{Sandbox, memory_disk};

const MIB: u64 = 1 << 20;

/// Our partitions are those of `sfdisk -J`.
fn same_as_sfdisk(sandbox: &Sandbox, name: &str, layout: &Layout) {
    let Some(text) = sandbox.tool("sfdisk", &["-J", name], "") else { return };
    let theirs: Value = serde_json::from_str(&text).unwrap();
    let list = theirs["partitiontable"]["partitions"].as_array().unwrap();
    assert_eq!(list.len(), layout.partitions.len());
    for (their, our) in list.iter().zip(&layout.partitions) {
        let node = their["node"].as_str().unwrap();
        assert!(node.ends_with(&our.number.to_string()), "{node} {our:?}");
        assert_eq!(their["start"].as_u64().unwrap() * 512, our.start, "{our:?}");
        assert_eq!(their["size"].as_u64().unwrap() * 512, our.length, "{our:?}");
        assert_eq!(their["name"].as_str(), our.name.as_deref(), "{our:?}");
        let kind = their["type"].as_str().unwrap().to_lowercase();
        match &our.kind {
            PartitionType::Mbr(k) => assert_eq!(kind, format!("{k:x}")),
            PartitionType::Gpt(g) => assert_eq!(&kind, g),
        }
        if let Some(uuid) = their["uuid"].as_str() {
            assert_eq!(our.id.as_deref(), Some(uuid.to_lowercase().as_str()));
        }
        assert_eq!(their["bootable"].as_bool().unwrap_or(false), our.bootable);
    }
}

#[test]
fn mbr_with_logical_partitions() {
    let sandbox = Sandbox::new();
    sandbox.blank("d", 128 * MIB);
    let script =
        "label: dos\nlabel-id: 0xdeadbeef\n,20M,L,*\n,10M,82\n,,E\n,10M,L\n,15M,7\n,5M,8e\n";
    if sandbox.tool("sfdisk", &["d"], script).is_none() {
        return;
    }
    let (disk, layout) = sandbox.layout("d");
    assert_eq!(layout.table, Table::Mbr { signature: 0xdead_beef });
    assert_eq!(layout.partitions.len(), 6);
    same_as_sfdisk(&sandbox, "d", &layout);
    let roles: Vec<_> = layout.partitions.iter().map(|p| (p.number, p.role)).collect();
    let want = [
        (1, Role::Primary),
        (2, Role::Primary),
        (3, Role::Extended),
        (5, Role::Logical),
        (6, Role::Logical),
        (7, Role::Logical),
    ];
    assert_eq!(roles, want);
    assert_eq!(layout.partitions[4].id.as_deref(), Some("deadbeef-06"));
    assert!(layout.warnings.is_empty() && layout.ambiguous.is_none(), "{layout:?}");
    let volumes = layout.volumes(&disk);
    assert_eq!(volumes.len(), 5);
    assert_eq!(volumes[2].name(), "partition 5");
    assert!(layout.unpartitioned(&disk).is_empty(), "the container reaches to the end");
}

#[test]
fn a_chain_that_loops() {
    let sandbox = Sandbox::new();
    sandbox.blank("d", 64 * MIB);
    let script = "label: dos\n,,E\n,10M,L\n,10M,L\n";
    if sandbox.tool("sfdisk", &["d"], script).is_none() {
        return;
    }
    let mut bytes = sandbox.get("d");
    let table = mbr::read(&memory_disk(bytes.clone())).unwrap().unwrap();
    let second = usize::try_from(table.raw.entries[0].first.get()).unwrap() * 512;
    // The link of the first record leads to itself.
    bytes[second + 446 + 16 + 8..][..4].fill(0);
    let layout = Layout::read(&memory_disk(bytes.clone()), SectorSize::Detect).unwrap();
    assert!(layout.warnings.iter().any(|w| w.contains("loops")), "{:?}", layout.warnings);
    assert_eq!(layout.partitions.len(), 2);
    // And out of the container.
    bytes[second + 446 + 16 + 8..][..4].fill(0xff);
    let layout = Layout::read(&memory_disk(bytes), SectorSize::Detect).unwrap();
    assert!(layout.warnings.iter().any(|w| w.contains("leads out")), "{:?}", layout.warnings);
}

fn gpt(layout: &Layout) -> &gpt::Gpt {
    match &layout.table {
        Table::Gpt(gpt) => gpt,
        other => panic!("{other:?}"),
    }
}

#[test]
fn gpt_and_its_copies() {
    let sandbox = Sandbox::new();
    sandbox.blank("d", 64 * MIB);
    let script = "label: gpt\nsize=1M, type=21686148-6449-6E6F-744E-656564454649, name=boot\n\
        size=20M, type=U, name=\"EFI \u{e4}\"\nsize=10M, type=L, attrs=LegacyBIOSBootable\n";
    if sandbox.tool("sfdisk", &["d"], script).is_none() {
        return;
    }
    let (disk, layout) = sandbox.layout("d");
    assert!(layout.warnings.is_empty(), "{:?}", layout.warnings);
    assert!(layout.partitions[2].bootable);
    let mut plain = layout.clone();
    plain.partitions[2].bootable = false;
    same_as_sfdisk(&sandbox, "d", &plain);
    assert_eq!(layout.partitions[0].kind.describe(), Some("BIOS boot"));
    assert_eq!(gpt(&layout).primary, CopyState::Good);
    assert_eq!(gpt(&layout).backup, CopyState::Good);
    assert!(gpt(&layout).backup_at_end);
    let free = layout.unpartitioned(&disk);
    assert_eq!(free.len(), 1);
    assert_eq!(free[0].end(), disk.len() - 33 * 512);
    // Either copy alone will do.
    for (at, which) in [(512 + 40, 0), (512 * 2 + 3, 0), (64 * MIB - 512 + 40, 1)] {
        let mut bytes = sandbox.get("d");
        bytes[usize::try_from(at).unwrap()] ^= 1;
        let found = Layout::read(&memory_disk(bytes), SectorSize::Detect).unwrap();
        assert_eq!(found.partitions, layout.partitions);
        assert_eq!(found.warnings.len(), 1, "{:?}", found.warnings);
        let states = [&gpt(&found).primary, &gpt(&found).backup];
        assert!(matches!(states[which], CopyState::Damaged(_)), "{states:?}");
        assert_eq!(*states[1 - which], CopyState::Good);
    }
    // A larger disk.
    let mut bytes = sandbox.get("d");
    bytes.resize(80 << 20, 0);
    let grown = Layout::read(&memory_disk(bytes.clone()), SectorSize::Detect).unwrap();
    assert!(!gpt(&grown).backup_at_end && gpt(&grown).backup == CopyState::Good);
    assert_eq!(grown.partitions, layout.partitions);
    // Neither copy: the protective entry is no partition.
    bytes[512] = 0;
    bytes[(64 << 20) - 512] = 0;
    let lost = Layout::read(&memory_disk(bytes), SectorSize::Detect).unwrap();
    assert!(lost.partitions.is_empty() && lost.warnings[0].contains("no copy"), "{lost:?}");
}

#[test]
fn sectors_of_4096_bytes() {
    let sandbox = Sandbox::new();
    sandbox.blank("d", 64 * MIB);
    let commands = "g\nn\n1\n\n+8M\nn\n2\n\n\nw\n";
    if sandbox.tool("fdisk", &["-b", "4096", "d"], commands).is_none() {
        return;
    }
    let (_, layout) = sandbox.layout("d");
    assert_eq!(layout.sector_size, 4096);
    assert_eq!(layout.partitions.len(), 2);
    assert_eq!(layout.partitions[0].start, MIB);
    assert_eq!(layout.partitions[0].length, 8 * MIB);
    assert!(Layout::read(&sandbox.disk("d"), SectorSize::Given(1000)).is_err());
}

#[test]
fn disks_without_a_table() {
    let sandbox = Sandbox::new();
    let made: [(&str, &[&str], u64, Content); 6] = [
        ("mkfs.vfat", &["d"], 16, Content::Fat),
        ("mkfs.ext4", &["-q", "d"], 16, Content::Ext),
        ("mkntfs", &["-q", "-F", "-Q", "d"], 16, Content::Ntfs),
        ("mkfs.exfat", &["d"], 16, Content::ExFat),
        ("mkfs.xfs", &["-q", "d"], 320, Content::Xfs),
        ("mkswap", &["d"], 16, Content::Swap),
    ];
    for (tool, args, mib, content) in made {
        sandbox.blank("d", mib * MIB);
        if sandbox.tool(tool, args, "").is_none() {
            continue;
        }
        let (disk, layout) = sandbox.layout("d");
        assert_eq!(layout.table, Table::None, "{tool}");
        let volumes = layout.volumes(&disk);
        assert_eq!(volumes.len(), 1);
        assert_eq!(content::probe(&volumes[0]).unwrap(), [content], "{tool}");
    }
}

#[test]
fn doubtful_layouts() {
    let sandbox = Sandbox::new();
    sandbox.blank("d", 64 * MIB);
    if sandbox.tool("mkfs.ext4", &["-q", "-F", "d"], "").is_none() {
        return;
    }
    // The signature of ext survives under a table.
    let script = "label: dos\n,20M,L\n,10M,L\n";
    if sandbox.tool("sfdisk", &["-w", "never", "-W", "never", "d"], script).is_none() {
        return;
    }
    let (_, layout) = sandbox.layout("d");
    assert!(layout.ambiguous.unwrap().contains("ext2"), "{:?}", layout.warnings);
    sandbox.blank("d", 64 * MIB);
    sandbox.tool("sfdisk", &["d"], script).unwrap();
    let mut bytes = sandbox.get("d");
    bytes[446 + 16 + 9] = 0;
    let layout = Layout::read(&memory_disk(bytes), SectorSize::Detect).unwrap();
    assert!(layout.ambiguous.unwrap().contains("overlap"), "{:?}", layout.warnings);
}

/// Loop devices that are given back.
struct Loops<'a>(&'a Sandbox, Vec<String>);

impl Loops<'_> {
    fn add(&mut self, file: &str) -> Option<String> {
        let out = self.0.try_tool("losetup", &["--find", "--show", file], "")?;
        if !out.status.success() {
            eprintln!("SKIPPED LVM: no loop device: {}", String::from_utf8_lossy(&out.stderr));
            return None;
        }
        let name = String::from_utf8(out.stdout).unwrap().trim().to_owned();
        self.1.push(name.clone());
        Some(name)
    }
}

impl Drop for Loops<'_> {
    fn drop(&mut self) {
        for device in &self.1 {
            let _ = self.0.try_tool("losetup", &["-d", device], "");
        }
    }
}

/// A group on two disks, made by LVM itself without its kernel part.
fn lvm_disks(sandbox: &Sandbox) -> Option<()> {
    sandbox.blank("a", 40 * MIB);
    sandbox.blank("b", 40 * MIB);
    let mut loops = Loops(sandbox, Vec::new());
    let a = loops.add("a")?;
    let b = loops.add("b")?;
    let system = sandbox.file("etc");
    std::fs::create_dir(&system).unwrap();
    let system = format!("LVM_SYSTEM_DIR={}", system.display());
    let lvm = |args: &[&str]| {
        let mut all = vec![system.as_str(), "lvm"];
        all.extend(args);
        all.extend(["--devices", &a, "--devices", &b, "--driverloaded", "n"]);
        let out = sandbox.try_tool("env", &all, "")?;
        if String::from_utf8_lossy(&out.stderr).contains("No such file") {
            eprintln!("SKIPPED LVM: lvm2 is not installed");
            return None;
        }
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        Some(())
    };
    let create = ["lvcreate", "-an", "-Zn", "-Wn", "-n"];
    lvm(&["vgcreate", "vgt", &a, &b])?;
    lvm(&[&create[..], &["root", "-L", "12M", "vgt", &a]].concat())?;
    lvm(&[&create[..], &["stripes", "-i", "2", "-I", "16k", "-L", "16M", "vgt"]].concat())?;
    lvm(&[&create[..], &["line", "-L", "8M", "vgt", &a]].concat())?;
    lvm(&["lvextend", "-L", "+4M", "vgt/root", &a])
}

#[test]
fn volume_groups() {
    let sandbox = Sandbox::new();
    if lvm_disks(&sandbox).is_none() {
        return;
    }
    let (disk, layout) = sandbox.layout("a");
    assert_eq!(layout.table, Table::None);
    let [group] = layout.groups.as_slice() else { panic!("{:?}", layout.groups) };
    assert_eq!((group.name.as_str(), group.extent_size), ("vgt", 4 * MIB));
    assert_eq!(group.physical.len(), 2);
    assert_eq!(group.physical[0].data_start, Some(MIB));
    assert_eq!(group.physical[1].data_start, None);
    // As `lvs -o+seg_pe_ranges` has it: root 0-2 and 7, stripes 3-4, line 5-6.
    assert_eq!(group.physical[0].used, [(0, 8)]);
    assert_eq!(group.physical[1].used, [(0, 2)]);
    let root = group.volumes.iter().find(|v| v.name == "root").unwrap();
    assert_eq!(root.length, 16 * MIB);
    let root = root.open(&disk, "vgt").unwrap();
    let ranges: Vec<_> = root.on_disk(0, u64::MAX).map(|r| (r.start / MIB, r.len / MIB)).collect();
    assert_eq!(ranges, [(1, 12), (29, 4)]);
    let stripes = group.volumes.iter().find(|v| v.name == "stripes").unwrap();
    let why = stripes.open(&disk, "vgt").unwrap_err();
    assert!(why.message().contains("not on this disk"), "{why:?}");
    let names: Vec<_> = layout.volumes(&disk).iter().map(|v| v.name()).collect();
    assert_eq!(names, ["disk", "vgt/root", "vgt/line"]);
    // Both volumes as partitions of one disk.
    sandbox.blank("d", 100 * MIB);
    if sandbox.tool("sfdisk", &["d"], "label: gpt\nsize=40M\nsize=40M\n").is_none() {
        return;
    }
    let parts = sandbox.layout("d").1.partitions;
    sandbox.insert("d", parts[0].start, &sandbox.get("a"));
    sandbox.insert("d", parts[1].start, &sandbox.get("b"));
    let (disk, layout) = sandbox.layout("d");
    let stripes = layout.groups[0].volumes.iter().find(|v| v.name == "stripes").unwrap();
    let volume = stripes.open(&disk, "vgt").unwrap();
    let ranges: Vec<_> = volume.on_disk(0, 48 << 10).collect();
    let lane = |part: usize, extent: u64, at: u64| DiskRange {
        start: parts[part].start + MIB + extent * 4 * MIB + at,
        len: 16 << 10,
    };
    assert_eq!(ranges, [lane(0, 3, 0), lane(1, 0, 0), lane(0, 3, 16 << 10)]);
}

/// A small disk of each kind, for damaging.
fn samples() -> Vec<Vec<u8>> {
    let sandbox = Sandbox::new();
    let mut all = Vec::new();
    for script in ["label: dos\n,1M,L\n,,E\n,1M,L\n,1M,L\n", "label: gpt\n,1M,L\n,2M,L\n"] {
        sandbox.blank("d", 6 * MIB);
        if sandbox.tool("sfdisk", &["d"], script).is_some() {
            all.push(sandbox.get("d"));
        }
    }
    if lvm_disks(&sandbox).is_some() {
        let mut bytes = sandbox.get("a");
        bytes.truncate(2 << 20);
        all.push(bytes);
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Damage ends in warnings or errors. Most bytes of a disk are data: damage goes where tables are.
    #[test]
    fn damaged_tables(
        places in prop::collection::vec((0usize..8192, any::<u8>(), any::<bool>()), 1..12),
        cut in 0usize..(6 << 20),
    ) {
        use std::sync::OnceLock;
        static SAMPLES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
        for sample in SAMPLES.get_or_init(samples) {
            let mut bytes = sample.clone();
            let busy: Vec<usize> = (0..bytes.len() / 512)
                .filter(|s| bytes[s * 512..][..512].iter().any(|&b| b != 0))
                .collect();
            for &(at, value, random) in &places {
                let sector = busy[at / 512 % busy.len()];
                let byte = &mut bytes[sector * 512 + at % 512];
                *byte = if random { value } else { *byte ^ 1 << (value % 8) };
            }
            for bytes in [bytes.clone(), bytes[..cut.min(bytes.len())].to_vec()] {
                let disk = memory_disk(bytes);
                if let Ok(layout) = Layout::read(&disk, SectorSize::Detect) {
                    for volume in layout.volumes(&disk) {
                        let _ = content::probe(&volume);
                        let mut buf = [0; 4096];
                        let _ = volume.read_at(volume.len() / 2, &mut buf);
                        prop_assert!(volume.on_disk(0, 1 << 30).take(1000).all(|r| r.end() <= disk.len()));
                    }
                    layout.unpartitioned(&disk);
                }
            }
        }
    }
}
