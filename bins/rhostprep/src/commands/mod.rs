//! One file a group of commands.

mod change;
mod check;
mod net;
mod place;

use std::io::Write as _;

use clap::CommandFactory as _;
use hostprep::host::{Facts, Host};
use hostprep::wanted::{Guests, Profile, Wanted};
use hostprep::{Error, Result, units};

use crate::args::{Args, Command, WantedArgs};

/// Runs the command and gives its exit code.
pub fn run(args: Args) -> Result<u8> {
    let host = match &args.root {
        None => Host::live(),
        Some(root) => tree(root)?,
    };
    match args.command {
        Command::Check(check) => check::run(&host, &check),
        Command::Memory(memory) => place::memory(&host, &memory),
        Command::Cpu(cpu) => place::cpu(&host, &cpu),
        Command::Pin(pin) => place::pin(&host, &pin),
        Command::Plan(changes) => change::plan(&host, &changes),
        Command::Apply(apply) => change::apply(&host, &apply),
        Command::Undo(args) => change::undo(&host, &args),
        Command::Status => change::status(&host),
        Command::Net { command } => net::run(&host, &command),
        Command::Scripts(scripts) => net::scripts(&host, &scripts),
        Command::Ifup(args) => net::ifup(&args),
        Command::Ifdown(args) => net::ifdown(&args),
        Command::Collect => {
            let all = Wanted::default();
            hostprep::check::run(&host, &all, &[])?;
            let tree = hostprep::host::Tree::collect(&host);
            print(&tree.text("Collected by `rhostprep collect`.")?);
            Ok(0)
        }
        Command::Completions { shell } => {
            let mut bytes = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "rhostprep", &mut bytes);
            print(&String::from_utf8_lossy(&bytes));
            Ok(0)
        }
        Command::Man { words } => {
            print(&page(&words)?);
            Ok(0)
        }
    }
}

/// The manual page of a command.
fn page(words: &[String]) -> Result<String> {
    let mut command = Args::command();
    // Fills in the global options and the full names of sub-commands.
    command.build();
    for word in words {
        let found = command.find_subcommand(word).cloned();
        command = found.ok_or_else(|| Error::usage(format!("there is no command '{word}'")))?;
    }
    let name = command.get_bin_name().unwrap_or("rhostprep").replace(' ', "-");
    let mut bytes = Vec::new();
    clap_mangen::Man::new(command)
        .title(name)
        .render(&mut bytes)
        .map_err(|error| Error::host(format!("the manual page cannot be made: {error}")))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A fake host: its files, and what was recorded of it in `facts.json` at the top.
fn tree(root: &std::path::Path) -> Result<Host> {
    if !root.is_dir() {
        return Err(Error::usage("the root is not a folder").at(root));
    }
    let file = root.join("facts.json");
    let facts = match std::fs::read_to_string(&file) {
        Ok(text) => serde_json::from_str(&text).map_err(|error| {
            Error::usage(format!("recorded facts are damaged: {error}")).at(&file)
        })?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Facts::default(),
        Err(error) => return Err(Error::io("recorded facts cannot be read", &file, error)),
    };
    Ok(Host::below(root, facts))
}

/// Writes to standard output; a reader that has gone away ends the program quietly.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Writes a complaint and what to do about it to standard error.
pub fn warn(text: &str, remedy: Option<&str>) {
    let mut err = std::io::stderr().lock();
    // Standard error that cannot be written leaves nobody to tell.
    let _ = writeln!(err, "rhostprep: {text}");
    if let Some(remedy) = remedy {
        let _ = writeln!(err, "  remedy: {remedy}");
    }
}

/// What the options want of the host.
pub fn wanted(args: &WantedArgs) -> Result<Wanted> {
    let mut wanted = Wanted {
        guests: args.guests.iter().map(|text| Guests::parse(text)).collect::<Result<_>>()?,
        ssh_connection: std::env::var("SSH_CONNECTION").ok(),
        ..Wanted::default()
    };
    for line in &args.command_lines {
        wanted.add_command_line(line)?;
    }
    if let Some(size) = &args.reserve {
        wanted.reserve = Some(units::parse_size(size, units::MIB)?);
    }
    if let Some(name) = &args.profile {
        wanted.profile = Profile::parse(name)?;
    }
    Ok(wanted)
}
