//! `rimg`: create, inspect, check and convert disk images; takes qemu-img's command lines.
//!
//! This program only reads arguments, words messages and picks exit codes; the work is in `imgcore`.
//! Under the name `qemu-img` (a link) messages begin with that name, and it behaves as qemu-img also
//! where rimg is more careful: files are overwritten and names inside images followed.

mod activation;
mod args;
mod commands;
mod common;
mod failure;
mod local_time;
mod output;
mod progress;
mod prompt;
mod sandbox;
mod session;
mod signals;
mod stdout;

use std::process::ExitCode;

use args::getopt::Parser;
use args::help;
use failure::Failure;
use session::Session;

fn main() -> ExitCode {
    signals::fail_at_file_limit();
    #[cfg(feature = "ssh")]
    tell_ssh_user();
    let mut words = std::env::args_os();
    let argv0 = words.next().unwrap_or_default();
    let session = Session::new(&argv0.to_string_lossy());
    let mut args = Vec::new();
    for word in words {
        match word.into_string() {
            Ok(text) => args.push(text),
            Err(bad) => {
                let shown = bad.to_string_lossy();
                let message = format!("Argument '{shown}' is not UTF-8; rename the file");
                return end(&session, &Failure::new(message));
            }
        }
    }
    match run(&session, args) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => end(&session, &failure),
    }
}

/// What every program that speaks ssh asks the environment for.
#[cfg(feature = "ssh")]
fn tell_ssh_user() {
    use imgcore::storage::ssh::user::{Environment, tell};
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    tell(Environment {
        name: variable("USER").or_else(|| variable("LOGNAME")),
        home: variable("HOME").map(Into::into),
        agent: variable("SSH_AUTH_SOCK").map(Into::into),
    });
}

fn end(session: &Session, failure: &Failure) -> ExitCode {
    eprint!("{}", failure.render(session));
    ExitCode::from(failure.code())
}

/// Options before the command, then the command.
fn run(session: &Session, args: Vec<String>) -> Result<u8, Failure> {
    let mut parser = Parser::new("", args::commands::GLOBAL, args).options_first();
    while let Some(given) = parser.next_option()? {
        match given.id {
            "help" => {
                output::print(&help::program(&session.program));
                return Ok(0);
            }
            "version" => {
                output::print(&help::version(session.as_qemu_img));
                return Ok(0);
            }
            "trace" if given.value == "help" => {
                output::print("There are no trace points in this program.\n");
                return Ok(0);
            }
            // Accepted for old scripts; there is nothing to trace.
            _ => {}
        }
    }
    let mut words = parser.positionals().into_iter();
    let Some(command) = words.next() else {
        return Err(Failure::usage("", "Not enough arguments"));
    };
    commands::run(session, &command, words.collect())
}
