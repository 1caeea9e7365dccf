//! `rhostprep`: is this host ready for KVM guests, and make it so.
//!
//! This program reads arguments, words messages and picks exit codes; the work is in `hostprep`.
//! Exit codes: 0 fine, 1 warnings, 2 errors (also of usage), as [`hostprep::check::Status::exit_code`] says.

mod args;
mod commands;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let args = args::Args::parse();
    match commands::run(args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            commands::warn(&error.to_string(), error.remedy_text());
            ExitCode::from(2)
        }
    }
}
