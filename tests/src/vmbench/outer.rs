//! In the outer machine: starts each program with each guest, prints `BENCH who what value` lines.

use super::guest;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Of virtual time for one start; a boot takes four to five seconds.
const LIMIT: Duration = Duration::from_secs(30);
/// Seconds of this host's time for one start, which takes about 40 on an idle machine. A guest's kernel that hangs
/// in a loop of `pause` (which emulated machines do at times: the lock it waits for is its own) makes virtual time
/// a hundred times slower, so that [`LIMIT`] alone would be reached after an hour.
const HOST_LIMIT: u64 = 200;
/// How often both clocks are looked at. The kernel's driver of the real-time clock takes a millisecond for each
/// look, which is one of the guest that is measured.
const LOOK: Duration = Duration::from_secs(2);
/// How often a start is tried.
const TRIES: usize = 4;
/// Seconds since 1970 by the clock that is not virtual.
const HOST_CLOCK: &str = "/sys/class/rtc/rtc0/since_epoch";

const MIB: u64 = 256;
const APPEND: &str = "console=ttyS0 quiet loglevel=3 reboot=k panic=-1 tsc=reliable";
const QEMU: &[&str] = &["-cpu", "host", "-m", "256", "-nodefaults", "-no-user-config", "-display"];

/// What is measured with one start of one program.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Job<'a> {
    /// The time to `/init`, and memory then.
    Boot,
    /// Reads of the disk of a format.
    Disk(&'a str),
}

/// Kills what it holds.
struct Machine {
    child: Child,
    began: Instant,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Everything that is measured in the outer machine; only what is named, when words such as `rkvm/boot` or
/// `disk-raw` are given.
///
/// # Errors
/// A sentence when a program cannot be started or ends early.
pub fn run(only: &[String]) -> Result<(), String> {
    let mut jobs: Vec<(&str, Job<'_>)> =
        ["rkvm", "qemu-pc", "qemu-microvm"].map(|who| (who, Job::Boot)).to_vec();
    for format in ["raw", "qcow2"] {
        let programs = ["rkvm", "rkvm+io_uring", "qemu-pc", "qemu-pc+iothread"];
        jobs.extend(programs.map(|who| (who, Job::Disk(format))));
    }
    for (who, job) in jobs {
        let name = match job {
            Job::Boot => format!("{who}/boot"),
            Job::Disk(format) => format!("{who}/disk-{format}"),
        };
        if only.is_empty() || only.iter().any(|word| name.contains(word)) {
            at_last(who, job)?;
        }
    }
    Ok(())
}

/// Emulated machines hang at times; another try is said aloud.
fn at_last(who: &str, job: Job<'_>) -> Result<(), String> {
    for _ in 1..TRIES {
        match one(who, job) {
            Ok(()) => return Ok(()),
            Err(why) => println!("RETRIED {who}: {why}"),
        }
    }
    one(who, job)
}

fn host_seconds() -> Option<u64> {
    std::fs::read_to_string(HOST_CLOCK).ok()?.trim().parse().ok()
}

/// Kills a process that takes too long by either clock.
fn watch(pid: u32, done: &AtomicBool) {
    let (began, host) = (Instant::now(), host_seconds());
    loop {
        // In steps, so that the end of a job is not waited for.
        let next = Instant::now() + LOOK;
        while Instant::now() < next {
            if done.load(Ordering::Acquire) {
                return;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        let waited = host_seconds().zip(host).map_or(0, |(now, then)| now.saturating_sub(then));
        if began.elapsed() > LIMIT || waited > HOST_LIMIT {
            println!("LATE after {waited} s");
            // Not reaped before it is done: the number is still this process's.
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            return;
        }
    }
}

fn command(who: &str, job: Job<'_>) -> Command {
    let mut command;
    if who.starts_with("rkvm") {
        command = Command::new("./rkvm");
        command
            .args("-cpu host -m 256 -nodefaults -display none -serial stdio -no-reboot".split(' '));
    } else {
        command = Command::new("qemu/qemu-system-x86_64");
        command.env("LD_LIBRARY_PATH", "/payload/qemu/lib").args(["-L", "qemu/share"]);
        command.args(QEMU).args(["none", "-serial", "stdio", "-no-reboot"]);
        command
            .args(["-M", if who == "qemu-microvm" { "microvm,accel=kvm" } else { "pc,accel=kvm" }]);
    }
    command.args(["-kernel", "vmlinux", "-initrd"]);
    match job {
        Job::Boot => command.args(["boot.cpio.gz", "-append", APPEND]),
        Job::Disk(format) => {
            command.args(["bench.cpio.gz", "-append", &format!("{APPEND} disk")]);
            let aio = if who.ends_with("io_uring") { ",aio=io_uring" } else { "" };
            let drive = format!("file=/tmp/disk.{format},format={format},if=none,id=d{aio}");
            command.args(["-drive", &drive]);
            let mut device = "virtio-blk-pci,drive=d".to_owned();
            if who.ends_with("iothread") {
                command.args(["-object", "iothread,id=t"]);
                device += ",iothread=t";
            }
            command.args(["-device", &device])
        }
    };
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

fn one(who: &str, job: Job<'_>) -> Result<(), String> {
    let began = Instant::now();
    let child = command(who, job).spawn().map_err(|e| format!("{who}: {e}"))?;
    let mut machine = Machine { child, began };
    let pid = machine.child.id();
    let done = Arc::new(AtomicBool::new(false));
    let watched = Arc::clone(&done);
    let watcher = std::thread::spawn(move || watch(pid, &watched));
    let ended = read(who, job, &mut machine);
    done.store(true, Ordering::Release);
    // It must not see another process under this number.
    let _ = watcher.join();
    ended
}

/// What the guest says, up to the figures that the job is about.
fn read(who: &str, job: Job<'_>, machine: &mut Machine) -> Result<(), String> {
    let (began, pid) = (machine.began, machine.child.id());
    let out = machine.child.stdout.take().ok_or("no pipe")?;
    let mut input = machine.child.stdin.take().ok_or("no pipe")?;
    let mut seen = 0;
    for line in BufReader::new(out).split(b'\n') {
        let line = line.map_err(|e| format!("{who}: {e}"))?;
        let line = String::from_utf8_lossy(&line);
        let mut words = line.split_whitespace();
        match (words.next(), job) {
            (Some("INIT"), Job::Boot) => {
                println!("BENCH {who} init {:.4}", began.elapsed().as_secs_f64());
                let (rss, pss) = beyond(pid)?;
                println!("BENCH {who} rss {rss:.2}\nBENCH {who} pss {pss:.2}");
                return Ok(());
            }
            (Some("INIT"), _) => input.write_all(b"\n").map_err(|e| format!("{who}: {e}"))?,
            (Some("FIGURE"), Job::Disk(format)) => {
                let (name, value) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
                println!("BENCH {who} {name}-{format} {value}");
                seen += 1;
            }
            _ => println!("{who}: {line}"),
        }
    }
    if seen == guest::FIGURES {
        Ok(())
    } else {
        Err(format!("{who} ended before the guest had done its job"))
    }
}

/// Resident and proportional MiB of a process, without the mapping that is the guest's memory.
fn beyond(pid: u32) -> Result<(f64, f64), String> {
    let path = format!("/proc/{pid}/smaps");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    let (mut rss, mut pss, mut guest) = (0, 0, false);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or("");
        let kib = words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        match name {
            "Size:" => guest = kib >= MIB << 10,
            "Rss:" if !guest => rss += kib,
            "Pss:" if !guest => pss += kib,
            _ => {}
        }
    }
    Ok((rss as f64 / 1024.0, pss as f64 / 1024.0))
}
