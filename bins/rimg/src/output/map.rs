//! The runs that `map` lists.

use imgcore::ops::map::MapEntry;

use super::shown_name;

/// The heading of the human form.
pub fn heading() -> String {
    format!("{:<16}{:<16}{:<16}File\n", "Offset", "Length", "Mapped to")
}

/// One run for people; `None` for a run that is not stored as plain data. A run that is stored, but
/// not as plain data in a file, cannot be shown.
pub fn human(e: &MapEntry) -> Result<Option<String>, &'static str> {
    if !e.data {
        return Ok(None);
    }
    let Some(offset) = e.offset else {
        return Err("File contains external, encrypted or compressed clusters.");
    };
    if e.zero {
        return Ok(None);
    }
    Ok(Some(format!(
        "{:<16}{:<16}{:<16}{}\n",
        hex(e.start),
        hex(e.length),
        hex(offset),
        e.filename.clone().map_or_else(String::new, shown_name::filename_of)
    )))
}

/// C's `%#x`: zero has no prefix.
fn hex(n: u64) -> String {
    if n == 0 { "0".into() } else { format!("{n:#x}") }
}

/// One run for programs, without what separates it from the next.
pub fn json(e: &MapEntry) -> String {
    let mut text = format!(
        "{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, \
         \"data\": {}, \"compressed\": {}",
        e.start, e.length, e.depth, e.present, e.zero, e.data, e.compressed
    );
    if let Some(offset) = e.offset {
        text.push_str(&format!(", \"offset\": {offset}"));
    }
    text.push('}');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> MapEntry {
        MapEntry {
            start: 0,
            length: 4096,
            depth: 0,
            present: true,
            zero: false,
            data: true,
            compressed: false,
            offset: Some(65536),
            filename: Some("f".into()),
        }
    }

    #[test]
    fn forms() {
        assert_eq!(heading(), "Offset          Length          Mapped to       File\n");
        assert_eq!(
            human(&entry()).unwrap().unwrap(),
            "0               0x1000          0x10000         f\n"
        );
        assert_eq!(
            json(&entry()),
            "{ \"start\": 0, \"length\": 4096, \"depth\": 0, \"present\": true, \"zero\": false, \
             \"data\": true, \"compressed\": false, \"offset\": 65536}"
        );
        assert_eq!(human(&MapEntry { zero: true, ..entry() }), Ok(None));
        assert!(human(&MapEntry { offset: None, ..entry() }).is_err());
    }
}
