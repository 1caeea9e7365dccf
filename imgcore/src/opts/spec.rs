//! A complete image specification: `--image-opts driver=qcow2,file.filename=x`, `json:{...}`.
//!
//! [`ImageSpec`] is plain data. Parsing checks names and values as far as that is possible without
//! opening anything. Where no driver is given, the format is not yet known; options that only some
//! formats have then wait in [`ImageSpec::undecided`] until [`ImageSpec::settle`] is told.

use super::OptError;
use super::json;
use super::list::{self, FirstItem};
use super::tree::{Flat, Scalar};
use super::value;

/// One node: a format over its file, or a protocol.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImageSpec {
    /// The format or protocol; `None` means probe (or a plain file).
    pub driver: Option<String>,
    /// The name a user gave the node.
    pub node_name: Option<String>,
    /// The path of a protocol node, taken as it stands.
    pub filename: Option<String>,
    /// What a format lies on. In a `backing` specification it may be missing: then the image's own
    /// backing file name counts.
    pub file: Option<Box<ImageSpec>>,
    /// The backing image.
    pub backing: BackingSpec,
    /// qcow2's external data file.
    pub data_file: Option<Box<ImageSpec>>,
    /// luks: a header in a file by itself.
    pub header: Option<Box<ImageSpec>>,
    /// Open for reading only.
    pub read_only: Option<bool>,
    /// Fall back to reading only where writing is not allowed.
    pub auto_read_only: Option<bool>,
    /// Take no locks and accept those of others.
    pub force_share: Option<bool>,
    /// `cache.direct`: bypass the page cache.
    pub cache_direct: Option<bool>,
    /// `cache.no-flush`: ignore flushes.
    pub cache_no_flush: Option<bool>,
    /// Pass discards on.
    pub discard: Option<bool>,
    /// Turn written zeroes into zero ranges.
    pub detect_zeroes: Option<DetectZeroes>,
    /// raw: where the disk begins in the file.
    pub offset: Option<u64>,
    /// raw: how long it is.
    pub size: Option<u64>,
    /// Encryption.
    pub encrypt: Option<EncryptSpec>,
    /// file: byte-range locks.
    pub locking: Option<Locking>,
    /// file: how requests are submitted.
    pub aio: Option<Aio>,
    /// Options that steer speed, not meaning (cache sizes and the like), and those of network
    /// protocols, with their values checked where their form is known.
    pub other: Vec<(String, String)>,
    /// Options of network protocols and filters as they were given.
    pub given: Vec<(String, Scalar)>,
    /// Options nobody has taken because the driver is not known yet.
    pub undecided: Vec<(String, Scalar)>,
    /// Things to warn about.
    pub warnings: Vec<String>,
}

/// Which backing image.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum BackingSpec {
    /// The one the image names.
    #[default]
    FromImage,
    /// None, whatever the image says.
    None,
    /// This one.
    Spec(Box<ImageSpec>),
}

/// What to do with written zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DetectZeroes {
    /// Nothing.
    Off,
    /// Make them zero ranges.
    On,
    /// Make them zero ranges and give the space back.
    Unmap,
}

/// Byte-range locks on a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locking {
    /// Where the file system has them.
    Auto,
    /// Or fail.
    On,
    /// Never.
    Off,
}

/// How requests are submitted to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aio {
    /// By a pool of threads.
    Threads,
    /// By the kernel's own asynchronous calls; needs `cache.direct`.
    Native,
    /// By io_uring.
    IoUring,
}

/// How to decrypt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncryptSpec {
    /// `aes` or `luks`.
    pub format: Option<String>,
    /// The identifier of the secret.
    pub key_secret: Option<String>,
}

/// Format drivers, which need a `file`.
const FORMATS: &[&str] = &[
    "bochs",
    "cloop",
    "cow",
    "dmg",
    "luks",
    "parallels",
    "qcow",
    "qcow2",
    "qed",
    "raw",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
];

/// Protocol drivers and filters.
const OTHERS: &[&str] = &[
    "blkdebug",
    "blklogwrites",
    "blkverify",
    "compress",
    "copy-before-write",
    "copy-on-read",
    "file",
    "ftp",
    "ftps",
    "gluster",
    "host_cdrom",
    "host_device",
    "http",
    "https",
    "iscsi",
    "iser",
    "nbd",
    "nfs",
    "null-aio",
    "null-co",
    "nvme",
    "preallocate",
    "quorum",
    "rbd",
    "replication",
    "snapshot-access",
    "ssh",
    "throttle",
    "vvfat",
];

const FILE_DRIVERS: &[&str] = &["file", "host_device", "host_cdrom"];

/// True for a driver that gives meaning to the bytes of another node.
pub fn is_format(driver: &str) -> bool {
    FORMATS.contains(&driver)
}

/// True for the name of any driver, supported here or not.
pub fn is_known_driver(driver: &str) -> bool {
    is_format(driver) || OTHERS.contains(&driver)
}

/// Where a node stands; it decides what may be missing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The image itself.
    Top,
    /// Below a format: a protocol unless said otherwise.
    File,
    /// Behind an image: what is missing comes from the image.
    Backing,
}

impl ImageSpec {
    /// A plain path opened with an optional format.
    pub fn path(path: &str, driver: Option<&str>) -> Self {
        let file = ImageSpec { filename: Some(path.to_owned()), ..ImageSpec::default() };
        ImageSpec {
            driver: driver.map(str::to_owned),
            file: Some(Box::new(file)),
            ..ImageSpec::default()
        }
    }

    /// The argument of `--image-opts`.
    pub fn from_options(text: &str) -> Result<Self, OptError> {
        let items = list::parse(text, FirstItem::ValueOf("file"));
        build_top(Flat::from_items(&items))
    }

    /// What follows `json:` in a file name.
    pub fn from_json(text: &str) -> Result<Self, OptError> {
        let tree = json::parse(text).map_err(|e| e.prefix("Could not parse the JSON options"))?;
        build_top(Flat::from_tree(tree)?)
    }

    /// From keys and values that were put together elsewhere (`-blockdev`).
    pub fn from_flat(flat: Flat) -> Result<Self, OptError> {
        build_top(flat)
    }

    /// Tells the format that probing found; refuses options it does not have.
    pub fn settle(&mut self, driver: &str) -> Result<(), OptError> {
        let mut flat = Flat::default();
        for (key, value) in self.undecided.drain(..) {
            flat.set(&key, value);
        }
        self.driver = Some(driver.to_owned());
        take_driver_options(self, driver, &mut flat)?;
        refuse_rest(driver, &flat)
    }

    /// The path of the file at the bottom, if this is a chain of formats over a plain file.
    pub fn bottom_path(&self) -> Option<&str> {
        match &self.file {
            Some(file) => file.bottom_path(),
            None => self.filename.as_deref(),
        }
    }
}

/// Nodes within nodes; a real chain of formats is three or four deep.
const MAX_DEPTH: usize = 64;

fn build_top(flat: Flat) -> Result<ImageSpec, OptError> {
    // Every level of recursion below uses up one point of some key.
    if flat.iter().any(|(key, _)| key.matches('.').count() > MAX_DEPTH) {
        return Err(OptError::new("Image specification is nested too deeply"));
    }
    build(flat, Place::Top)
}

fn build(mut flat: Flat, place: Place) -> Result<ImageSpec, OptError> {
    let mut spec = ImageSpec { driver: flat.take_text("driver"), ..ImageSpec::default() };
    if let Some(driver) = spec.driver.as_deref().filter(|d| !is_known_driver(d)) {
        return Err(OptError::new(format!("Unknown driver '{driver}'")));
    }
    take_generic(&mut spec, &mut flat)?;
    spec.file = take_child("file", &mut flat)?;
    take_backing(&mut spec, &mut flat)?;
    let driver = spec.driver.clone();
    match driver.as_deref() {
        Some(d) if is_format(d) => {
            if spec.file.is_none() && place != Place::Backing {
                return Err(OptError::new("A block device must be specified for \"file\""));
            }
            take_driver_options(&mut spec, d, &mut flat)?;
            refuse_rest(d, &flat)?;
        }
        Some(d) => {
            take_driver_options(&mut spec, d, &mut flat)?;
            if FILE_DRIVERS.contains(&d) && spec.filename.as_deref().unwrap_or("").is_empty() {
                return Err(OptError::new(format!("The '{d}' block driver requires a file name")));
            }
            refuse_rest(d, &flat)?;
        }
        None if place == Place::File => {
            // A protocol node without a driver is a file, unless what it lies on is given.
            if spec.file.is_some() {
                spec.undecided = flat.iter().map(|(k, v)| (k.to_owned(), v.clone())).collect();
            } else {
                take_driver_options(&mut spec, "file", &mut flat)?;
                if spec.filename.is_none() {
                    return Err(OptError::new("Must specify either driver or file"));
                }
                refuse_rest("file", &flat)?;
            }
        }
        None => {
            if spec.file.is_none() && place == Place::Top {
                return Err(OptError::new("Must specify either driver or file"));
            }
            spec.undecided = flat.iter().map(|(k, v)| (k.to_owned(), v.clone())).collect();
        }
    }
    Ok(spec)
}

/// Options every node has.
fn take_generic(spec: &mut ImageSpec, flat: &mut Flat) -> Result<(), OptError> {
    spec.node_name = flat.take_text("node-name");
    spec.read_only = take_bool(flat, "read-only")?;
    spec.auto_read_only = take_bool(flat, "auto-read-only")?;
    spec.force_share = take_bool(flat, "force-share")?;
    spec.cache_direct = take_bool(flat, "cache.direct")?;
    spec.cache_no_flush = take_bool(flat, "cache.no-flush")?;
    spec.discard = match flat.take_text("discard").as_deref() {
        None => None,
        Some("unmap" | "on") => Some(true),
        Some("ignore" | "off") => Some(false),
        Some(_) => return Err(OptError::new("Invalid discard option")),
    };
    spec.detect_zeroes = take_choice(
        flat,
        "detect-zeroes",
        &[("off", DetectZeroes::Off), ("on", DetectZeroes::On), ("unmap", DetectZeroes::Unmap)],
    )?;
    Ok(())
}

/// Takes the options that only this driver has.
fn take_driver_options(
    spec: &mut ImageSpec,
    driver: &str,
    flat: &mut Flat,
) -> Result<(), OptError> {
    match driver {
        "raw" => {
            spec.offset = take_size(flat, "offset")?;
            spec.size = take_size(flat, "size")?;
        }
        "qcow2" => take_qcow2(spec, flat)?,
        "qcow" => take_encrypt(spec, flat, "encrypt."),
        "luks" => {
            take_encrypt(spec, flat, "");
            spec.header = take_child("header", flat)?;
        }
        "file" | "host_device" | "host_cdrom" => take_file(spec, flat)?,
        d if is_format(d) => {}
        _ => {
            // Network protocols check their own.
            spec.filename = flat.take_text("filename");
            if driver == "blkdebug" {
                spec.file = take_child("image", flat)?;
            }
            if let Some(filter) = super::filter::Filter::is_driver(driver).then_some(driver)
                && spec.file.is_none()
            {
                let child = super::filter::Filter::child(filter);
                return Err(OptError::new(format!(
                    "A block device must be specified for \"{child}\""
                )));
            }
            for (key, value) in std::mem::take(flat).iter() {
                spec.given.push((key.to_owned(), value.clone()));
            }
        }
    }
    Ok(())
}

fn take_qcow2(spec: &mut ImageSpec, flat: &mut Flat) -> Result<(), OptError> {
    for name in [
        "lazy-refcounts",
        "pass-discard-request",
        "pass-discard-snapshot",
        "pass-discard-other",
        "discard-no-unref",
        "overlap-check.main-header",
        "overlap-check.active-l1",
        "overlap-check.active-l2",
        "overlap-check.refcount-table",
        "overlap-check.refcount-block",
        "overlap-check.snapshot-table",
        "overlap-check.inactive-l1",
        "overlap-check.inactive-l2",
        "overlap-check.bitmap-directory",
    ] {
        if let Some(on) = take_bool(flat, name)? {
            spec.other.push((name.to_owned(), if on { "on" } else { "off" }.to_owned()));
        }
    }
    for name in ["cache-size", "l2-cache-size", "l2-cache-entry-size", "refcount-cache-size"] {
        if let Some(n) = take_size(flat, name)? {
            spec.other.push((name.to_owned(), n.to_string()));
        }
    }
    if let Some(t) = flat.take_text("cache-clean-interval") {
        let n = value::number("cache-clean-interval", &t)?;
        spec.other.push(("cache-clean-interval".to_owned(), n.to_string()));
    }
    for name in ["overlap-check", "overlap-check.template"] {
        if let Some(t) = flat.take_text(name) {
            if !["none", "constant", "cached", "all"].contains(&t.as_str()) {
                return Err(OptError::new(format!(
                    "Unsupported value '{t}' for qcow2 option 'overlap-check'. Allowed are any of \
                     the following: none, constant, cached, all"
                )));
            }
            spec.other.push((name.to_owned(), t));
        }
    }
    spec.data_file = take_child("data-file", flat)?;
    take_encrypt(spec, flat, "encrypt.");
    Ok(())
}

fn take_encrypt(spec: &mut ImageSpec, flat: &mut Flat, prefix: &str) {
    let format = if prefix.is_empty() { None } else { flat.take_text(&format!("{prefix}format")) };
    let key_secret = flat.take_text(&format!("{prefix}key-secret"));
    if format.is_some() || key_secret.is_some() {
        spec.encrypt = Some(EncryptSpec { format, key_secret });
    }
}

fn take_file(spec: &mut ImageSpec, flat: &mut Flat) -> Result<(), OptError> {
    spec.filename = match flat.take("filename") {
        None => None,
        Some(Scalar::Text(t)) => Some(t),
        Some(_) => return Err(OptError::new("The 'file' block driver requires a file name")),
    };
    spec.aio = take_choice(
        flat,
        "aio",
        &[("threads", Aio::Threads), ("native", Aio::Native), ("io_uring", Aio::IoUring)],
    )?;
    spec.locking = take_choice(
        flat,
        "locking",
        &[("auto", Locking::Auto), ("on", Locking::On), ("off", Locking::Off)],
    )?;
    if let Some(t) = flat.take_text("aio-max-batch") {
        spec.other
            .push(("aio-max-batch".to_owned(), value::number("aio-max-batch", &t)?.to_string()));
    }
    for name in ["drop-cache", "x-check-cache-dropped"] {
        if let Some(on) = take_bool(flat, name)? {
            spec.other.push((name.to_owned(), if on { "on" } else { "off" }.to_owned()));
        }
    }
    if let Some(id) = flat.take_text("pr-manager") {
        return Err(OptError::new(format!("No persistent reservation manager with id '{id}'")));
    }
    Ok(())
}

/// Takes a child: `name.key=...`. A bare `name=x` would refer to a node made elsewhere.
fn take_child(name: &str, flat: &mut Flat) -> Result<Option<Box<ImageSpec>>, OptError> {
    let reference = flat.take(name);
    let below = flat.take_below(name);
    match reference {
        None | Some(Scalar::Null) if below.is_empty() => Ok(None),
        None | Some(Scalar::Null) => Ok(Some(Box::new(build(below, Place::File)?))),
        Some(node) => Err(no_such_node(node.text(), &below)),
    }
}

fn take_backing(spec: &mut ImageSpec, flat: &mut Flat) -> Result<(), OptError> {
    let reference = flat.take("backing");
    let below = flat.take_below("backing");
    spec.backing = match reference {
        None if below.is_empty() => BackingSpec::FromImage,
        None => {
            let child = build(below, Place::Backing)
                .map_err(|e| e.prefix("Could not open backing file"))?;
            BackingSpec::Spec(Box::new(child))
        }
        Some(Scalar::Null) => BackingSpec::None,
        Some(node) if node.text().is_empty() => {
            spec.warnings.push(
                "Use of \"backing\": \"\" is deprecated; use \"backing\": null instead".to_owned(),
            );
            BackingSpec::None
        }
        Some(node) => {
            return Err(no_such_node(node.text(), &below).prefix("Could not open backing file"));
        }
    };
    Ok(())
}

fn no_such_node(name: &str, below: &Flat) -> OptError {
    if below.is_empty() {
        return OptError::new(format!("Cannot find device='{name}' nor node-name='{name}'"))
            .hint(format!("to name a file, write file.filename={}", list::escape(name)));
    }
    OptError::new(
        "Cannot reference an existing block device with additional options or a new filename",
    )
}

fn refuse_rest(driver: &str, flat: &Flat) -> Result<(), OptError> {
    let Some((key, _)) = flat.iter().next() else { return Ok(()) };
    Err(OptError::new(if is_format(driver) {
        format!("Block format '{driver}' does not support the option '{key}'")
    } else {
        format!("Block protocol '{driver}' doesn't support the option '{key}'")
    }))
}

fn take_bool(flat: &mut Flat, name: &str) -> Result<Option<bool>, OptError> {
    flat.take_text(name).map(|t| value::boolean(name, &t)).transpose()
}

fn take_size(flat: &mut Flat, name: &str) -> Result<Option<u64>, OptError> {
    flat.take_text(name).map(|t| value::size(name, &t)).transpose()
}

fn take_choice<T: Copy>(
    flat: &mut Flat,
    name: &str,
    choices: &[(&str, T)],
) -> Result<Option<T>, OptError> {
    let Some(text) = flat.take_text(name) else { return Ok(None) };
    match choices.iter().find(|(word, _)| *word == text) {
        Some((_, v)) => Ok(Some(*v)),
        None => Err(OptError::new(format!("invalid parameter value: {text}"))),
    }
}

#[cfg(test)]
#[path = "spec_test.rs"]
mod tests;
