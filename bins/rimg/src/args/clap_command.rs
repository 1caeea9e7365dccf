//! The option tables as clap commands: for `--help`, completions and man pages. Parsing itself is
//! done by `getopt`, whose rules (permutation, exact messages, the first mistake wins) clap does not
//! have. The build script reads this file too.

use clap::{Arg, ArgAction, Command as Clap};

use super::commands::{COMMANDS, GLOBAL};
use super::table::{Command, Opt};

/// The whole program with all commands.
// The program asks for one command at a time; the build script needs all.
#[allow(dead_code)]
pub fn program(name: &'static str) -> Clap {
    let mut clap = top(name);
    for command in COMMANDS {
        clap = clap.subcommand(one(command));
    }
    let shell = clap::builder::PossibleValuesParser::new(["bash", "zsh", "fish"]);
    let commands = clap::builder::PossibleValuesParser::new(COMMANDS.iter().map(|c| c.name));
    clap.subcommand(
        Clap::new("completions")
            .about("Print a completion script")
            .arg(Arg::new("SHELL").required(true).value_parser(shell)),
    )
    .subcommand(
        Clap::new("man").about("Print a man page").arg(Arg::new("COMMAND").value_parser(commands)),
    )
}

/// The program without its commands.
pub fn top(name: &'static str) -> Clap {
    let clap = Clap::new(name)
        .version(env!("CARGO_PKG_VERSION"))
        .about("Create, inspect, check and convert disk images")
        .disable_help_flag(true)
        .disable_version_flag(true)
        .disable_help_subcommand(true);
    GLOBAL.iter().fold(clap, |c, o| c.arg(option(o)))
}

/// One command.
pub fn one(command: &'static Command) -> Clap {
    let mut clap = Clap::new(command.name)
        .about(command.about)
        .long_about(format!("{}.\n\n{}", command.about, squeeze(command.details)))
        .after_help(after(command))
        .disable_help_flag(true)
        .disable_version_flag(true);
    for opt in command.opts {
        clap = clap.arg(option(opt));
    }
    for p in command.positionals {
        let mut arg =
            Arg::new(p.name).value_name(p.name).help(squeeze(p.help)).required(!p.optional);
        if p.many {
            arg = arg.num_args(1..);
        }
        if p.name.contains("FILENAME") {
            arg = arg.value_hint(clap::ValueHint::FilePath);
        }
        clap = clap.arg(arg);
    }
    clap
}

fn option(opt: &'static Opt) -> Arg {
    let mut arg =
        Arg::new(opt.id).help(squeeze(opt.help)).help_heading(opt.heading).hide(opt.hidden);
    if let Some(c) = opt.short {
        arg = arg.short(c).short_aliases(opt.also_short.iter().copied());
    }
    let shown = if opt.long.is_empty() { opt.also.first() } else { Some(&opt.long) };
    if let Some(long) = shown {
        arg = arg.long(*long).aliases(opt.also.iter().copied().filter(|a| a != long));
    }
    match opt.arg {
        None => arg.action(ArgAction::SetTrue),
        Some(name) => {
            arg = arg.value_name(name).action(ArgAction::Append);
            if !opt.values.is_empty() {
                arg = arg.value_parser(clap::builder::PossibleValuesParser::new(opt.values));
            }
            if name == "FILE" {
                arg = arg.value_hint(clap::ValueHint::FilePath);
            }
            if name == "DIR" {
                arg = arg.value_hint(clap::ValueHint::DirPath);
            }
            arg.hide_possible_values(true)
        }
    }
}

fn after(command: &Command) -> String {
    let mut text = String::from("Examples:\n");
    for (line, what) in command.examples {
        text.push_str(&format!("  {line}\n      {what}\n"));
    }
    if let Some(formats) = command.opts.iter().find(|o| o.arg == Some("FMT")) {
        text.push_str(&format!("\nFormats (FMT): {}\n", formats.values.join(", ")));
    }
    text.push_str("\nExit codes:\n");
    let usual: &[(&str, &str)] = &[("0", "Done"), ("1", "Failed; the reason is on stderr")];
    let codes = if command.exit_codes.is_empty() { usual } else { command.exit_codes };
    for (code, what) in codes {
        text.push_str(&format!("  {code:<3} {what}\n"));
    }
    text
}

/// Source lines are broken with spaces; here they become one.
fn squeeze(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
