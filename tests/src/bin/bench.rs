//! `cargo run --release -p suite --bin bench`: `rimg` against the installed `qemu-img`.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::path::PathBuf;
use std::process::ExitCode;
use suite::bench::jobs::{JOBS, Job};
use suite::bench::measure::{Setting, measure};
use suite::bench::table;
use suite::tools::{self, Reference};

const HELP: &str = "\
Runs rimg and the installed qemu-img alternately on images made of this machine's own files and prints
the ratios rimg / qemu-img (median over rounds; less than 1 is better) as a Markdown table. Results are
verified by qemu-img.

Usage: bench [options]
  --only TEXT     only jobs whose name contains TEXT (may repeat)
  --rounds N      pairs of runs per job (default 5; jobs of minutes take fewer)
  --size MIB      bytes of real files in the large input (default 384)
  --dir DIR       where to work (default: the temporary directory); needs about ten times the size
  --json FILE     also write every measurement to FILE
  --durable       with -t writeback: both wait until a converted image is on disk
  --list          list the jobs and stop
Programs: $RIMG or the release build, $QEMU_IMG or the one on the path.
";

struct Options {
    only: Vec<String>,
    rounds: usize,
    mebibytes: u64,
    dir: PathBuf,
    json: Option<PathBuf>,
    durable: bool,
}

fn options() -> Result<Option<Options>, String> {
    let mut options = Options {
        only: Vec::new(),
        rounds: 5,
        mebibytes: 384,
        dir: std::env::temp_dir(),
        json: None,
        durable: false,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        let number =
            |text: String| text.parse::<u64>().map_err(|_| format!("'{text}' is no number"));
        match arg.as_str() {
            "--only" => options.only.push(value()?),
            "--rounds" => options.rounds = usize::try_from(number(value()?)?).unwrap_or(1).max(1),
            "--size" => options.mebibytes = number(value()?)?.max(16),
            "--dir" => options.dir = value()?.into(),
            "--durable" => options.durable = true,
            "--json" => options.json = Some(value()?.into()),
            "--list" => {
                for job in JOBS {
                    println!("{:40} {}", job.name, job.line);
                }
                return Ok(None);
            }
            "--help" | "-h" => {
                print!("{HELP}");
                return Ok(None);
            }
            other => return Err(format!("unknown option '{other}' (see --help)")),
        }
    }
    Ok(Some(options))
}

fn main() -> ExitCode {
    match options().and_then(|options| options.map_or(Ok(true), |options| run(&options))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("bench: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the jobs; says whether all could be measured.
fn run(options: &Options) -> Result<bool, String> {
    let reference = Reference::find()?;
    let place = tempfile::Builder::new()
        .prefix("rimg-bench.")
        .tempdir_in(&options.dir)
        .map_err(|e| format!("{}: {e}", options.dir.display()))?;
    clean_up_on_signals(place.path().to_path_buf())?;
    // Under that name both make the same promises: nobody waits for the disk unless told to.
    let rimg = place.path().join("bin/qemu-img");
    let program = tools::rimg()?;
    std::fs::create_dir(place.path().join("bin"))
        .and_then(|()| std::os::unix::fs::symlink(program, &rimg))
        .map_err(|e| format!("{}: {e}", rimg.display()))?;
    let setting = Setting {
        rimg,
        durable: options.durable,
        qemu_img: reference.img,
        dir: place.path().to_path_buf(),
        payload: options.mebibytes << 20,
        rounds: options.rounds,
    };
    let wanted = |job: &&Job| {
        options.only.is_empty() || options.only.iter().any(|text| job.name.contains(text.as_str()))
    };
    println!(
        "rimg / {}; {} MiB of files; {} rounds\n",
        reference.version, options.mebibytes, options.rounds
    );
    println!("{}", table::head());
    let mut records = Vec::new();
    let mut faults = Vec::new();
    for job in JOBS.iter().filter(wanted) {
        match measure(&setting, job) {
            Ok(rounds) => {
                println!("{}", table::row(job.name, &table::summary(&rounds)));
                records.push(table::record(job.name, job.line, &rounds));
            }
            Err(why) => {
                println!("| {} | failed | | | | | |", job.name);
                faults.push(why);
            }
        }
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&records).map_err(|e| e.to_string())?;
        std::fs::write(path, text + "\n").map_err(|e| format!("{}: {e}", path.display()))?;
    }
    for fault in &faults {
        eprintln!("bench: {fault}");
    }
    Ok(faults.is_empty())
}

/// Removes the images when the benchmark is told to stop; a running program dies with us.
fn clean_up_on_signals(dir: PathBuf) -> Result<(), String> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(|e| format!("cannot listen for signals: {e}"))?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            // The program being measured may make a file while we delete: try again.
            for _ in 0..5 {
                if std::fs::remove_dir_all(&dir).is_ok() {
                    break;
                }
            }
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}
