//! Options that most commands share.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imgcore::graph::gate::combine;
use imgcore::graph::open::{OpenRequest, Policy, Sharing};
use imgcore::ops::convert::Overwrite;
use imgcore::ops::stream::{self, Packing, Spooled, StorageReader, Unpack};
use imgcore::ops::{ImageArg, Job};
use imgcore::opts::ImageSpec;
use imgcore::opts::filename::{self, Filename};
use imgcore::opts::http::HttpTarget;
use imgcore::opts::object::{self, ObjectDef};
use imgcore::opts::remote::Remote;
use imgcore::opts::secret::Secrets;
use imgcore::storage::CacheMode;
use imgcore::storage::http::{self, Opened};
use imgcore::throttle::ThrottleGroup;
use imgcore::tls::Credentials;

use crate::args::getopt::Given;
use crate::args::{self, help};
use crate::failure::Failure;
use crate::output::{self, Output};
use crate::progress::{Ending, Mode, Reporter};
use crate::prompt;
use crate::sandbox::{self, Plan, Writing};
use crate::session::Session;

/// What these options say.
pub struct Common<'a> {
    /// The run.
    pub session: &'a Session,
    /// The command, for messages.
    pub command: &'static str,
    /// `-f`.
    pub format: Option<String>,
    /// `--image-opts`.
    pub image_opts: bool,
    /// `-q`.
    pub quiet: bool,
    /// `-p`, `--progress`.
    pub progress: Mode,
    /// `-U`.
    pub force_share: bool,
    /// `--output`.
    pub output: Output,
    /// `--object`.
    pub secrets: Secrets,
    /// `--force` (`--overwrite` in dd).
    pub overwrite: bool,
    /// What is said when a signal ended the job.
    pub interrupted: &'static str,
    /// Where streams are unpacked; `TMPDIR` or `/var/tmp` without.
    pub spool_folder: Option<PathBuf>,
    spooled: Vec<Spooled>,
    sandbox: sandbox::Mode,
    /// What the command names; taken when the sandbox is entered.
    plan: RefCell<Option<Plan>>,
    changes: Cell<bool>,
    allow: Vec<PathBuf>,
    named: Vec<PathBuf>,
}

impl<'a> Common<'a> {
    /// Nothing given yet.
    pub fn new(session: &'a Session, command: &'static str) -> Self {
        let mut secrets = Secrets::default();
        if !session.as_qemu_img
            && let Some(who) = prompt::on_terminal()
        {
            secrets.ask(who);
        }
        Common {
            session,
            command,
            format: None,
            image_opts: false,
            quiet: false,
            progress: Mode::Off,
            force_share: false,
            output: Output::Human,
            secrets,
            overwrite: false,
            interrupted: "Interrupted; unfinished files were removed",
            spool_folder: None,
            spooled: Vec::new(),
            sandbox: sandbox::Mode::default(),
            plan: RefCell::new(Some(Plan::default())),
            changes: Cell::new(false),
            allow: Vec::new(),
            named: Vec::new(),
        }
    }

    /// Takes an option; an unknown one is a mistake of the tables, not of the user.
    pub fn take(&mut self, given: Given) -> Result<(), Failure> {
        match given.id {
            "help" => {
                if let Some(command) = args::find(self.command) {
                    output::print(&help::command(&self.session.program, command));
                }
                return Err(Failure::silent(0));
            }
            "format" => self.format = Some(given.value),
            "image-opts" => self.image_opts = true,
            "quiet" => self.quiet = true,
            "progress" => self.progress = self.progress_mode(&given.value)?,
            "force-share" => self.force_share = true,
            "object" => self.object(&given.value)?,
            "allow" => self.allow.push(PathBuf::from(given.value)),
            "sandbox" => {
                self.sandbox = sandbox::Mode::parse(&given.value).ok_or_else(|| {
                    let text = "--sandbox expects 'on', 'off' or 'require'";
                    self.usage(format!("{text}, not '{}'", given.value))
                })?;
            }
            "force" | "overwrite" => self.overwrite = true,
            "output" => {
                self.output = match given.value.as_str() {
                    "human" => Output::Human,
                    "json" => Output::Json,
                    other => {
                        return Err(
                            self.usage(format!("--output expects 'human' or 'json' not '{other}'"))
                        );
                    }
                };
            }
            other => return Err(self.usage(format!("option '{other}' is not for this command"))),
        }
        Ok(())
    }

    fn progress_mode(&self, text: &str) -> Result<Mode, Failure> {
        match text {
            "" | "bar" => Ok(Mode::On),
            "json" => Ok(Mode::Json),
            other => {
                Err(self.usage(format!("--progress expects 'json' or nothing, not '{other}'")))
            }
        }
    }

    fn object(&mut self, text: &str) -> Result<(), Failure> {
        match object::parse(text)? {
            ObjectDef::Secret(def) => {
                let secret = def.load(&self.secrets, imgcore::storage::secret::read)?;
                self.secrets.add(secret)?;
            }
            ObjectDef::ThrottleGroup(def) => self.secrets.add_group(ThrottleGroup::new(def))?,
            ObjectDef::Tls(def) => {
                let password =
                    def.password.as_deref().map(|id| self.secrets.get(id)).transpose()?;
                let credentials = Credentials::load(&def, password)?;
                self.secrets.add_credentials(def.id, credentials)?;
            }
        }
        Ok(())
    }

    /// A mistake in the use of this command.
    pub fn usage(&self, message: impl Into<String>) -> Failure {
        Failure::usage(self.command, message)
    }

    /// The one image name of commands that take one.
    pub fn one_image(&self, names: Vec<String>) -> Result<String, Failure> {
        let [name] = <[String; 1]>::try_from(names)
            .map_err(|_| self.usage("Expecting one image file name"))?;
        Ok(name)
    }

    /// `-f` and `--image-opts` exclude each other.
    pub fn check_exclusive(&self) -> Result<(), Failure> {
        if self.image_opts && self.format.is_some() {
            return Err(Failure::new("--image-opts and --format are mutually exclusive"));
        }
        Ok(())
    }

    /// An image of the command line, in the format of `-f`.
    pub fn image(&self, name: &str, cache: CacheMode) -> Result<ImageArg, Failure> {
        self.check_exclusive()?;
        self.image_as(name, self.format.as_deref(), cache)
    }

    /// An image of the command line, in this format.
    pub fn image_as(
        &self,
        name: &str,
        format: Option<&str>,
        cache: CacheMode,
    ) -> Result<ImageArg, Failure> {
        let request = self.request(name, format)?;
        self.image_named(&request);
        Ok(ImageArg { request, cache, sharing: self.sharing() })
    }

    /// A source of the command line that is read from front to end: also `-` for standard input, and a
    /// packed file (its name and first bytes agree on how) for what is in it.
    pub fn source(
        &mut self,
        name: &str,
        format: Option<&str>,
        cache: CacheMode,
    ) -> Result<ImageArg, Failure> {
        self.check_exclusive()?;
        if self.session.as_qemu_img {
            return self.image_as(name, format, cache);
        }
        if name == "-" && !self.image_opts {
            let request = OpenRequest { shown: Some("-".to_owned()), ..OpenRequest::default() };
            let request = request.with_driver(format);
            return self.spool(
                "standard input",
                std::io::stdin(),
                Unpack::AsItBegins,
                request,
                cache,
            );
        }
        let request = self.request(name, format)?;
        self.image_named(&request);
        if let Some(Remote::Http(target)) = request.remote.as_deref() {
            let target = target.clone();
            return self.web_source(&target, request, cache);
        }
        if self.image_opts || Packing::of_file(name)? == Packing::Plain {
            return Ok(ImageArg { request, cache, sharing: self.sharing() });
        }
        let file = std::fs::File::open(name).map_err(|e| imgcore::Error::io(&e))?;
        let request = OpenRequest { shown: Some(name.to_owned()), ..request };
        self.spool(name, file, Unpack::AsItBegins, request, cache)
    }

    /// A file on a web server: read in place where the server gives parts of it and it is not packed, otherwise
    /// copied first.
    fn web_source(
        &mut self,
        target: &HttpTarget,
        request: OpenRequest,
        cache: CacheMode,
    ) -> Result<ImageArg, Failure> {
        let name = request.name().to_owned();
        let named =
            |e: imgcore::Error| Failure::from(e.context(format!("Could not open '{name}'")));
        let unpack = Unpack::Named(&target.url);
        match http::open(target, &self.secrets).map_err(named)? {
            Opened::Ranges(storage) => {
                if Packing::of_url(&target.url, &storage).map_err(named)? == Packing::Plain {
                    return Ok(ImageArg { request, cache, sharing: self.sharing() });
                }
                let stream = StorageReader::new(Arc::new(storage));
                self.spool(&name, stream, unpack, request, cache)
            }
            Opened::Stream(stream) => self.spool(&name, stream, unpack, request, cache),
        }
    }

    /// Puts a stream into a temporary file, from which `request` is then opened.
    fn spool(
        &mut self,
        shown: &str,
        stream: impl std::io::Read,
        unpack: Unpack<'_>,
        request: OpenRequest,
        cache: CacheMode,
    ) -> Result<ImageArg, Failure> {
        let folder = self.spool_folder.clone().unwrap_or_else(temporary_folder);
        self.planned(|plan| plan.write_folder(&folder));
        let reporter = Reporter::new(self.session, Mode::Off);
        let spooled = self.run(&reporter, |job| stream::spool(stream, unpack, &folder, job));
        let spooled = spooled.map_err(|f| f.prefix(&format!("Could not read {shown}")))?;
        let request = OpenRequest { filename: spooled.path(), remote: None, ..request };
        self.spooled.push(spooled);
        Ok(ImageArg { request, cache, sharing: Sharing::Off })
    }

    /// Whether any source is a stream.
    pub fn has_streams(&self) -> bool {
        !self.spooled.is_empty()
    }

    fn request(&self, name: &str, format: Option<&str>) -> Result<OpenRequest, Failure> {
        if !self.image_opts {
            return Ok(OpenRequest::parse(name, format)?);
        }
        self.specification(name)
    }

    /// A complete image specification.
    pub fn specification(&self, text: &str) -> Result<OpenRequest, Failure> {
        let spec = ImageSpec::from_options(text)
            .map_err(|e| Failure::from(e).prefix(&format!("Could not open '{text}'")))?;
        for warning in &spec.warnings {
            eprintln!("{}: warning: {warning}", self.session.program);
        }
        if self.force_share && spec.force_share == Some(false) {
            return Err(Failure::new("--force-share/-U conflicts with image options"));
        }
        Ok(OpenRequest::from_spec(&spec, text)?)
    }

    /// Warns of encryption that protects little.
    pub fn warn_of_aes(&self, options: &[(String, String)]) {
        let weak = options.iter().any(|(name, value)| match name.as_str() {
            "encrypt.format" => value == "aes",
            "encryption" => value == "on",
            _ => false,
        });
        if weak && !self.session.as_qemu_img {
            eprintln!(
                "{}: warning: the 'aes' encryption of qcow and qcow2 does not protect the passphrase and \
                 shows where data are the same; use qcow2 with -o encrypt.format=luks",
                self.session.program
            );
        }
    }

    /// `-U`.
    pub fn sharing(&self) -> Sharing {
        if self.force_share { Sharing::Force } else { Sharing::Locked }
    }

    /// The command changes the images that it names.
    pub fn changes_images(&self) {
        self.changes.set(true);
    }

    /// Adds to what may be opened. Nothing can be added once the first job runs.
    fn planned(&self, add: impl FnOnce(&mut Plan)) {
        if let Some(plan) = self.plan.borrow_mut().as_mut() {
            add(plan);
        }
    }

    /// An image will be opened.
    pub fn image_named(&self, request: &OpenRequest) {
        let changes = self.changes.get();
        self.planned(
            |plan| if changes { plan.writes_image(request) } else { plan.reads_image(request) },
        );
    }

    /// An image of the command line will be opened, after a job that comes before it.
    pub fn will_read(&self, name: &str) {
        // A name that makes no sense is complained about when it is used.
        let request = if self.image_opts {
            Self::silent_specification(name)
        } else {
            OpenRequest::parse(name, None).ok()
        };
        if let Some(request) = request {
            self.planned(|plan| plan.reads_image(&request));
        }
    }

    /// A complete image specification, where it makes sense.
    fn silent_specification(text: &str) -> Option<OpenRequest> {
        OpenRequest::from_spec(&ImageSpec::from_options(text).ok()?, text).ok()
    }

    /// An image will be changed that is named by a specification.
    pub fn will_change(&self, text: &str) {
        if let Some(request) = Self::silent_specification(text) {
            self.planned(|plan| plan.writes_image(&request));
        }
    }

    /// A file of the command line will be made or changed.
    pub fn will_write(&self, name: &str) {
        match filename::parse(name) {
            Ok(Filename::Path(path)) => self.planned(|plan| plan.writes(&path)),
            _ => {
                if let Ok(request) = OpenRequest::parse(name, None) {
                    self.planned(|plan| plan.writes_image(&request));
                }
            }
        }
    }

    /// Options for a new image called `target`: files that they name are made, too.
    pub fn will_write_beside(&self, target: &str, options: &[(String, String)]) {
        for (_, file) in options.iter().filter(|(name, _)| name == "data_file") {
            self.will_write(&combine(target, file));
        }
    }

    /// A file that is named beside an image (a backing file) will be read.
    pub fn will_read_file(&self, name: &str) {
        if let Ok(request) = OpenRequest::parse(name, None) {
            self.planned(|plan| plan.reads_image(&request));
        }
    }

    /// A folder will be filled; made if it is not there.
    pub fn will_fill(&self, folder: &Path) {
        self.planned(|plan| plan.write_folder(folder));
    }

    /// Sockets will be used.
    pub fn will_serve(&self) {
        self.planned(Plan::use_network);
    }

    /// Confines the process, once, before the first job looks at an image.
    fn enter_sandbox(&self) -> Result<(), Failure> {
        let Some(mut plan) = self.plan.borrow_mut().take() else { return Ok(()) };
        if self.sandbox == sandbox::Mode::Off {
            return Ok(());
        }
        let changes = self.changes.get();
        for folder in &self.allow {
            if changes { plan.write_folder(folder) } else { plan.read_folder(folder) }
        }
        if self.session.as_qemu_img {
            // Names inside images lead anywhere then.
            plan.read_everything();
            plan.use_network();
            if changes {
                plan.set_writing(Writing::Everywhere);
            }
        }
        sandbox::enter(&plan, self.sandbox)
    }

    /// Allows a file that the user named himself.
    pub fn names(&mut self, file: &str) {
        self.will_read_file(file);
        self.named.push(PathBuf::from(file));
    }

    /// Which names inside images are followed.
    pub fn policy(&self) -> Policy {
        if self.session.as_qemu_img {
            return Policy::everything();
        }
        let policy = self.allow.iter().fold(Policy::folder(), |p, dir| p.allow_folder(dir));
        self.named.iter().fold(policy, |p, file| p.allow_file(Path::new(file)))
    }

    /// Whether files that exist may be replaced.
    pub fn overwriting(&self) -> Overwrite {
        if self.session.as_qemu_img || self.overwrite {
            Overwrite::Allow
        } else {
            Overwrite::Refuse
        }
    }

    /// Watches a job. `-q` silences progress.
    pub fn reporter(&self) -> Reporter {
        Reporter::new(self.session, self.progress_shown())
    }

    /// Watches a job that says itself when it begins.
    pub fn silent_reporter(&self) -> Reporter {
        Reporter::silent_until_begun(self.session, self.progress_shown())
    }

    fn progress_shown(&self) -> Mode {
        if self.quiet { Mode::Off } else { self.progress }
    }

    /// Runs a job under a reporter.
    pub fn run<T, E: Into<Failure>>(
        &self,
        reporter: &Reporter,
        job: impl FnOnce(&Job<'_>) -> Result<T, E>,
    ) -> Result<T, Failure> {
        let result = self.run_open(reporter, job);
        reporter.end();
        result
    }

    /// Runs a job under a reporter whose `end` the caller will call.
    pub fn run_open<T, E: Into<Failure>>(
        &self,
        reporter: &Reporter,
        job: impl FnOnce(&Job<'_>) -> Result<T, E>,
    ) -> Result<T, Failure> {
        let result = self.run_unfinished(reporter, job);
        reporter.complete(if result.is_ok() { Ending::Whole } else { Ending::Failed });
        result
    }

    /// Runs a job under a reporter that the caller will [`complete`](Reporter::complete) and end.
    pub fn run_unfinished<T, E: Into<Failure>>(
        &self,
        reporter: &Reporter,
        job: impl FnOnce(&Job<'_>) -> Result<T, E>,
    ) -> Result<T, Failure> {
        self.enter_sandbox()?;
        let policy = self.policy();
        let secrets = &self.secrets;
        let result = job(&Job { policy: &policy, watcher: reporter, secrets }).map_err(Into::into);
        if reporter.interrupted() && result.is_err() {
            return Err(Failure::new(self.interrupted).with_code(reporter.interrupt_code()));
        }
        result
    }

    /// Prints a line for people, unless `-q` or JSON is wanted.
    pub fn say(&self, line: &str) {
        if self.output == Output::Human && !self.quiet {
            output::print(&format!("{line}\n"));
        }
    }

    /// Prints a value as JSON if that is wanted; else the text, unless `-q`.
    pub fn report(&self, text: &str, json: impl FnOnce() -> serde_json::Value) {
        match self.output {
            Output::Json => output::print(&output::json::pretty(&json())),
            Output::Human if self.quiet => {}
            Output::Human => output::print(text),
        }
    }
}

/// Where files of the size of a disk may be for a while.
pub fn temporary_folder() -> PathBuf {
    let named = std::env::var_os("TMPDIR").filter(|d| !d.is_empty());
    named.map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// A cache mode; `what` is `cache` or `source cache`.
pub fn cache_mode(what: &str, text: &str) -> Result<CacheMode, Failure> {
    CacheMode::parse(text).ok_or_else(|| Failure::new(format!("Invalid {what} option: {text}")))
}
