//! Finding the disk below a differencing one.
//!
//! A VDI does not name its parent, it tells its identifier. The program that made it knows where its
//! disks are; we look where they usually are: in the image's folder (snapshots on snapshots), and in the
//! folder above (snapshots are in a folder `Snapshots` beside the disk and the machine's `.vbox` file).
//! There, VDI files are asked for their identifier, and `.vbox` files for the place of the disk. Everything
//! goes through the gate, so the folder above counts only where the user allowed it.

use std::sync::Arc;

use super::header;
use super::layout::SIGNATURE;
use crate::format::uuid::Uuid;
use crate::format::{Access, BackingRef, OpenContext};
use crate::num::small;
use crate::storage::Storage;
use crate::{Error, ErrorKind, Result};

/// Disks of one folder that are asked.
const MAX_ASKED: usize = 1024;
/// Bytes of a `.vbox` file that are looked at.
const MAX_VBOX: u64 = 4 << 20;
/// Where disks are looked for, seen from the image's folder.
const FOLDERS: [&str; 2] = [".", ".."];

/// Looks for the disk with identifier `wanted`.
pub(super) fn find(cx: &OpenContext<'_>, wanted: Uuid) -> Result<BackingRef> {
    let mut obstacle = None;
    for folder in FOLDERS {
        let names = match cx.gate.list_folder(folder) {
            Ok(names) => names,
            Err(e) => {
                obstacle.get_or_insert(e);
                continue;
            }
        };
        let path =
            |name: &str| if folder == "." { name.to_owned() } else { format!("{folder}/{name}") };
        let ending = |name: &str, end: &str| name.to_ascii_lowercase().ends_with(end);
        for name in names.iter().filter(|n| ending(n, ".vdi")).take(MAX_ASKED) {
            let name = path(name);
            match identifier(cx, &name) {
                Ok(Some(uuid)) if uuid == wanted => {
                    return Ok(BackingRef { name, format: Some("vdi".to_owned()) });
                }
                Ok(_) => {}
                Err(e) => {
                    obstacle.get_or_insert(e);
                }
            }
        }
        for name in names.iter().filter(|n| ending(n, ".vbox")).take(MAX_ASKED) {
            let Ok(text) = read_text(cx, &path(name)) else { continue };
            if let Some(found) = in_machine(&text, wanted) {
                let place =
                    if found.name.starts_with('/') { found.name } else { path(&found.name) };
                return Ok(BackingRef { name: place, format: found.format });
            }
        }
    }
    let missing = match obstacle {
        Some(e) if e.kind() == ErrorKind::Forbidden => e.context(format!(
            "the parent of this differencing disk, {wanted}, is not in its folder, and the folder above \
             may not be looked at"
        )),
        _ => Error::new(
            ErrorKind::NotFound,
            format!(
                "the parent of this differencing disk, {wanted}, is neither in its folder nor in the \
                 folder above"
            ),
        )
        .hint("put the parent's .vdi file beside the image; its name does not matter"),
    };
    Err(missing.at_path(cx.storage.name()).at_offset(424))
}

/// The identifier of a VDI; `None` for another file.
fn identifier(cx: &OpenContext<'_>, name: &str) -> Result<Option<Uuid>> {
    let storage: Arc<dyn Storage> = cx.gate.open_storage(name, Access::Read)?;
    let raw = header::read(&*storage)?;
    Ok((raw.signature.get() == SIGNATURE).then(|| Uuid::from_le(raw.uuid)))
}

fn read_text(cx: &OpenContext<'_>, name: &str) -> Result<String> {
    let storage = cx.gate.open_storage(name, Access::Read)?;
    let mut bytes = vec![0; small(storage.len()?.min(MAX_VBOX))];
    storage.read_at(0, &mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The `HardDisk` element with that identifier in the text of a `.vbox` file.
fn in_machine(text: &str, wanted: Uuid) -> Option<BackingRef> {
    for element in text.split("<HardDisk ").skip(1) {
        let element = element.split('>').next().unwrap_or(element);
        let attribute = |name: &str| {
            let start = element.find(&format!("{name}=\""))? + name.len() + 2;
            element[start..].split('"').next()
        };
        if attribute("uuid").and_then(Uuid::parse) != Some(wanted) {
            continue;
        }
        let location = attribute("location")?;
        let location = location
            .replace("&apos;", "'")
            .replace("&quot;", "\"")
            .replace("&lt;", "<")
            .replace("&gt;", ">")
            .replace("&amp;", "&");
        let format = match attribute("format").map(str::to_ascii_lowercase).as_deref() {
            Some("vdi") => "vdi",
            Some("vmdk") => "vmdk",
            Some("vhd") => "vpc",
            // Other formats cannot be below a VDI.
            _ => return None,
        };
        return Some(BackingRef { name: location, format: Some(format.to_owned()) });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_of_a_machine() {
        let text = r#"<VirtualBox><Machine uuid="{00112233-4455-6677-8899-aabbccddeeff}">
            <HardDisks><HardDisk uuid="{00112233-4455-6677-8899-aabbccddee01}" location="a &amp; b.vdi" format="VDI" type="Normal">
            <HardDisk uuid="{00112233-4455-6677-8899-aabbccddee02}" location="c.qcow2" format="QCOW"/></HardDisk>"#;
        let id =
            |n: u8| Uuid::parse(&format!("00112233-4455-6677-8899-aabbccddee{n:02x}")).unwrap();
        let found = in_machine(text, id(1)).unwrap();
        assert_eq!((found.name.as_str(), found.format.as_deref()), ("a & b.vdi", Some("vdi")));
        assert_eq!(in_machine(text, id(2)), None);
        assert_eq!(in_machine(text, id(255)), None);
    }
}
