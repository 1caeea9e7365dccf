//! Where images live (check 64).

use super::outcome::{Outcome, Remedy};
use crate::host::Host;
use crate::units::{GIB, show_size};
use crate::wanted::Wanted;

/// Magic numbers of linux/magic.h.
const KINDS: [(i64, &str); 9] = [
    (0xEF53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683E, "btrfs"),
    (0x6969, "nfs"),
    (0x794C_7630, "overlay"),
    (0x0102_1994, "tmpfs"),
    (0x2FC1_2FC1, "zfs"),
    (0xFF53_4D42, "cifs"),
    (0x6573_5546, "fuse"),
];

fn folder_of(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some(("", _)) => "/",
        Some((folder, _)) => folder,
        None => ".",
    }
}

/// The first parent that others may not pass.
fn closed_parent(host: &Host, folder: &str) -> Option<String> {
    let ends = folder.char_indices().filter(|(at, c)| *c == '/' && *at > 0).map(|(at, _)| at);
    let parents = ends.map(|at| &folder[..at]).chain([folder]);
    parents.filter(|parent| parent.starts_with('/')).find_map(|parent| {
        let stat = host.stat(parent)?;
        (stat.mode & 0o001 == 0).then(|| parent.to_owned())
    })
}

/// 64: file system, room, direct I/O, way in.
pub fn images(host: &Host, wanted: &Wanted) -> Outcome {
    let folder = wanted.images.first().map_or("/var/lib/libvirt/images", |path| folder_of(path));
    // A folder that is yet to be made will be on its parent's file system.
    let mut place = folder;
    while place != "/" && place != "." && !host.exists(place) {
        place = folder_of(place);
    }
    let Some(fact) = host.probe().filesystem(place) else {
        return Outcome::unknown(format!("nothing is known of the file system of {place}"))
            .read("statfs", "fails");
    };
    let kind =
        KINDS.iter().find(|(magic, _)| *magic == fact.magic).map_or("unknown", |(_, name)| name);
    let evidence = |outcome: Outcome| {
        outcome
            .read(format!("statfs {place}"), format!("{kind}, {} free", show_size(fact.free)))
            .read(
                "O_DIRECT",
                match fact.direct {
                    Some(true) => "works",
                    Some(false) => "refused",
                    None => "not tried",
                },
            )
    };
    if kind == "tmpfs" {
        return evidence(Outcome::warning(format!(
            "{place} is in memory: images vanish at shutdown"
        )))
        .remedy(Remedy::text("keep images on a disk"));
    }
    if kind == "btrfs" {
        return evidence(Outcome::warning(format!(
            "{place} is on btrfs: copy-on-write fragments images"
        )))
        .remedy(Remedy::command("before images are made in it", format!("chattr +C {place}")));
    }
    if matches!(kind, "nfs" | "cifs" | "overlay" | "fuse") {
        return evidence(Outcome::warning(format!(
            "{place} is on {kind}: locking and direct I/O may not work as on a disk"
        )))
        .remedy(Remedy::text("use a local disk, or test cache=none and image locking there"));
    }
    if fact.direct == Some(false) {
        return evidence(Outcome::warning("direct I/O is refused there: cache=none does not work"))
            .remedy(Remedy::text("use cache=writeback, or another file system"));
    }
    if fact.free < GIB {
        return evidence(Outcome::warning(format!(
            "only {} free in {place}",
            show_size(fact.free)
        )))
        .remedy(Remedy::text("free space before guests write: a full disk pauses or breaks them"));
    }
    if host.probe().identity().uid != 0
        && let Some(parent) = closed_parent(host, folder)
    {
        return evidence(Outcome::warning(format!(
            "{parent} lets other users not pass: their launchers reach no image below"
        )))
        .remedy(Remedy::command("let them pass", format!("chmod o+x {parent}")));
    }
    evidence(Outcome::pass(format!("{place} on {kind}")))
}
