//! The list of internal snapshots.

use imgcore::format::SnapshotInfo;
use imgcore::opts::human;
use serde_json::{Value, json};

use crate::local_time;

/// The table with its heading; nothing for an empty list.
pub fn table(list: &[SnapshotInfo]) -> String {
    if list.is_empty() {
        return String::new();
    }
    let mut text = String::from("Snapshot list:\n");
    row(["ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"], &mut text);
    for s in list {
        let ms = s.vm_clock_nsec / 1_000_000;
        let (hours, minutes, seconds) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
        row(
            [
                &s.id,
                &s.name,
                &human::size(s.vm_state_size),
                &local_time::format(s.date_sec),
                &format!("{hours:04}:{minutes:02}:{seconds:02}.{:03}", ms % 1000),
                &s.icount.map_or_else(|| "--".to_owned(), |n| n.to_string()),
            ],
            &mut text,
        );
    }
    text
}

fn row(cells: [&str; 6], text: &mut String) {
    let [id, tag, size, date, clock, icount] = cells;
    text.push_str(&format!("{id:<7} {tag:<16} {size:>8} {date:>19} {clock:>15} {icount:>10}\n"));
}

/// In QEMU's field names (`SnapshotInfo` of `qapi/block-core.json`).
pub fn json(list: &[SnapshotInfo]) -> Value {
    list.iter().map(one_json).collect()
}

fn one_json(s: &SnapshotInfo) -> Value {
    let mut value = json!({
        "id": s.id,
        "name": s.name,
        "vm-state-size": s.vm_state_size,
        "date-sec": s.date_sec,
        "date-nsec": s.date_nsec,
        "vm-clock-sec": s.vm_clock_nsec / 1_000_000_000,
        "vm-clock-nsec": s.vm_clock_nsec % 1_000_000_000,
    });
    if let Some(icount) = s.icount {
        value["icount"] = icount.into();
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows() {
        let s = SnapshotInfo {
            id: "1".into(),
            name: "aa".into(),
            vm_state_size: 0,
            date_sec: 0,
            date_nsec: 5,
            vm_clock_nsec: 3_723_004_000_000,
            icount: Some(0),
            disk_size: 0,
        };
        let text = table(std::slice::from_ref(&s));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[1],
            "ID      TAG               VM_SIZE                DATE        VM_CLOCK     ICOUNT"
        );
        assert!(lines[2].starts_with("1       aa                    0 B 19"), "{}", lines[2]);
        assert!(lines[2].ends_with("  0001:02:03.004          0"), "{}", lines[2]);
        assert_eq!(one_json(&s)["vm-clock-sec"], 3723);
        assert_eq!(table(&[]), "");
    }
}
