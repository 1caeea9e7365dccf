//! `import`: whole virtual machines of other products.
//!
//! A description ([`ovf`] inside an OVA or beside its disks, [`vmx`], [`vbox`], or just a disk) becomes a
//! [`Machine`]; its disks are converted where they are (inside the archive, through their chains of
//! snapshots), and a command line is made for the same hardware. Everything in a description is from
//! elsewhere: names go through the open policy, texts and counts have bounds.
//!
//! An import that fails removes the disks it made.

mod bundle;
mod command;
mod machine;
mod manifest;
mod ovf;
mod unpack;
mod vbox;
mod vmx;
mod xml;

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use command::{Devices, shown};
pub use machine::{Bus, Disk, Family, Firmware, Machine, Nic, Source};

use super::convert::{Compress, ConvertOptions, Overwrite, Target, Verify, convert};
use super::create::{self, CreateImageOptions};
use super::{ImageArg, Job};
use crate::graph::open::{OpenRequest, Policy};
use crate::{Error, ErrorKind, Result};
use bundle::{Bundle, Place};

/// Disks of a machine.
const MAX_DISKS: usize = 64;

/// Whether hashes in a manifest are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksums {
    /// They are, where there is a manifest.
    #[default]
    Check,
    /// They are not (`--no-checksums`).
    Skip,
}

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// The description, the archive, or a disk.
    pub source: String,
    /// Where the disks and the script go.
    pub folder: String,
    /// Driver of the new disks.
    pub driver: String,
    /// `-o` for them.
    pub options: Vec<(String, String)>,
    /// `-c`.
    pub compress: Compress,
    /// `--verify`.
    pub verify: Verify,
    /// The machine's new name.
    pub name: Option<String>,
    /// Which machine, where the description holds several.
    pub system: Option<String>,
    /// What disks and network cards become.
    pub devices: Devices,
    /// Networks by name, and the bridges they become.
    pub bridges: Vec<(String, String)>,
    /// Whether hashes are compared.
    pub checksums: Checksums,
    /// Whether files that exist may be replaced.
    pub overwrite: Overwrite,
    /// Nothing is written.
    pub dry_run: bool,
}

/// What was made (or would be).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImportReport {
    /// The machine as described.
    pub machine: Machine,
    /// Files of the manifest whose hashes were right; none without a manifest.
    pub checked: Option<usize>,
    /// The new disks, in the machine's order.
    pub disks: Vec<String>,
    /// The command line that starts it from its folder.
    pub command: Vec<String>,
    /// The script that holds it.
    pub script: String,
}

/// Imports a machine.
///
/// # Errors
/// When the description does not read, a hash or a disk is wrong, or the output cannot be written.
pub fn import(options: &ImportOptions, job: &Job<'_>) -> Result<ImportReport> {
    let policy = job.policy.below(&options.source);
    let (bundle, mut machine, manifest) = describe(options)?;
    if machine.disks.len() > MAX_DISKS {
        let text = format!("the machine has more than {MAX_DISKS} disks");
        return Err(Error::new(ErrorKind::TooLarge, text).at_path(&options.source));
    }
    if machine.disks.is_empty() {
        machine.note("the machine has no hard disk".to_owned());
    }
    if let Some(name) = &options.name {
        machine.name.clone_from(name);
    }
    let base = file_name(&machine.name);
    let end = if options.driver == "raw" { "img" } else { &options.driver };
    let files: Vec<String> = match machine.disks.len() {
        1 => vec![format!("{base}.{end}")],
        n => (1..=n).map(|i| format!("{base}-disk{i}.{end}")).collect(),
    };
    let maker = command::Maker {
        devices: options.devices,
        bridges: &options.bridges,
        format: &options.driver,
        files: &files,
    };
    let arguments = maker.arguments(&mut machine);
    let inside = |name: &str| Path::new(&options.folder).join(name).to_string_lossy().into_owned();
    let mut report = ImportReport {
        checked: None,
        disks: files.iter().map(|f| inside(f)).collect(),
        command: arguments,
        script: inside(&format!("{base}.sh")),
        machine,
    };
    let exists = |path: &&String| {
        options.overwrite == Overwrite::Refuse
            && std::fs::metadata(path).is_ok_and(|meta| meta.len() > 0)
    };
    if let Some(path) = report.disks.iter().chain([&report.script]).find(exists) {
        return Err(Error::invalid(format!("'{path}' exists and is not empty"))
            .at_path(path)
            .hint("use --force to replace it, or --name for another name"));
    }
    // A missing disk is found before hours are spent on the first one.
    let places = sources(&report.machine, &bundle, &policy)?;
    if options.dry_run {
        return Ok(report);
    }
    if let (Checksums::Check, Some(text)) = (options.checksums, manifest) {
        report.checked = Some(manifest::check(&text, &bundle, &policy, job)?);
    }
    std::fs::create_dir_all(&options.folder)
        .map_err(|e| Error::io(&e).context(format!("Could not create '{}'", options.folder)))?;
    let mut made = Made::default();
    let mut policy = policy;
    if let Some(folder) = bundle.folder() {
        policy = policy.allow_folder(folder);
    }
    let inner = Job { policy: &policy, ..*job };
    for ((disk, place), path) in report.machine.disks.iter().zip(&places).zip(&report.disks) {
        one_disk(options, &inner, &bundle, disk, (place, path))
            .map_err(|e| e.context(format!("disk '{}'", disk.label)))?;
        made.0.push(path.clone());
    }
    save(&report)?;
    made.0.clear();
    Ok(report)
}

/// Disks of an import that is not done; removed when it fails.
#[derive(Default)]
struct Made(Vec<String>);

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

type Described = (Bundle, Machine, Option<String>);

/// Reads the description.
fn describe(options: &ImportOptions) -> Result<Described> {
    let source = options.source.as_str();
    let stem = Path::new(source).file_stem().map_or("machine".into(), |s| s.to_string_lossy());
    let failed = |e: Error| e.context(format!("Could not read '{source}'")).at_path(source);
    let beside = Bundle::Folder { description: source.to_owned() };
    let text = || Place { path: source.to_owned(), window: None }.text();
    match kind(source).map_err(failed)? {
        Kind::Ova => {
            let bundle = Bundle::archive(source)?;
            let (name, place) = bundle.member("ovf").ok_or_else(|| {
                Error::invalid(format!("'{source}' holds no description (.ovf)")).at_path(source)
            })?;
            let text = place.text().map_err(failed)?;
            let machine = ovf::parse(&text, &stem, options.system.as_deref())
                .map_err(|e| failed(e.context(name)))?;
            let manifest = bundle.member("mf").map(|(_, place)| place.text()).transpose()?;
            Ok((bundle, machine, manifest))
        }
        Kind::Ovf => {
            let text = text().map_err(failed)?;
            let machine = ovf::parse(&text, &stem, options.system.as_deref()).map_err(failed)?;
            let manifest = Path::new(source).with_extension("mf");
            let manifest = manifest
                .is_file()
                .then(|| Place { path: manifest.to_string_lossy().into_owned(), window: None });
            Ok((beside, machine, manifest.map(|place| place.text()).transpose()?))
        }
        Kind::Vmx => {
            let machine = text().and_then(|t| vmx::parse(&t, &stem)).map_err(failed)?;
            Ok((beside, machine, None))
        }
        Kind::Vbox => {
            let machine = text().and_then(|t| vbox::parse(&t, &stem)).map_err(failed)?;
            Ok((beside, machine, None))
        }
        Kind::Disk => {
            // Fails here when there is no such file or it may not be read.
            Place { path: source.to_owned(), window: None }.open()?;
            let name = Path::new(source).file_name().unwrap_or_default().to_string_lossy();
            Ok((beside, disk_alone(&name, &stem), None))
        }
    }
}

enum Kind {
    Ova,
    Ovf,
    Vmx,
    Vbox,
    Disk,
}

/// By the name, or else by what it begins with.
fn kind(source: &str) -> Result<Kind> {
    let end = Path::new(source).extension().unwrap_or_default().to_string_lossy().to_lowercase();
    Ok(match end.as_str() {
        "ova" => Kind::Ova,
        "ovf" => Kind::Ovf,
        "vmx" => Kind::Vmx,
        "vbox" => Kind::Vbox,
        _ => {
            let mut head = Vec::new();
            let place = Place { path: source.to_owned(), window: None };
            std::io::Read::read_to_end(&mut std::io::Read::take(place.open()?, 512), &mut head)?;
            let begins = |text: &str| {
                let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&head);
                head.trim_ascii_start().starts_with(text.as_bytes())
            };
            if head.get(257..262) == Some(b"ustar") {
                Kind::Ova
            } else if begins("<?xml") || begins("<Envelope") || begins("<ovf:Envelope") {
                Kind::Ovf
            } else {
                Kind::Disk
            }
        }
    })
}

/// A machine of usual size around a disk.
fn disk_alone(name: &str, stem: &str) -> Machine {
    let mut machine = Machine {
        name: stem.to_owned(),
        cpus: 1,
        memory: 1 << 30,
        disks: vec![Disk {
            label: name.to_owned(),
            source: Source::File {
                reference: name.to_owned(),
                format: None,
                gzip: false,
                chunk: None,
            },
            bus: Bus::Unknown,
            place: (0, 0),
        }],
        nics: vec![Nic::default()],
        ..Machine::default()
    };
    machine.note(
        "there is no description of the machine: processors and memory are a guess".to_owned(),
    );
    machine
}

/// Finds the file of every disk.
fn sources(machine: &Machine, bundle: &Bundle, policy: &Policy) -> Result<Vec<Option<Place>>> {
    let one = |disk: &Disk| {
        let Source::File { reference, chunk, .. } = &disk.source else { return Ok(None) };
        let first =
            if chunk.is_some() { format!("{reference}.000000000") } else { reference.clone() };
        let place = bundle.find(&first, policy)?;
        if place.window.is_none() && !Path::new(&place.path).exists() {
            return Err(Error::new(ErrorKind::NotFound, format!("'{}' is missing", place.path))
                .at_path(&place.path)
                .context(format!("disk '{}'", disk.label)));
        }
        Ok(Some(place))
    };
    machine.disks.iter().map(one).collect()
}

fn one_disk(
    options: &ImportOptions,
    job: &Job<'_>,
    bundle: &Bundle,
    disk: &Disk,
    (place, path): (&Option<Place>, &str),
) -> Result<()> {
    job.watcher.phase("converting");
    let (Some(place), Source::File { reference, format, gzip, chunk }) = (place, &disk.source)
    else {
        let Source::Empty { capacity } = disk.source else { return Ok(()) };
        let wish = CreateImageOptions {
            filename: path.to_owned(),
            driver: options.driver.clone(),
            size: Some(capacity),
            options: options.options.clone(),
            overwrite: options.overwrite,
            ..CreateImageOptions::default()
        };
        return create::plan(wish, job)?.run(job);
    };
    let unpacked = if *gzip || chunk.is_some() {
        let pieces = unpack::Pieces { bundle, policy: job.policy, reference };
        let pieces = chunk.is_some().then_some(&pieces);
        Some(unpack::unpack(place, pieces, &options.folder, job)?)
    } else {
        None
    };
    let mut request = OpenRequest::file(place.path.clone());
    request.window = place.window.map(|(start, len)| (start, Some(len)));
    if let Some(file) = &unpacked {
        request = OpenRequest::file(file.path());
        request.shown = Some(reference.clone());
    }
    request.driver = format.clone().or_else(|| by_name(reference));
    if request.window.is_some() {
        request.shown = Some(format!("{}: {reference}", place.path));
    }
    let source = ImageArg { request, ..ImageArg::default() };
    let target = Target::New {
        filename: path.to_owned(),
        driver: options.driver.clone(),
        options: options.options.clone(),
    };
    let mut wish = ConvertOptions::new(vec![source], target);
    wish.compress = options.compress;
    wish.verify = options.verify;
    wish.overwrite = options.overwrite;
    convert(&wish, job).map(drop)
}

/// The driver that a file's name promises. Without a promise the file is probed.
fn by_name(name: &str) -> Option<String> {
    let end = name.rsplit('.').next()?.to_ascii_lowercase();
    let driver = match end.as_str() {
        "vhd" => "vpc",
        "img" | "raw" | "iso" => "raw",
        "vmdk" | "vdi" | "vhdx" | "qcow2" => end.as_str(),
        _ => return None,
    };
    Some(driver.to_owned())
}

/// A machine's name as the name of a file.
fn file_name(name: &str) -> String {
    let allowed = |c: char| c.is_alphanumeric() || "-_.+ ()".contains(c);
    let text: String = name.chars().map(|c| if allowed(c) { c } else { '_' }).take(100).collect();
    let text = text.trim_matches(['.', ' ', '-']);
    if text.is_empty() { "machine".to_owned() } else { text.to_owned() }
}

/// Writes the script that starts the machine.
fn save(report: &ImportReport) -> Result<()> {
    let path = &report.script;
    let part = format!("{path}.part");
    let write = || {
        let mut how = std::fs::OpenOptions::new();
        let mut file = how.write(true).create(true).truncate(true).mode(0o755).open(&part)?;
        file.write_all(command::script(&report.machine, &report.command).as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&part, path)
    };
    write().map_err(|e| Error::io(&e).context(format!("Could not write '{path}'")).at_path(path))
}
