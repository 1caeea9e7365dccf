//! `cargo run --release -p suite --bin vmbench`: `rkvm` beside Debian's QEMU.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use suite::tools;
use suite::vmbench::start::Candidate;
use suite::vmbench::{guest, nested, outer, start, table};

const HELP: &str = "\
Measures rkvm beside Debian's QEMU and prints a Markdown table, with the recorded figures of other monitors.

Usage: vmbench [options]
  --cache DIR     the nested host's files (default: nested in cargo's target directory); made when missing, from
                  Debian packages that are unpacked there and not installed
  --rounds N      starts of each program on /dev/kvm (default 20)
  --only start    only what is measured on this machine's /dev/kvm
  --only nested   only what is measured in the nested host, in virtual time (ten minutes and more)
  --jobs WORD     of that only the jobs whose names contain the word: rkvm/boot, rkvm/disk-raw, qemu-pc/disk-qcow2, ...
                  (may be given several times)
Programs: $RKVM and $RIMG, or the release builds.
";

struct Options {
    cache: Option<PathBuf>,
    rounds: usize,
    only: Option<String>,
    jobs: Vec<String>,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.first().map(String::as_str) {
        // Our parts inside; not for people.
        Some("--outer") => outer::run(&args[1..]),
        Some("--guest") => guest::run(args.get(1).map_or("/dev/vda", String::as_str)),
        Some("--help" | "-h") => {
            print!("{HELP}");
            Ok(())
        }
        _ => options(&args).and_then(|options| run(&options)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("vmbench: {why}");
            ExitCode::FAILURE
        }
    }
}

fn options(args: &[String]) -> Result<Options, String> {
    let mut options = Options { cache: None, rounds: 20, only: None, jobs: Vec::new() };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().cloned().ok_or_else(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--cache" => options.cache = Some(value()?.into()),
            "--rounds" => {
                let text = value()?;
                options.rounds = text.parse().map_err(|_| format!("'{text}' is no number"))?;
            }
            "--jobs" => options.jobs.push(value()?),
            "--only" => match value()? {
                part if part == "start" || part == "nested" => options.only = Some(part),
                other => return Err(format!("--only is start or nested, not '{other}'")),
            },
            other => return Err(format!("unknown option '{other}' (see --help)")),
        }
    }
    Ok(options)
}

fn run(options: &Options) -> Result<(), String> {
    let rkvm = tools::built("rkvm")?;
    let cache = match &options.cache {
        Some(dir) => dir.clone(),
        // target/release/vmbench -> target/nested
        None => std::env::current_exe()
            .ok()
            .and_then(|own| Some(own.parent()?.parent()?.join("nested")))
            .ok_or("no place for the nested host's files: give --cache")?,
    };
    prepare(&cache)?;
    let cache = cache.canonicalize().map_err(|e| format!("{}: {e}", cache.display()))?;
    let wanted = |part: &str| options.only.as_deref().is_none_or(|only| only == part);
    let mut figures = Vec::new();
    if wanted("start") {
        if Path::new("/dev/kvm").exists() {
            let dir = tempfile::tempdir().map_err(|e| format!("temporary directory: {e}"))?;
            figures.extend(start::measure(&candidates(&rkvm, &cache), options.rounds, dir.path())?);
        } else {
            println!("SKIPPED exec to first KVM_RUN: no /dev/kvm here");
        }
    }
    if wanted("nested") {
        figures.extend(nested::measure(&cache, &rkvm, &tools::rimg()?, &options.jobs)?);
    }
    print!("{}", table::markdown(&figures));
    Ok(())
}

fn prepare(cache: &Path) -> Result<(), String> {
    let script = tools::workspace().join("vmm/tests/nested/prepare");
    let status = Command::new(&script)
        .arg(cache)
        .stdout(std::io::stderr())
        .status()
        .map_err(|e| format!("{}: {e}", script.display()))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{} could not put the nested host together", script.display()))
    }
}

fn candidates(rkvm: &Path, cache: &Path) -> Vec<Candidate> {
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    let guest = format!(
        "-m 256 -nodefaults -display none -serial null -kernel {} -initrd {} -append console=ttyS0",
        text(cache.join("vmlinuz")),
        text(cache.join("l2.cpio.gz"))
    );
    let line = |program: PathBuf, options: &str| {
        let mut line = vec![text(program)];
        line.extend(options.split(' ').chain(guest.split(' ')).map(str::to_owned));
        line
    };
    let qemu = |machine: &str| {
        line(cache.join("qemu"), &format!("-M {machine},accel=kvm -no-user-config"))
    };
    vec![
        Candidate { who: "rkvm".into(), line: line(rkvm.to_path_buf(), "-name bench") },
        Candidate { who: "qemu-microvm".into(), line: qemu("microvm") },
        Candidate { who: "qemu-pc".into(), line: qemu("pc") },
    ]
}
