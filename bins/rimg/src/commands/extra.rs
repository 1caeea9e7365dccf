//! What qemu-img does not have: `completions` and `man`. Both are made by the build and only printed
//! here.

use crate::failure::Failure;
use crate::output;
use crate::session::Session;

include!(concat!(env!("OUT_DIR"), "/assets.rs"));

/// Runs one of these; `None` for another name.
pub fn run(session: &Session, name: &str, args: &[String]) -> Option<Result<u8, Failure>> {
    if session.as_qemu_img {
        return None;
    }
    let asked = args.first().map(String::as_str);
    let help = matches!(asked, Some("-h" | "--help"));
    match name {
        "completions" if help => {
            output::print(
                "Print a completion script.\n\nUsage: rimg completions bash|zsh|fish\n\nExamples:\n  \
                 rimg completions bash > /etc/bash_completion.d/rimg\n  rimg completions zsh > \
                 ~/.zfunc/_rimg\n  rimg completions fish > ~/.config/fish/completions/rimg.fish\n",
            );
            Some(Ok(0))
        }
        "man" if help => {
            output::print(
                "Print a man page.\n\nUsage: rimg man [COMMAND]\n\nExamples:\n  rimg man | man -l -\n  \
                 rimg man convert > rimg-convert.1\n",
            );
            Some(Ok(0))
        }
        "completions" => Some(print(COMPLETIONS, asked, "completions", "bash, zsh or fish")),
        "man" => Some(print(MAN_PAGES, Some(asked.unwrap_or("")), "man", "a command's name")),
        _ => None,
    }
}

fn print(
    assets: &[(&str, &str)],
    asked: Option<&str>,
    command: &'static str,
    expected: &str,
) -> Result<u8, Failure> {
    match assets.iter().find(|(name, _)| Some(*name) == asked) {
        Some((_, text)) => {
            output::print(text);
            Ok(0)
        }
        None => Err(Failure::usage(command, format!("Expecting {expected}"))),
    }
}
