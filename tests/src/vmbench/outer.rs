//! In the outer machine: starts each program with each guest, prints `BENCH who what value` lines.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Of virtual time for one start; a boot takes four to five seconds.
const LIMIT: Duration = Duration::from_secs(30);

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

/// Everything that is measured in the outer machine.
///
/// # Errors
/// A sentence when a program cannot be started or ends early.
pub fn run() -> Result<(), String> {
    for who in ["rkvm", "qemu-pc", "qemu-microvm"] {
        twice(who, Job::Boot)?;
    }
    for who in ["rkvm", "qemu-pc", "qemu-pc+iothread"] {
        for format in ["raw", "qcow2"] {
            twice(who, Job::Disk(format))?;
        }
    }
    Ok(())
}

/// Emulated machines hang at times; a second try is said aloud.
fn twice(who: &str, job: Job<'_>) -> Result<(), String> {
    one(who, job).or_else(|why| {
        println!("RETRIED {who}: {why}");
        one(who, job)
    })
}

fn command(who: &str, job: Job<'_>) -> Command {
    let mut command;
    if who == "rkvm" {
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
    command.args(["-kernel", "vmlinux", "-initrd", "bench.cpio.gz"]);
    match job {
        Job::Boot => command.args(["-append", APPEND]),
        Job::Disk(format) => {
            command.args(["-append", &format!("{APPEND} disk")]);
            command
                .args(["-drive", &format!("file=/tmp/disk.{format},format={format},if=none,id=d")]);
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
    std::thread::spawn(move || {
        std::thread::sleep(LIMIT);
        // Not reaped before it is done: the number is still this process's.
        if !watched.load(Ordering::Acquire) {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
    });
    let ended = read(who, job, &mut machine);
    done.store(true, Ordering::Release);
    ended
}

/// What the guest says, up to the figures that the job is about.
fn read(who: &str, job: Job<'_>, machine: &mut Machine) -> Result<(), String> {
    let (began, pid) = (machine.began, machine.child.id());
    let out = machine.child.stdout.take().ok_or("no pipe")?;
    let mut input = machine.child.stdin.take().ok_or("no pipe")?;
    let mut seen = false;
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
                seen = true;
            }
            _ => println!("{who}: {line}"),
        }
    }
    if seen { Ok(()) } else { Err(format!("{who} ended before the guest had done its job")) }
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
