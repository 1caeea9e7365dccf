//! Command lines: tables of what each command takes, and what is made from them.

pub mod clap_command;
pub mod commands;
pub mod getopt;
pub mod help;
mod inspect;
mod serve;
mod sparsify;
pub mod table;

/// The table of a command.
pub fn find(name: &str) -> Option<&'static table::Command> {
    commands::COMMANDS.iter().find(|c| c.name == name)
}
