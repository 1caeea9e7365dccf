//! What a caller asks to open: plain data, made from a file name or from an `--image-opts` tree.

use super::gate::Policy;
use crate::format::{Access, SnapshotSelector};
use crate::opts::filename::{self, Filename};
use crate::opts::filter::{Filter, Shown};
use crate::opts::http::without_credentials;
use crate::opts::remote::Remote;
use crate::opts::secret::Secrets;
use crate::opts::spec::{self, BackingSpec, ImageSpec};
use crate::storage::CacheMode;
use crate::{Error, Result};

/// Where the file below an image comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum BackingChoice {
    /// The image says.
    #[default]
    Recorded,
    /// None, whatever the image says (`backing: null`).
    Nothing,
    /// This one, whatever the image says.
    Given(Box<OpenRequest>),
}

/// What becomes of discard requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Discard {
    /// Ignored.
    #[default]
    Ignore,
    /// Carried out.
    Unmap,
}

/// Whether writes of zero bytes are turned into zero requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetectZeroes {
    /// No.
    #[default]
    Off,
    /// Yes, keeping space reserved.
    On,
    /// Yes, giving space back where discarding is allowed.
    Unmap,
}

/// One image to open, with everything that the user said about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenRequest {
    /// The file, as the user wrote it (a `file:` prefix already taken off).
    pub filename: String,
    /// The name in messages and reports, where it is not `filename` (a `json:{...}` description).
    pub shown: Option<String>,
    /// What is opened instead of a file; `filename` is the name it is shown by then.
    pub remote: Option<Box<Remote>>,
    /// Filters between the image and what it lies on, the outermost first.
    pub filters: Vec<Filter>,
    /// The driver; probed when not given.
    pub driver: Option<String>,
    /// The file below.
    pub backing: BackingChoice,
    /// An external data file given explicitly.
    pub data_file: Option<Box<OpenRequest>>,
    /// A detached header (LUKS) given explicitly.
    pub header: Option<Box<OpenRequest>>,
    /// The part of the file in which the image lies: where it begins, and how long it is.
    pub window: Option<(u64, Option<u64>)>,
    /// Options of the driver (`offset`, `size`, `lazy-refcounts`, ...), flattened and as text.
    pub options: Vec<(String, String)>,
    /// Options that wait for the driver to be probed.
    pub undecided: Vec<(String, String)>,
    /// Cache mode of this node, where it differs from the command's.
    pub cache: Option<CacheMode>,
    /// Sharing of this node, where it differs from the command's.
    pub sharing: Option<Sharing>,
    /// `read-only`, where given.
    pub read_only: Option<bool>,
    /// `discard`, where given.
    pub discard: Option<Discard>,
    /// `detect-zeroes`.
    pub detect_zeroes: DetectZeroes,
}

impl OpenRequest {
    /// What the user wrote as a file name: a path, or a description behind `json:`.
    pub fn parse(name: &str, driver: Option<&str>) -> Result<Self> {
        match filename::parse(name).map_err(|e| refused(name, e.into()))? {
            Filename::Path(path) => {
                if let Some(driver) = driver {
                    refuse_protocol(driver, name).map_err(|e| refused(name, e))?;
                }
                let mut request = OpenRequest::file(path).with_driver(driver);
                request.shown = (request.filename != name).then(|| name.to_owned());
                Ok(request)
            }
            Filename::Protocol { driver: "blkdebug", .. } => {
                let parsed = Filter::parse(name).map_err(|e| refused(name, e.into()))?;
                let (filter, image) = parsed
                    .ok_or_else(|| refused(name, Error::invalid("not a name of blkdebug")))?;
                let mut request = OpenRequest::parse(image, driver)?;
                request.filters.insert(0, filter);
                request.shown = Some(without_credentials(name).into_owned());
                Ok(request)
            }
            Filename::Protocol { driver: protocol, .. } => {
                let remote = Remote::parse(protocol, name).map_err(|e| refused(name, e.into()))?;
                let remote = remote.ok_or_else(|| {
                    let error =
                        Error::unsupported(format!("Protocol '{protocol}' is not supported"));
                    let advice = "copy the image to a file first, or attach it as a block device";
                    refused(name, error.hint(advice))
                })?;
                let mut request = OpenRequest::remote(remote).with_driver(driver);
                request.shown = Some(without_credentials(name).into_owned());
                Ok(request)
            }
            Filename::Json(spec) => {
                let mut request = OpenRequest::from_spec(&spec, name)?;
                // What the command line says stands above what the description says.
                request.driver = driver.map(str::to_owned).or(request.driver);
                Ok(request)
            }
        }
    }

    /// The tree of `--image-opts` or `json:`; `shown` is what the user wrote.
    pub fn from_spec(spec: &ImageSpec, shown: &str) -> Result<Self> {
        let shown = without_credentials(shown);
        from_spec(spec, Some(&shown)).map_err(|e| refused(&shown, e))
    }

    /// A file by its name, driver probed.
    pub fn file(filename: impl Into<String>) -> Self {
        OpenRequest { filename: filename.into(), ..OpenRequest::default() }
    }

    /// What is not in a file, driver probed.
    pub fn remote(remote: Remote) -> Self {
        let filename = remote.shown().name();
        OpenRequest { filename, remote: Some(Box::new(remote)), ..OpenRequest::default() }
    }

    /// Whether the driver is that of a filter.
    fn is_filter(&self) -> bool {
        self.driver.as_deref().is_some_and(Filter::is_driver)
    }

    /// With an explicit driver, if one is given.
    #[must_use]
    pub fn with_driver(mut self, driver: Option<&str>) -> Self {
        self.driver = driver.map(str::to_owned);
        self
    }

    /// With what the options mean that waited for the driver.
    ///
    /// # Errors
    /// When the driver does not have one of them.
    pub(super) fn settled(&self, driver: &str) -> Result<OpenRequest> {
        let mut spec = ImageSpec {
            undecided: self
                .undecided
                .iter()
                .map(|(k, v)| (k.clone(), crate::opts::tree::Scalar::Text(v.clone())))
                .collect(),
            ..ImageSpec::default()
        };
        spec.settle(driver)?;
        let mut request = OpenRequest { undecided: Vec::new(), ..self.clone() };
        request.options.extend(driver_options(&spec));
        if let Some(offset) = spec.offset.or(spec.size.map(|_| 0)) {
            request.window = Some((offset, spec.size));
        }
        if let Some(data) = &spec.data_file {
            request.data_file = Some(Box::new(from_spec(data, None)?));
        }
        if let Some(header) = &spec.header {
            request.header = Some(Box::new(from_spec(header, None)?));
        }
        Ok(request)
    }

    /// What an image above says of the one below it, completed by what the image itself records.
    #[must_use]
    pub(super) fn over_recorded(&self, recorded: OpenRequest) -> OpenRequest {
        OpenRequest {
            driver: self.driver.clone().or(recorded.driver),
            filename: recorded.filename,
            shown: recorded.shown,
            ..self.clone()
        }
    }

    /// What the image lies on, as names show it.
    pub fn bottom(&self) -> Shown {
        let bottom = self
            .remote
            .as_ref()
            .map_or_else(|| Shown::Plain(self.filename.clone()), |remote| remote.shown());
        self.filters.iter().rev().fold(bottom, |below, filter| filter.shown(below))
    }

    /// The name to show to people.
    pub fn name(&self) -> &str {
        self.shown.as_deref().unwrap_or(&self.filename)
    }
}

/// Whether opening takes QEMU's locks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// Locks are taken.
    #[default]
    Locked,
    /// No locks: the image may change while it is read (`-U`). Never for writing.
    Force,
    /// No locks at all (`locking=off`): the user keeps others away himself.
    Off,
}

/// How much of a chain to open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Depth {
    /// All of it.
    #[default]
    Chain,
    /// The named image alone.
    Top,
}

/// What the image is opened for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// Reading and writing guest data.
    #[default]
    Data,
    /// Reading all of it, while nobody writes.
    Source,
    /// A guest's disk: nobody else writes, and nobody reads what is being written.
    Guest,
    /// Looking at the header: a missing external data file is no error.
    Header,
    /// Checking: damage must not keep it from being opened, nothing is repaired on the way.
    Check,
    /// A private, unfinished target: the order of writes does not matter.
    Scratch,
}

/// How to open it.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// For reading, or for writing too. Files below are opened for reading.
    pub access: Access,
    /// Cache mode.
    pub cache: CacheMode,
    /// Locks.
    pub sharing: Sharing,
    /// How much of the chain.
    pub depth: Depth,
    /// An internal snapshot to show instead of the present state (of the top image).
    pub snapshot: Option<SnapshotSelector>,
    /// What for.
    pub purpose: Purpose,
    /// Which names inside images are followed.
    pub policy: Policy,
    /// An image further down that is opened with the same access as the top, by number of links
    /// (`commit` writes into it).
    pub also_writable: Option<usize>,
    /// Passphrases for encrypted images.
    pub secrets: Secrets,
}

impl OpenOptions {
    /// The same, for writing.
    #[must_use]
    pub fn writable(mut self) -> Self {
        self.access = Access::Write;
        self
    }
}

fn refused(name: &str, error: Error) -> Error {
    error.context(format!("Could not open '{}'", without_credentials(name)))
}

/// Walks down the tree of formats to the file.
fn from_spec(spec: &ImageSpec, shown: Option<&str>) -> Result<OpenRequest> {
    from_spec_over(spec, shown, Missing::Refused)
}

/// Whether a specification may leave the file open.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Refused,
    /// The image above records it (`backing.encrypt.key-secret=...`).
    Recorded,
}

/// A plain file name is none for a driver that is reached by an address, or that needs a node to stand on.
fn refuse_protocol(driver: &str, name: &str) -> Result<()> {
    if Filter::is_driver(driver) {
        let text = match driver {
            "throttle" => "Please specify a throttle group".to_owned(),
            _ => format!("'{driver}' is no format, but a filter over an image"),
        };
        return Err(Error::invalid(text).hint("describe all of it with --image-opts"));
    }
    if driver == "nbd" {
        return Err(Error::invalid("File name string for NBD must start with 'nbd:'"));
    }
    if Remote::is_driver(driver) {
        Remote::parse(driver, name)?;
    }
    Ok(())
}

/// Options for the driver, with those of encryption under the names that the driver gives them.
fn driver_options(spec: &ImageSpec) -> Vec<(String, String)> {
    let mut all = spec.other.clone();
    if let Some(encrypt) = &spec.encrypt {
        let prefix = if spec.driver.as_deref() == Some("luks") { "" } else { "encrypt." };
        for (name, value) in [("format", &encrypt.format), ("key-secret", &encrypt.key_secret)] {
            if let Some(value) = value {
                all.push((format!("{prefix}{name}"), value.clone()));
            }
        }
    }
    all
}

fn from_spec_over(spec: &ImageSpec, shown: Option<&str>, missing: Missing) -> Result<OpenRequest> {
    let mut request = OpenRequest {
        shown: shown.map(str::to_owned),
        driver: spec.driver.clone(),
        read_only: spec.read_only,
        options: driver_options(spec),
        undecided: spec
            .undecided
            .iter()
            .map(|(name, value)| (name.clone(), value.text().to_owned()))
            .collect(),
        discard: spec.discard.map(|on| if on { Discard::Unmap } else { Discard::Ignore }),
        detect_zeroes: match spec.detect_zeroes {
            None | Some(spec::DetectZeroes::Off) => DetectZeroes::Off,
            Some(spec::DetectZeroes::On) => DetectZeroes::On,
            Some(spec::DetectZeroes::Unmap) => DetectZeroes::Unmap,
        },
        sharing: spec.force_share.map(|on| if on { Sharing::Force } else { Sharing::Locked }),
        cache: cache_of(spec),
        ..OpenRequest::default()
    };
    if request.detect_zeroes == DetectZeroes::Unmap && request.discard != Some(Discard::Unmap) {
        return Err(Error::invalid(
            "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
        ));
    }
    if let Some(offset) = spec.offset.or(spec.size.map(|_| 0)) {
        request.window = Some((offset, spec.size));
    }
    request.backing = match &spec.backing {
        BackingSpec::FromImage => BackingChoice::Recorded,
        BackingSpec::None => BackingChoice::Nothing,
        BackingSpec::Spec(lower) => {
            BackingChoice::Given(Box::new(from_spec_over(lower, None, Missing::Recorded)?))
        }
    };
    if let Some(header) = &spec.header {
        request.header = Some(Box::new(from_spec(header, None)?));
    }
    if let Some(data) = &spec.data_file {
        let data = from_spec(data, None)?;
        if !data.filters.is_empty() {
            let protocol = data.driver.as_deref().unwrap_or("file");
            let text = format!("Protocol '{protocol}' is not supported for data files");
            return Err(Error::unsupported(text));
        }
        refuse_space_options(&data, "data-file")?;
        request.data_file = Some(Box::new(data));
    }
    let protocol = spec.driver.as_deref().unwrap_or_default();
    let remote = Remote::from_options(protocol, spec.filename.as_deref(), &spec.given)?;
    let filter = Filter::from_options(protocol, &spec.given)?;
    match (&spec.file, &spec.filename) {
        _ if remote.is_some() => {
            request.filename = remote.as_ref().map(|r| r.shown().name()).unwrap_or_default();
            request.remote = remote.map(Box::new);
        }
        (Some(file), _) if filter.is_some() => {
            lower_file(&mut request, file)?;
            request.filters.splice(0..0, filter);
        }
        (Some(file), _) => lower_file(&mut request, file)?,
        (None, Some(name)) => request.filename.clone_from(name),
        (None, None) if missing == Missing::Recorded => {}
        (None, None) => {
            return Err(Error::invalid("A block device must be specified for \"file\""));
        }
    }
    Ok(request)
}

/// Takes over what the tree says about the file below a format.
fn lower_file(request: &mut OpenRequest, file: &ImageSpec) -> Result<()> {
    let lower = from_spec(file, None)?;
    match lower.driver.as_deref() {
        None | Some("file" | "host_device") => {}
        Some(driver) if Remote::is_driver(driver) || Filter::is_driver(driver) => {}
        Some(driver) if spec::is_format(driver) && request.is_filter() => {
            return Err(Error::unsupported("a filter above a format is not supported").hint(
                "put it below: driver=FORMAT,file.driver=FILTER,file.file.filename=... \
                 (file.image.filename with blkdebug)",
            ));
        }
        Some("raw") if request.window.is_none() => request.window = lower.window,
        Some(driver) if spec::is_format(driver) => {
            return Err(Error::unsupported(format!(
                "an image inside a '{driver}' image cannot be opened"
            ))
            .hint("convert the outer image to raw first"));
        }
        Some(driver) => {
            return Err(Error::unsupported(format!("Protocol '{driver}' is not supported")));
        }
    }
    if request.driver.as_deref() == Some("raw") {
        // One image, one layer: what is said of the file is said of the disk.
        request.discard = request.discard.or(lower.discard);
        if request.detect_zeroes == DetectZeroes::Off {
            request.detect_zeroes = lower.detect_zeroes;
        }
    } else {
        refuse_space_options(&lower, "file")?;
    }
    request.filename = lower.filename;
    request.remote = lower.remote;
    request.filters = lower.filters;
    request.cache = request.cache.or(lower.cache);
    request.sharing = request.sharing.or(lower.sharing);
    request.read_only = request.read_only.or(lower.read_only);
    if file.locking == Some(spec::Locking::Off) {
        request.sharing = request.sharing.or(Some(Sharing::Off));
    }
    Ok(())
}

/// Below a format, zero bytes are not looked for and space is always given back; another wish is refused.
fn refuse_space_options(lower: &OpenRequest, child: &str) -> Result<()> {
    let option = match (lower.detect_zeroes, lower.discard) {
        (DetectZeroes::Off, None | Some(Discard::Unmap)) => return Ok(()),
        (DetectZeroes::Off, Some(Discard::Ignore)) => "discard=ignore",
        (DetectZeroes::On | DetectZeroes::Unmap, _) => "detect-zeroes",
    };
    let (name, _) = option.split_once('=').unwrap_or((option, ""));
    Err(Error::unsupported(format!(
        "the option '{child}.{option}' is not supported below a format"
    ))
    .hint(format!("give '{name}' to the image itself, without '{child}.'")))
}

fn cache_of(spec: &ImageSpec) -> Option<CacheMode> {
    match (spec.cache_no_flush, spec.cache_direct) {
        (Some(true), _) => Some(CacheMode::Unsafe),
        (_, Some(true)) => Some(CacheMode::None),
        (_, Some(false)) | (Some(false), _) => Some(CacheMode::Writeback),
        (None, None) => None,
    }
}
