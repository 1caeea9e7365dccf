//! `-drive` and its short forms.

use imgcore::storage::CacheMode;

use super::builder::Builder;
use super::options::{Options, boolean};
use crate::machine::config::Drive;
use crate::{Error, Result};

/// A `-drive`.
#[derive(Clone, Debug)]
pub struct DriveSpec {
    /// The image.
    pub drive: Drive,
    /// `index=`.
    pub index: u64,
    /// `if=none`: a `-device` uses it.
    pub only_backend: bool,
}

const REFUSED: super::options::Refusals = &[
    ("throttling.", "Leave it out; limits are not supported yet"),
    ("bps", "Leave it out; limits are not supported yet"),
    ("iops", "Leave it out; limits are not supported yet"),
    ("detect-zeroes", "Leave it out"),
    ("snapshot", "Make an overlay: rimg create -f qcow2 -b IMAGE -F FORMAT overlay.qcow2"),
    ("copy-on-read", "Leave it out"),
    ("bus", "Use -device virtio-blk-pci,drive=ID,addr="),
    ("unit", "Use index="),
    ("group", "Leave it out"),
    ("cyls", "Leave it out"),
    ("heads", "Leave it out"),
    ("secs", "Leave it out"),
    ("trans", "Leave it out"),
    ("addr", "Use -device virtio-blk-pci,drive=ID,addr="),
    ("encrypt.", "Convert the image: rimg convert"),
    ("file.", "Write file=NAME"),
    ("node-name", "Use id="),
];

/// `-drive`.
pub fn drive(b: &mut Builder, text: &str) -> Result<()> {
    let mut o = Options::parse(text, Some("file"));
    let interface = o.take("if").unwrap_or_else(|| "ide".into());
    let only_backend = match interface.as_str() {
        "virtio" => false,
        "none" => true,
        other => {
            return Err(Error::unsupported(format!("if={other} is not supported yet"))
                .hint("Use if=virtio"));
        }
    };
    match o.take("media").as_deref() {
        None | Some("disk") => {}
        Some(other) => {
            return Err(Error::unsupported(format!("media={other} is not supported yet"))
                .hint("Attach the image as a disk: media=disk,readonly=on"));
        }
    }
    let number = u64::try_from(b.drives.len()).unwrap_or(0);
    let id = o.take("id").unwrap_or_else(|| format!("virtio{number}"));
    let file = o.need("file")?;
    let cache = match o.take("cache") {
        None => CacheMode::Writeback,
        Some(name) => CacheMode::parse(&name)
            .ok_or_else(|| Error::invalid(format!("invalid cache option '{name}'")))?,
    };
    match o.take("aio").as_deref() {
        None | Some("threads") => {}
        Some(aio @ ("native" | "io_uring")) => {
            b.warnings
                .push(format!("-drive aio={aio}: requests are carried out by threads for now"));
        }
        Some(other) => return Err(Error::invalid(format!("invalid aio option '{other}'"))),
    }
    let discard = match o.take("discard").as_deref() {
        None | Some("ignore" | "off") => false,
        Some("unmap" | "on") => true,
        Some(other) => return Err(Error::invalid(format!("Invalid discard option '{other}'"))),
    };
    for policy in ["werror", "rerror"] {
        match o.take(policy).as_deref() {
            None | Some("report") => {}
            Some(other) => {
                return Err(Error::unsupported(format!("{policy}={other} is not supported yet"))
                    .hint(format!("Use {policy}=report: the guest sees the error")));
            }
        }
    }
    // qemu-kvm's own: boot from this disk, which direct kernels do not need.
    if let Some(boot) = o.take("boot") {
        boolean("boot", &boot)?;
        b.warnings.push("-drive boot=: the kernel of -kernel is booted".into());
    }
    let read_only = match (o.take_bool("readonly")?, o.take_bool("read-only")?) {
        (Some(v), _) | (None, Some(v)) => v,
        _ => false,
    };
    let drive = Drive {
        id: id.clone(),
        file,
        format: o.take("format").or_else(|| o.take("driver")),
        cache,
        read_only,
        discard,
        serial: o.take("serial").unwrap_or_default(),
    };
    let index = o.take_number("index")?.unwrap_or(number);
    o.finish(REFUSED)?;
    if b.drives.iter().any(|d| d.drive.id == id) {
        return Err(Error::invalid(format!("Duplicate ID '{id}' for drive")));
    }
    b.drives.push(DriveSpec { drive, index, only_backend });
    Ok(())
}
