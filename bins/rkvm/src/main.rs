//! rkvm: runs virtual machines on KVM; takes qemu-kvm command lines.
//!
//! Everything happens in the `vmm` library. This program has the process around it: arguments, words on
//! standard error, the terminal's mode, signals, the exit status.

mod terminal;

use std::io::{IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use vmm::chardev::{CharConfig, Standard};
use vmm::cmdline::{self, Parsed, Run};
use vmm::machine::{Command, Exit, Machine};

fn main() -> ExitCode {
    let args: Vec<String> =
        std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    match cmdline::parse(&args).and_then(start) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            say(&format!("rkvm: {}", e.report()));
            for hint in e.hints() {
                say(&format!("rkvm: {hint}"));
            }
            ExitCode::FAILURE
        }
    }
}

/// A line on standard error; in raw mode a line needs its carriage return.
fn say(text: &str) {
    let end = if std::io::stderr().is_terminal() { "\r\n" } else { "\n" };
    // Nobody is left to tell when standard error is gone.
    let _ = write!(std::io::stderr(), "{text}{end}");
}

fn start(parsed: Parsed) -> vmm::Result<u8> {
    let run = match parsed {
        Parsed::Run(run) => run,
        Parsed::Show(text) => {
            std::io::stdout().write_all(text.as_bytes())?;
            return Ok(0);
        }
    };
    run_machine(*run)
}

fn run_machine(mut run: Run) -> vmm::Result<u8> {
    if let Some(folder) = std::env::var_os("TMPDIR") {
        run.machine.scratch = folder.into();
    }
    for warning in &run.warnings {
        say(&format!("rkvm: warning: {warning}"));
    }
    let stdio = run.machine.serial.iter().any(|s| matches!(s, CharConfig::Stdio { .. }));
    let keys = run.machine.serial.contains(&CharConfig::Stdio { keys: true });
    let machine = Machine::build(run.machine, standard()?)?;
    for note in &machine.notes {
        say(&format!("rkvm: {note}"));
    }
    if let Some(path) = &run.pidfile {
        std::fs::write(path, format!("{}\n", std::process::id())).map_err(|e| {
            vmm::Error::io(&e).context(format!("cannot create PID file '{}'", path.display()))
        })?;
    }
    let handle = machine.handle();
    let mut signals = signal_hook::iterator::Signals::new([
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGHUP,
    ])
    .map_err(|e| vmm::Error::io(&e))?;
    std::thread::spawn(move || {
        for _ in signals.forever() {
            handle.send(Command::Quit);
        }
    });
    let _mode = terminal::RawMode::enter(stdio, keys);
    let exit = machine.run(Box::new(say));
    if let Some(path) = &run.pidfile {
        // A missing file is as good as a removed one.
        let _ = std::fs::remove_file(path);
    }
    Ok(match exit? {
        Exit::PowerOff | Exit::Reset | Exit::Quit => 0,
        Exit::Panicked => {
            say("rkvm: the guest has crashed (pvpanic)");
            0
        }
        Exit::Code(code) => code,
    })
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
