//! rkvm: runs virtual machines on KVM; takes qemu-kvm command lines.
//!
//! Everything happens in the `vmm` library. This program has the process around it: arguments, words on
//! standard error, the terminal's mode, signals, background, identity, the exit status.
//!
//! The order matters: the process splits (`-daemonize`) before it has threads; all that needs rights is
//! opened; the PID file is written; rights are given up (`-runas`); the caller is told that the machine is
//! ready; the guest runs.

mod daemon;
mod identity;
mod messages;
mod pidfile;
mod terminal;

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use messages::Voice;
use pidfile::PidFile;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use terminal::Terminal;
use vmm::chardev::{CharKind, Standard};
use vmm::cmdline::process::{Foreground, RunAs};
use vmm::cmdline::{self, Parsed, Run};
use vmm::machine::{Caller, Command, Exit, Handle, Machine};

fn main() -> ExitCode {
    let args: Vec<String> =
        std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    let plain = Voice::default();
    let run = match cmdline::parse(&args) {
        Ok(Parsed::Run(run)) => *run,
        Ok(Parsed::Show(text)) => return show(&text),
        Err(e) => return failed(&plain, &e),
    };
    let process = &run.process;
    let voice = Voice::new(process.log.as_deref(), process.messages, run.machine.name.clone());
    let voice = match voice {
        Ok(voice) => voice,
        Err(e) => return failed(&plain, &e),
    };
    match start(run, &voice) {
        Ok(code) => ExitCode::from(code),
        Err(e) => failed(&voice, &e),
    }
}

fn failed(voice: &Voice, e: &vmm::Error) -> ExitCode {
    voice.fail(e);
    ExitCode::FAILURE
}

/// Text that was asked for. A reader that has seen enough (`rkvm -help | head`) is no failure.
fn show(text: &str) -> ExitCode {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn start(run: Run, voice: &Voice) -> vmm::Result<u8> {
    for warning in &run.warnings {
        voice.say(&format!("rkvm: warning: {warning}"));
    }
    let daemon = match run.process.foreground {
        Foreground::Stay => None,
        Foreground::Daemonize => match daemon::split()? {
            daemon::Side::Parent(status) => return Ok(status),
            daemon::Side::Child(daemon) => Some(daemon),
        },
    };
    run_machine(run, daemon, voice)
}

fn run_machine(run: Run, daemon: Option<daemon::Daemon>, voice: &Voice) -> vmm::Result<u8> {
    let process = run.process;
    if let Some(name) = &process.process_name {
        identity::name_process(name)?;
    }
    // Before images are opened: of two machines with the same file the second shall touch nothing.
    let _pidfile = process.pidfile.as_deref().map(PidFile::create).transpose()?;
    let signals = run.machine.chardevs.iter().find_map(|(_, c)| match c.kind {
        CharKind::Stdio { signals } => Some(signals),
        _ => None,
    });
    let mut caller = Builder { voice, run_as: process.run_as };
    let mut machine = Machine::build(run.machine, standard()?, &mut caller)?;
    for note in &machine.notes {
        voice.say(&format!("rkvm: {note}"));
    }
    let terminal = Terminal::default();
    let caught =
        Signals::new([SIGTERM, SIGINT, SIGHUP, SIGCONT]).map_err(|e| vmm::Error::io(&e))?;
    if let Some(daemon) = daemon {
        machine.finish_loading()?;
        daemon.ready()?;
    }
    let raw = signals.map(|signals| terminal.enter(signals));
    let exit = machine.run_and(|handle| watch_signals(caught, handle, terminal));
    drop(raw);
    Ok(match exit? {
        Exit::PowerOff | Exit::Reset | Exit::Quit => 0,
        Exit::Panicked => {
            voice.say("rkvm: the guest has crashed (pvpanic)");
            0
        }
        Exit::Code(code) => code,
    })
}

/// Us, while the machine is built.
struct Builder<'a> {
    voice: &'a Voice,
    run_as: Option<RunAs>,
}

impl Caller for Builder<'_> {
    fn notice(&mut self, line: &str) {
        self.voice.say(line);
    }

    fn all_open(&mut self) -> vmm::Result<()> {
        self.run_as.as_ref().map_or(Ok(()), identity::become_user)
    }
}

/// Signals that end a process end the machine; coming back from a stop makes the terminal raw again.
fn watch_signals(mut signals: Signals, handle: Handle, terminal: Terminal) -> vmm::Result<()> {
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                match signal {
                    SIGCONT => terminal.resume(),
                    _ => handle.send(Command::Quit),
                }
            }
        })
        .map(|_| ())
        .map_err(|e| vmm::Error::io(&e).context("cannot start the thread for signals"))
}

fn standard() -> vmm::Result<Standard> {
    let copy = |fd: std::os::fd::BorrowedFd<'_>| -> vmm::Result<OwnedFd> {
        fd.try_clone_to_owned().map_err(|e| vmm::Error::io(&e))
    };
    Ok(Standard {
        input: Some(copy(std::io::stdin().as_fd())?),
        output: Some(copy(std::io::stdout().as_fd())?),
    })
}
