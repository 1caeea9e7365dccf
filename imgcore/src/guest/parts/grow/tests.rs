//! Growing tables made by sfdisk, checked by sfdisk, sgdisk and parted; and every crash in between.

use std::sync::Arc;

use super::*;
use crate::guest::parts::{SectorSize, gpt::CopyState};
use crate::guest::testing::{Sandbox, patched};

const MIB: u64 = 1 << 20;

/// The first changes, the last of them torn after `torn` sectors.
fn written(changes: &[Change], torn: Option<usize>) -> Vec<(u64, Vec<u8>)> {
    let whole = |c: &Change| (c.at, c.bytes.clone());
    let mut all: Vec<_> = changes.iter().map(whole).collect();
    if let (Some(last), Some(sectors)) = (all.last_mut(), torn) {
        last.1.truncate(sectors * 512);
    }
    all
}

fn read(disk: &GuestDisk) -> Layout {
    Layout::read(disk, SectorSize::Detect).unwrap()
}

/// Plans, tears at every place, carries out; the new layout.
fn grow(sandbox: &Sandbox, name: &str, new_len: u64, choice: Choice) -> (Layout, GrowPlan) {
    let (disk, old) = sandbox.layout(name);
    let plan = plan(&disk, &old, new_len, choice).unwrap();
    let base = Arc::new(sandbox.get(name));
    let new = read(&patched(&base, new_len, written(&plan.changes, None)));
    let lengths = |l: &[Partition]| l.iter().map(|p| (p.number, p.length)).collect::<Vec<_>>();
    let (before, wanted) = (lengths(&old.partitions), lengths(&new.partitions));
    for end in 0..=plan.changes.len() {
        for torn in [None, Some(0), Some(1), Some(7)] {
            let crashed = patched(&base, new_len, written(&plan.changes[..end], torn));
            let found = read(&crashed);
            let now = lengths(&found.partitions);
            assert_eq!(before.len(), now.len(), "{end} {torn:?} {:?}", found.warnings);
            for ((o, n), w) in before.iter().zip(&now).zip(&wanted) {
                assert!(n == o || n == w, "{end} {torn:?}: {o:?} {n:?} {w:?}");
            }
        }
    }
    let file = std::fs::OpenOptions::new().write(true).open(sandbox.file(name)).unwrap();
    file.set_len(new_len).unwrap();
    plan.changes.iter().for_each(|c| sandbox.insert(name, c.at, &c.bytes));
    (new, plan)
}

fn tools_agree(sandbox: &Sandbox, name: &str) {
    let out = sandbox.try_tool("sgdisk", &["-v", name], "");
    if let Some(out) = out {
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let mbr = text.contains("invalid GPT and valid MBR");
        assert!(text.contains("No problems found") || mbr, "{text}");
    }
    sandbox.tool("sfdisk", &["-V", name], "");
    if let Some(text) = sandbox.tool("parted", &["-s", name, "unit", "B", "print"], "") {
        assert!(!text.contains("Error") && !text.contains("Warning"), "{text}");
    }
}

#[test]
fn gpt_grows() {
    let sandbox = Sandbox::new();
    for (len, choice) in [(96, Choice::Last), (97, Choice::Number(3)), (64, Choice::Last)] {
        sandbox.blank("d", 64 * MIB);
        let script = "label: gpt\nsize=1M\nsize=10M, name=root\nsize=20M, name=last\n";
        if sandbox.tool("sfdisk", &["d"], script).is_none() {
            return;
        }
        let before = sandbox.layout("d").1;
        let (new, plan) = grow(&sandbox, "d", len * MIB + 512, choice);
        let after = new;
        assert!(after.warnings.is_empty(), "{:?}", after.warnings);
        let last = &after.partitions[2];
        assert_eq!(last.end() % MIB, 0);
        // The backup GPT does not fit behind the last MiB.
        assert_eq!(last.end(), (len - 1) * MIB);
        assert_eq!(plan.new_length, last.length);
        assert_eq!(after.partitions[..2], before.partitions[..2]);
        assert_eq!((&last.id, &last.name), (&before.partitions[2].id, &before.partitions[2].name));
        tools_agree(&sandbox, "d");
        // Again: nothing to gain, and still sound.
        let (_, plan) = grow(&sandbox, "d", len * MIB + 512, choice);
        assert_eq!(plan.new_length, last.length);
        tools_agree(&sandbox, "d");
    }
    let (disk, layout) = sandbox.layout("d");
    let error = plan(&disk, &layout, 80 * MIB, Choice::Number(2)).unwrap_err();
    assert!(error.message().contains("partition 3") && error.message().contains("follows"));
    let error = plan(&disk, &layout, 80 * MIB, Choice::Number(9)).unwrap_err();
    assert!(error.hints()[0].contains("1, 2, 3"), "{error:?}");
    assert!(plan(&disk, &layout, 10 * MIB, Choice::Last).is_err());
}

#[test]
fn gpt_with_one_damaged_copy() {
    let sandbox = Sandbox::new();
    for damaged in [512 + 60, 64 * MIB - 512 + 60] {
        sandbox.blank("d", 64 * MIB);
        if sandbox.tool("sfdisk", &["d"], "label: gpt\nsize=10M\nsize=20M\n").is_none() {
            return;
        }
        sandbox.insert("d", damaged, &[0xaa]);
        let (disk, layout) = sandbox.layout("d");
        // A lost backup's place is not where it is looked for once the disk has grown.
        let plan = plan(&disk, &layout, 80 * MIB, Choice::Last).unwrap();
        let base = Arc::new(sandbox.get("d"));
        let after = read(&patched(&base, 80 * MIB, written(&plan.changes, None)));
        let Table::Gpt(gpt) = &after.table else { panic!("{after:?}") };
        assert_eq!((&gpt.primary, &gpt.backup), (&CopyState::Good, &CopyState::Good));
        sandbox.insert("d", 80 * MIB - 1, &[0]);
        plan.changes.iter().for_each(|c| sandbox.insert("d", c.at, &c.bytes));
        tools_agree(&sandbox, "d");
    }
}

#[test]
fn mbr_grows() {
    let sandbox = Sandbox::new();
    sandbox.blank("d", 64 * MIB);
    if sandbox.tool("sfdisk", &["d"], "label: dos\n,10M,L,*\n,10M,82\n,20M,L\n").is_none() {
        return;
    }
    let (disk, layout) = sandbox.layout("d");
    let error = plan(&disk, &layout, 80 * MIB, Choice::Number(1)).unwrap_err();
    assert!(error.hints()[0].contains("swapoff"), "{error:?}");
    let (new, _) = grow(&sandbox, "d", 100 * MIB, Choice::Last);
    let after = new;
    assert_eq!(after.partitions[2].end(), 100 * MIB);
    assert_eq!(after.partitions[..2], layout.partitions[..2]);
    tools_agree(&sandbox, "d");
    // Beyond 2 TiB.
    let plan = plan(&disk, &layout, 3 << 40, Choice::Last).unwrap();
    assert!(plan.notes[0].contains("no farther"), "{:?}", plan.notes);
    assert_eq!(plan.partition.start + plan.new_length, (2 << 40) - MIB);
}

#[test]
fn logical_partitions_grow() {
    let sandbox = Sandbox::new();
    sandbox.blank("d", 64 * MIB);
    let script = "label: dos\n,10M,L\n,,E\n,10M,L\n,10M,L\n,10M,82\n";
    if sandbox.tool("sfdisk", &["d"], script).is_none() {
        return;
    }
    let (new, plan) = grow(&sandbox, "d", 90 * MIB, Choice::Last);
    assert_eq!(plan.container.as_ref().map(|(p, _)| p.number), Some(2));
    let after = new;
    assert!(after.warnings.is_empty(), "{:?}", after.warnings);
    assert_eq!(after.partitions[4].number, 7);
    assert_eq!(after.partitions[4].end(), 90 * MIB);
    assert_eq!(after.partitions[1].end(), 90 * MIB);
    tools_agree(&sandbox, "d");
    let (disk, layout) = sandbox.layout("d");
    assert!(super::plan(&disk, &layout, 99 * MIB, Choice::Number(5)).is_err());
}
