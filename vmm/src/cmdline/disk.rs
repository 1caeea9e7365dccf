//! `-drive`, `-snapshot`.

use imgcore::graph::open::{DetectZeroes, Discard, OpenRequest, Sharing};
use imgcore::opts::ImageSpec;
use imgcore::opts::filename::{self, Filename};
use imgcore::opts::remote::Remote;
use imgcore::opts::tree::{Flat, Scalar};
use imgcore::storage::CacheMode;

use super::builder::Builder;
use super::options::{Options, boolean};
use super::throttle;
use crate::block::config::{Aio, Drive, OnError, Persistence, WriteAccess, WriteCache};
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
    /// `snapshot=` was given: `-snapshot` changes nothing.
    pub persistence_given: bool,
}

const REFUSED: super::options::Refusals = &[
    ("copy-on-read", "Leave it out"),
    ("bus", "Use -device virtio-blk-pci,drive=ID,addr="),
    ("unit", "Use index="),
    ("cyls", "Leave it out"),
    ("heads", "Leave it out"),
    ("secs", "Leave it out"),
    ("trans", "Leave it out"),
    ("addr", "Use -device virtio-blk-pci,drive=ID,addr="),
    ("cache-size", "Give format= as well"),
    ("throttling.", "See the manual for the limits that there are"),
];

/// Keys of the image's own drivers, which [`ImageSpec`] understands.
fn is_image_key(key: &str) -> bool {
    let prefixes = [
        "file.",
        "backing.",
        "data-file.",
        "header.",
        "encrypt.",
        "overlap-check.",
        "pass-discard-",
    ];
    let words = [
        "backing",
        "lazy-refcounts",
        "cache-size",
        "l2-cache-size",
        "l2-cache-entry-size",
        "refcount-cache-size",
        "cache-clean-interval",
        "discard-no-unref",
        "overlap-check",
        "offset",
        "size",
        "force-share",
        "key-secret",
    ];
    prefixes.iter().any(|p| key.starts_with(p)) || words.contains(&key)
}

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
    let number = u64::try_from(b.drives.len()).unwrap_or(0);
    let id = o.take("id").unwrap_or_else(|| format!("virtio{number}"));
    // A node's name is another name for the same disk here.
    let node_name = o.take("node-name");
    let cdrom = match o.take("media").as_deref() {
        None | Some("disk") => false,
        Some("cdrom") => true,
        Some(other) => return Err(Error::invalid(format!("'{other}' invalid media"))),
    };
    let throttling = throttle::take(&mut o, &id)?;
    let (persistence, persistence_given) = match o.take_bool("snapshot")? {
        None => (Persistence::Permanent, false),
        Some(false) => (Persistence::Permanent, true),
        Some(true) => (Persistence::Temporary, true),
    };
    let (cache, write_cache) = cache(&mut o)?;
    let aio = aio(&mut o, cache)?;
    let write_error = on_error(&mut o, "werror", OnError::StopWhenFull)?;
    let read_error = on_error(&mut o, "rerror", OnError::Report)?;
    // qemu-kvm's own: boot from this disk, which direct kernels do not need.
    if let Some(boot) = o.take("boot") {
        boolean("boot", &boot)?;
        b.warnings.push("-drive boot=: the kernel of -kernel is booted".into());
    }
    let access = access(&mut o, cdrom)?;
    let (discard, detect_zeroes) = space(&mut o)?;
    let serial = o.take("serial").unwrap_or_default();
    let index = o.take_number("index")?.unwrap_or(number);
    let mut image = image(&mut o)?;
    image.discard = Some(discard);
    image.detect_zeroes = detect_zeroes;
    image.cache = Some(cache);
    o.finish(REFUSED)?;
    let taken = |name: &str| b.nodes.has(name) || b.drives.iter().any(|d| d.drive.id == name);
    if let Some(name) = [Some(&id), node_name.as_ref()].into_iter().flatten().find(|n| taken(n)) {
        return Err(Error::invalid(format!("Duplicate ID '{name}' for drive")));
    }
    let id =
        if only_backend { node_name.filter(|_| !text.contains("id=")).unwrap_or(id) } else { id };
    let drive = Drive {
        id,
        image,
        access,
        persistence,
        write_cache,
        write_error,
        read_error,
        throttling,
        aio,
        serial,
        ..Drive::default()
    };
    b.drives.push(DriveSpec { drive, index, only_backend, persistence_given });
    Ok(())
}

/// `-snapshot`.
pub fn snapshot(b: &mut Builder, _text: &str) -> Result<()> {
    b.snapshot = true;
    Ok(())
}

/// The image with everything that belongs to opening it.
fn image(o: &mut Options) -> Result<OpenRequest> {
    let name = match (o.take("file"), o.take("file.filename")) {
        (Some(_), Some(_)) => {
            return Err(Error::invalid("Cannot specify both 'file' and 'file.filename'"));
        }
        (Some(name), None) => Some(name),
        (None, Some(path)) => Some(filename::quote_path(&path)),
        (None, None) => None,
    };
    let format = match (o.take("format"), o.take("driver")) {
        (Some(_), Some(_)) => {
            return Err(Error::invalid("Cannot specify both 'driver' and 'format'"));
        }
        (a, b) => a.or(b),
    };
    let extra = o.take_where(is_image_key);
    if let (Some(name), true) = (&name, extra.is_empty()) {
        return OpenRequest::parse(name, format.as_deref());
    }
    let mut flat = Flat::default();
    if let Some(format) = &format {
        flat.set("driver", Scalar::Text(format.clone()));
    }
    let parsed = name.as_deref().map(filename::parse).transpose().map_err(Error::from)?;
    let name = name.unwrap_or_default();
    match parsed {
        None if extra.iter().any(|(key, _)| key == "file.driver") => {}
        None => return Err(Error::invalid("Parameter 'file' is missing")),
        Some(Filename::Path(path)) => flat.set("file.filename", Scalar::Text(path)),
        // More about the server that the name is of.
        Some(Filename::Protocol { driver: protocol, .. }) if Remote::is_driver(protocol) => {
            flat.set("file.driver", Scalar::Text(protocol.to_owned()));
            flat.set("file.filename", Scalar::Text(name));
        }
        Some(Filename::Json(_) | Filename::Protocol { .. }) => {
            return Err(Error::unsupported(format!(
                "file={name} cannot be combined with '{}'",
                extra[0].0
            ))
            .hint("Use -blockdev"));
        }
    }
    for (key, value) in extra {
        flat.set(&key, Scalar::Text(value));
    }
    let spec = ImageSpec::from_flat(flat).map_err(Error::from)?;
    if let Some((key, _)) = spec.undecided.first() {
        return Err(Error::invalid(format!("'{key}' needs to know the format"))
            .hint("Give format= as well"));
    }
    let mut request = OpenRequest::from_spec(&spec, "-drive")?;
    request.shown = None;
    if request.sharing == Some(Sharing::Force) {
        return Err(Error::unsupported("force-share=on is not supported for a guest's disk")
            .hint("file.locking=off takes no locks; then nothing keeps a second writer away"));
    }
    Ok(request)
}

/// `cache=` and what its words are made of.
fn cache(o: &mut Options) -> Result<(CacheMode, WriteCache)> {
    let (mut writeback, mut direct, mut no_flush) = match o.take("cache").as_deref() {
        None | Some("writeback") => (true, false, false),
        Some("none" | "off") => (true, true, false),
        Some("writethrough") => (false, false, false),
        Some("directsync") => (false, true, false),
        Some("unsafe") => (true, false, true),
        Some(_) => return Err(Error::invalid("invalid cache option")),
    };
    for (key, value) in [
        ("cache.writeback", &mut writeback),
        ("cache.direct", &mut direct),
        ("cache.no-flush", &mut no_flush),
    ] {
        if let Some(on) = o.take_bool(key)? {
            *value = on;
        }
    }
    let mode = match (direct, no_flush) {
        (true, true) => {
            return Err(Error::unsupported(
                "cache.direct=on and cache.no-flush=on together are not supported",
            )
            .hint("Use cache=none or cache=unsafe"));
        }
        (true, false) => CacheMode::None,
        (false, true) => CacheMode::Unsafe,
        (false, false) => CacheMode::Writeback,
    };
    Ok((mode, if writeback { WriteCache::Writeback } else { WriteCache::Writethrough }))
}

/// `aio=`.
fn aio(o: &mut Options, cache: CacheMode) -> Result<Aio> {
    match o.take("aio").as_deref() {
        None => Ok(Aio::Auto),
        Some("threads") => Ok(Aio::Threads),
        Some("io_uring") => Ok(Aio::Ring),
        Some("native") => native(cache.direct()),
        Some(other) => Err(Error::invalid(format!("invalid aio option '{other}'"))),
    }
}

/// `aio=native`, which is for files that bypass the page cache.
pub fn native(direct: bool) -> Result<Aio> {
    if direct {
        return Ok(Aio::Native);
    }
    Err(Error::invalid(
        "aio=native was specified, but it requires cache.direct=on, which was not specified.",
    ))
}

/// `werror=` or `rerror=`, of a drive or a device.
pub fn on_error(o: &mut Options, key: &str, usual: OnError) -> Result<OnError> {
    Ok(match (o.take(key).as_deref(), key) {
        (None | Some("auto"), _) => usual,
        (Some("report"), _) => OnError::Report,
        (Some("ignore"), _) => OnError::Ignore,
        (Some("stop"), _) => OnError::Stop,
        (Some("enospc"), "werror") => OnError::StopWhenFull,
        (Some(other), _) => {
            let kind = if key == "werror" { "write" } else { "read" };
            return Err(Error::invalid(format!("'{other}' invalid {kind} error action")));
        }
    })
}

fn access(o: &mut Options, cdrom: bool) -> Result<WriteAccess> {
    let given = (o.take_bool("readonly")?, o.take_bool("read-only")?);
    let read_only = given.0.or(given.1);
    let auto = o.take_bool("auto-read-only")?.unwrap_or(false);
    Ok(match (cdrom, read_only, auto) {
        (true, Some(false), _) => {
            return Err(Error::invalid("a CD cannot be written: media=cdrom needs readonly=on"));
        }
        (true, ..) | (_, Some(true), _) => WriteAccess::ReadOnly,
        (_, _, true) => WriteAccess::Auto,
        _ => WriteAccess::ReadWrite,
    })
}

fn space(o: &mut Options) -> Result<(Discard, DetectZeroes)> {
    let discard = match o.take("discard").as_deref() {
        None | Some("ignore" | "off") => Discard::Ignore,
        Some("unmap" | "on") => Discard::Unmap,
        Some(_) => return Err(Error::invalid("Invalid discard option")),
    };
    let detect = match o.take("detect-zeroes").as_deref() {
        None | Some("off") => DetectZeroes::Off,
        Some("on") => DetectZeroes::On,
        Some("unmap") if discard == Discard::Unmap => DetectZeroes::Unmap,
        Some("unmap") => {
            return Err(Error::invalid(
                "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
            ));
        }
        Some(other) => {
            return Err(Error::invalid(format!("invalid parameter value: {other}")));
        }
    };
    Ok((discard, detect))
}
