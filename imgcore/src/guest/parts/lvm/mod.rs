//! LVM2: physical volumes, and where their logical volumes lie.
//!
//! There is no specification; the structures are described by LVM2's own
//! [`lib/format_text/layout.h`](https://sourceware.org/git/?p=lvm2.git) and by the libvslvm project's
//! *Logical Volume Manager (LVM) format*. [`label`] finds the label and the newest metadata on a physical
//! volume, [`text`] parses them, this file makes volumes of them.
//!
//! Linear and striped volumes are mapped, also where they have many segments. Volumes of other kinds (thin,
//! snapshots, mirrors, RAID, caches) and volumes with a part on another disk are listed with the reason why
//! they cannot be read.

mod label;
mod text;

use std::collections::HashMap;

use super::super::disk::GuestDisk;
use super::super::volume::{Origin, Segment, Volume};
use crate::num::len_u64;
use crate::{Error, Result};
pub(crate) use label::is_physical;
use text::Section;

/// Bytes of the sectors in which LVM counts.
const SECTOR: u64 = 512;
/// More segments than this in one volume are not believed.
const MAX_SEGMENTS: usize = 100_000;

/// A physical volume of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhysicalVolume {
    /// Its name in the metadata (`pv0`).
    pub name: String,
    /// LVM's identifier.
    pub id: String,
    /// The volume it lies on (`disk`, `partition 2`); `None` for one on another disk.
    pub carrier: Option<String>,
    /// Where its first extent begins on the disk, in bytes.
    pub data_start: Option<u64>,
    /// Number of extents.
    pub extents: u64,
    /// Extents that belong to a logical volume, sorted and joined: first and number.
    pub used: Vec<(u64, u64)>,
}

/// A logical volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogicalVolume {
    /// Name in its group.
    pub name: String,
    /// LVM's identifier.
    pub id: String,
    /// Bytes.
    pub length: u64,
    /// False for the parts of which other volumes are made.
    pub visible: bool,
    /// Another volume that is made of this one or keeps its older state (a snapshot's origin): its bytes are
    /// not only its own.
    pub used_by: Option<String>,
    /// Its mapping, or why there is none.
    pub mapping: std::result::Result<Vec<Segment>, String>,
}

impl LogicalVolume {
    /// The volume, to be read.
    ///
    /// # Errors
    /// When its kind is not supported, when a part is on another disk, or when it does not lie inside the
    /// disk.
    pub fn open(&self, disk: &GuestDisk, group: &str) -> Result<Volume> {
        let segments = self.mapping.clone().map_err(|why| {
            Error::unsupported(format!("logical volume {group}/{} {why}", self.name))
        })?;
        let origin = Origin::Logical {
            group: group.to_owned(),
            name: self.name.clone(),
            id: self.id.clone(),
        };
        Volume::mapped(disk, origin, segments)
    }
}

/// A volume group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// LVM's identifier.
    pub id: String,
    /// Bytes of an extent.
    pub extent_size: u64,
    /// Number of the metadata's version.
    pub seqno: u64,
    /// Physical volumes, also those on other disks.
    pub physical: Vec<PhysicalVolume>,
    /// Logical volumes.
    pub volumes: Vec<LogicalVolume>,
    /// Why the list of used extents is not known to be complete; free extents must not be touched then.
    pub uncertain: Option<String>,
}

/// A physical volume that was found: where, and what it says.
struct Found {
    carrier: String,
    start: u64,
    len: u64,
    id: String,
}

/// The groups that have a physical volume among `carriers`. Damage is told in `warnings`.
///
/// # Errors
/// When the disk cannot be read.
pub fn groups(carriers: &[Volume], warnings: &mut Vec<String>) -> Result<Vec<Group>> {
    let mut found = Vec::new();
    let mut texts: Vec<Section> = Vec::new();
    for carrier in carriers {
        let Some(pv) = label::read(carrier)? else { continue };
        let start = carrier.on_disk(0, 1).next().map_or(0, |r| r.start);
        found.push(Found { carrier: carrier.name(), start, len: carrier.len(), id: pv.id });
        for area in pv.metadata {
            let parsed = area.and_then(|bytes| text::parse(&bytes));
            match parsed {
                Ok(section) => texts.push(section),
                Err(e) => {
                    warnings.push(format!("LVM metadata on {}: {}", carrier.name(), e.report()));
                }
            }
        }
    }
    // The newest metadata of each group count.
    let mut newest: HashMap<String, (u64, Group)> = HashMap::new();
    for section in &texts {
        match group(section, &found) {
            Ok(group) => match newest.get(&group.id) {
                Some((seqno, _)) if *seqno >= group.seqno => {}
                _ => {
                    newest.insert(group.id.clone(), (group.seqno, group));
                }
            },
            Err(e) => warnings.push(format!("LVM metadata: {}", e.report())),
        }
    }
    let mut groups: Vec<Group> = newest.into_values().map(|(_, g)| g).collect();
    groups.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    for group in &groups {
        for pv in group.physical.iter().filter(|p| p.carrier.is_none()) {
            warnings.push(format!(
                "physical volume {} of volume group {} is not on this disk",
                pv.id, group.name
            ));
        }
    }
    Ok(groups)
}

/// One group from the parsed text.
fn group(root: &Section, found: &[Found]) -> Result<Group> {
    let (name, vg) = root
        .sections()
        .find(|(_, s)| s.sections().any(|(n, _)| n == "physical_volumes"))
        .ok_or_else(|| Error::corrupt("there is no volume group in them"))?;
    let extent_sectors = vg.number("extent_size")?;
    let extent_size = extent_sectors
        .checked_mul(SECTOR)
        .filter(|&n| n > 0)
        .ok_or_else(|| Error::corrupt(format!("extents of {extent_sectors} sectors")))?;
    let mut physical = Vec::new();
    for (pv_name, pv) in vg.section("physical_volumes")?.sections() {
        physical.push(physical_volume(pv_name, pv, found, extent_size)?);
    }
    let mut group = Group {
        name: name.to_owned(),
        id: vg.text("id")?.to_owned(),
        extent_size,
        seqno: vg.number("seqno")?,
        physical,
        volumes: Vec::new(),
        uncertain: None,
    };
    if let Ok(volumes) = vg.section("logical_volumes") {
        for (lv_name, lv) in volumes.sections() {
            let volume = logical_volume(&mut group, lv_name, lv)?;
            group.volumes.push(volume);
        }
        note_users(&mut group.volumes, volumes);
    }
    for pv in &mut group.physical {
        pv.used = join(std::mem::take(&mut pv.used));
    }
    Ok(group)
}

fn physical_volume(
    name: &str,
    pv: &Section,
    found: &[Found],
    extent_size: u64,
) -> Result<PhysicalVolume> {
    let id = pv.text("id")?.to_owned();
    let extents = pv.number("pe_count")?;
    let here = found.iter().find(|f| f.id == id);
    let pe_start = pv.number("pe_start")?.checked_mul(SECTOR);
    let fits = |f: &Found| {
        let end = extents.checked_mul(extent_size)?.checked_add(pe_start?)?;
        (end <= f.len).then_some(f.start + pe_start?)
    };
    let data_start = match here {
        None => None,
        Some(f) => Some(fits(f).ok_or_else(|| {
            Error::corrupt(format!("physical volume {name} is larger than {}", f.carrier))
        })?),
    };
    Ok(PhysicalVolume {
        name: name.to_owned(),
        id,
        carrier: here.map(|f| f.carrier.clone()),
        data_start,
        extents,
        used: Vec::new(),
    })
}

fn logical_volume(group: &mut Group, name: &str, lv: &Section) -> Result<LogicalVolume> {
    let mut segments = Vec::new();
    let mut trouble = None;
    let mut length = 0u64;
    let parts: Vec<&Section> =
        lv.sections().filter(|(n, _)| n.starts_with("segment")).map(|(_, s)| s).collect();
    if parts.len() > MAX_SEGMENTS {
        return Err(Error::corrupt(format!("{} segments in {name}", parts.len())));
    }
    for part in parts {
        let bytes = |key: &str| -> Result<u64> {
            let n = part.number(key)?;
            n.checked_mul(group.extent_size)
                .ok_or_else(|| Error::corrupt(format!("{key} = {n} in {name}")))
        };
        let (at, len) = (bytes("start_extent")?, bytes("extent_count")?);
        length = length.max(at.saturating_add(len));
        match segment(group, name, part, at, len)? {
            Ok(s) => segments.push(s),
            Err(why) => {
                trouble.get_or_insert(why);
            }
        }
    }
    segments.sort_by_key(|s| s.at);
    let visible = lv.list("status").is_none_or(|l| l.iter().any(|v| v.is_text("VISIBLE")));
    let mapping = match trouble {
        Some(why) => Err(why),
        None => Ok(segments),
    };
    let id = lv.text("id")?.to_owned();
    Ok(LogicalVolume { name: name.to_owned(), id, length, visible, used_by: None, mapping })
}

/// One segment, and the extents it takes noted in the group. The inner error says why it cannot be mapped.
fn segment(
    group: &mut Group,
    lv: &str,
    part: &Section,
    at: u64,
    len: u64,
) -> Result<std::result::Result<Segment, String>> {
    let kind = part.text("type")?;
    let count = part.number("extent_count")?;
    if !matches!(kind, "striped" | "linear") {
        note_areas(group, part, count);
        return Ok(Err(format!("is of the kind {kind}, which is not read here")));
    }
    let areas = part.areas("stripes");
    let lanes = len_u64(areas.len());
    if lanes == 0 || lanes != part.number("stripe_count")? || !count.is_multiple_of(lanes) {
        return Err(Error::corrupt(format!("the stripes of {lv} do not come out even")));
    }
    let stripe = match lanes {
        1 => Some(len),
        _ => part.number("stripe_size")?.checked_mul(SECTOR),
    };
    let stripe = stripe.filter(|&s| s > 0);
    let stripe = stripe.ok_or_else(|| Error::corrupt(format!("the stripe size of {lv}")))?;
    let each = count / lanes;
    let mut starts = Vec::new();
    let mut missing = None;
    let extent_size = group.extent_size;
    for (name, first) in areas {
        let Some(pv) = group.physical.iter_mut().find(|p| p.name == name) else {
            // Stacked on another logical volume; only special kinds do that.
            return Ok(Err(format!("lies on {name}, which is not a physical volume")));
        };
        if first.checked_add(each).is_none_or(|end| end > pv.extents) {
            return Err(Error::corrupt(format!("{lv} reaches beyond the end of {name}")));
        }
        pv.used.push((first, each));
        if pv.data_start.is_none() {
            missing.get_or_insert_with(|| pv.id.clone());
        }
        starts.push(pv.data_start.map(|start| start + first * extent_size));
    }
    Ok(match missing {
        Some(id) => {
            Err(format!("has a part on the physical volume {id}, which is not on this disk"))
        }
        None => Ok(Segment { at, len, lanes: starts, stripe }),
    })
}

/// Notes which volumes are named in the segments of others.
fn note_users(volumes: &mut [LogicalVolume], sections: &Section) {
    let mut users: HashMap<&str, &str> = HashMap::new();
    for (user, lv) in sections.sections() {
        for (_, part) in lv.sections() {
            for name in part.texts().filter(|n| *n != user) {
                users.insert(name, user);
            }
        }
    }
    for volume in volumes {
        volume.used_by = users.get(volume.name.as_str()).map(|u| (*u).to_owned());
    }
}

/// Notes what a segment of an unknown kind may take: each pair of a physical volume and an extent in any of
/// its lists, as far as the segment can reach.
fn note_areas(group: &mut Group, part: &Section, count: u64) {
    for key in part.keys() {
        for (name, first) in part.areas(key) {
            if let Some(pv) = group.physical.iter_mut().find(|p| p.name == name) {
                if first > pv.extents {
                    group.uncertain.get_or_insert_with(|| {
                        format!("a segment lies beyond the end of physical volume {name}")
                    });
                }
                pv.used.push((first, count.min(pv.extents.saturating_sub(first))));
            }
        }
    }
}

/// Sorts and joins ranges of extents.
fn join(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut all: Vec<(u64, u64)> = Vec::new();
    for (first, count) in ranges {
        match all.last_mut() {
            Some((f, c)) if first <= *f + *c => *c = (*c).max(first - *f + count),
            _ => all.push((first, count)),
        }
    }
    all
}
