//! Finding the programs: ours and the reference ones.

use crate::process::Invocation;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The root of the workspace.
#[must_use]
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_path_buf()
}

/// Our image program: `$RIMG`, or the release binary (see [`built`]).
///
/// # Errors
/// A sentence saying what is missing.
pub fn rimg() -> Result<PathBuf, String> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    FOUND.get_or_init(|| built("rimg")).clone()
}

/// One of our programs: what the variable of its name in capitals names, or the release binary, which cargo brings up
/// to date first.
///
/// # Errors
/// A sentence saying what is missing.
pub fn built(name: &str) -> Result<PathBuf, String> {
    let variable = name.to_uppercase();
    if let Some(given) = std::env::var_os(&variable) {
        return std::fs::canonicalize(&given)
            .map_err(|e| format!("{variable}={}: {e}", given.to_string_lossy()));
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--release", "--package", name, "--bin", name])
        .args(["--message-format", "json"])
        .current_dir(workspace())
        .output()
        .map_err(|e| format!("cannot run cargo to build {name} (or set {variable}): {e}"))?;
    if !built.status.success() {
        let why = String::from_utf8_lossy(&built.stderr);
        return Err(format!("cargo build --release -p {name} failed (or set {variable}): {why}"));
    }
    String::from_utf8_lossy(&built.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
        .ok_or_else(|| format!("cargo build named no executable for {name}"))
}

/// A reference or helper program on the `PATH`.
#[must_use]
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    places.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    places.into_iter().map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// The reference `qemu-img` and `qemu-io`: `$QEMU_IMG`, `$QEMU_IO`, or those of the `PATH`.
#[derive(Debug, Clone)]
pub struct Reference {
    /// `qemu-img`.
    pub img: PathBuf,
    /// `qemu-io`.
    pub io: PathBuf,
    /// First line of `qemu-img --version`.
    pub version: String,
}

impl Reference {
    /// Finds both, or says what to install.
    ///
    /// # Errors
    /// A sentence for the person who runs the tests.
    pub fn find() -> Result<Self, String> {
        let get = |variable: &str, name: &str| {
            std::env::var_os(variable)
                .map(PathBuf::from)
                .or_else(|| find(name))
                .ok_or_else(|| format!("no {name} here: apt-get install qemu-utils"))
        };
        let (img, io) = (get("QEMU_IMG", "qemu-img")?, get("QEMU_IO", "qemu-io")?);
        let version = crate::process::must(&img, Path::new("/"), &["--version"])?;
        Ok(Self { img, io, version: version.lines().next().unwrap_or_default().to_owned() })
    }
}

/// Makes `dir` with a link called `qemu-img` to `program`, so that messages begin alike.
///
/// # Errors
/// When the link cannot be made.
pub fn as_qemu_img(program: &Path, dir: &Path) -> Result<(), String> {
    std::fs::create_dir_all(dir)
        .and_then(|()| std::os::unix::fs::symlink(program, dir.join("qemu-img")))
        .map_err(|e| format!("{}: {e}", dir.display()))
}

/// `rimg` with an optional feature: what `$RIMG_FEATURE` (in capitals) names, or the usual one. Nothing, said aloud, when
/// that one answers for `address` that it was built without; `lost` is then not tested.
///
/// # Panics
/// When there is no `rimg` at all.
#[must_use]
#[allow(clippy::unwrap_used)] // a test that cannot go on ends here
pub fn featured(feature: &str, address: &str, lost: &str) -> Option<PathBuf> {
    let variable = format!("RIMG_{}", feature.to_uppercase());
    let program = std::env::var_os(&variable).map_or_else(|| rimg().unwrap(), PathBuf::from);
    let said = Invocation::new(&program, Path::new(".")).args(["info", address]).run().unwrap();
    if said.err().contains(&format!("built without {feature}")) {
        skip(lost, &format!("{variable} names no rimg with that feature"));
        return None;
    }
    Some(program)
}

/// Says on the terminal that something was not tested, in a form that is easy to find in a log.
pub fn skip(what: &str, why: &str) {
    say(&format!("SKIPPED {what}: {why}"));
}

/// A line for the person who runs the tests, also when they pass: the test harness keeps what the print
/// macros write, so this goes to standard error itself.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
