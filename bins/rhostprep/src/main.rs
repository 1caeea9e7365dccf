//! `rhostprep`: is this host ready for KVM guests, and make it so.
//!
//! This program reads arguments, words messages and picks exit codes; the work is in `hostprep`.
//! Exit codes: 0 fine, 1 warnings, 2 errors (also of usage), as [`hostprep::check::Status::exit_code`] says.

mod args;
mod commands;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let args = args::Args::parse();
    match commands::run(args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // Standard error that cannot be written leaves nobody to tell.
            let _ = writeln!(std::io::stderr(), "rhostprep: {error}");
            if let Some(remedy) = error.remedy_text() {
                let _ = writeln!(std::io::stderr(), "  remedy: {remedy}");
            }
            ExitCode::from(2)
        }
    }
}
