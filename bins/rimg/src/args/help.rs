//! `--help`, `--version`.

use super::clap_command;
use super::commands::COMMANDS;
use super::table::Command;

/// The help of one command; only that command's clap tree is built.
pub fn command(program: &str, command: &'static Command) -> String {
    let mut clap = clap_command::one(command).bin_name(format!("{program} {}", command.name));
    // The short layout (two columns) with the long text.
    if let Some(text) = clap.get_long_about().cloned() {
        clap = clap.about(text);
    }
    clap.render_help().to_string().replace("  rimg ", &format!("  {program} "))
}

/// The help of the whole program.
pub fn program(program: &str) -> String {
    let mut text = format!(
        "Create, inspect, check and convert disk images. Takes the command lines of qemu-img.\n\n\
         Usage: {program} [OPTIONS] COMMAND [--help | ARGUMENTS]\n\nCommands:\n"
    );
    for c in COMMANDS {
        text.push_str(&format!("  {:<12} {}\n", c.name, c.about));
    }
    text.push_str(&format!(
        "  {:<12} Print a completion script for bash, zsh or fish\n  {:<12} Print a man page\n",
        "completions", "man"
    ));
    text.push_str(
        "\nOptions:\n  -h, --help           Print this help and exit\n  -V, --version        Print \
         the version and exit\n  -T, --trace <TRACE>  Accepted for compatibility\n\n",
    );
    let names: Vec<&str> = imgcore::format::drivers().iter().map(|d| d.name()).collect();
    text.push_str(&format!("Supported image formats: {}\n\n", names.join(" ")));
    text.push_str(&format!(
        "'{program} COMMAND --help' explains a command, with examples.\n\
         An image name may also be json:{{...}}, as for qemu-img, or the address of what is not a file here:\n\
         nbd://HOST/EXPORT, nbd+unix:///EXPORT?socket=PATH, nbds://HOST/EXPORT (over TLS),\n\
         http://HOST/PATH, https://HOST/PATH,\n\
         {}{}fat:DIR (a folder as a FAT disk), null-co:// (a disk that keeps nothing).\n",
        if cfg!(feature = "ssh") { "ssh://USER@HOST/PATH, " } else { "" },
        if cfg!(feature = "rbd") { "rbd:POOL/IMAGE, " } else { "" }
    ));
    text
}

/// The version. Under qemu-img's name the first line is what scripts look for: the version of
/// qemu-img whose behaviour this is.
pub fn version(as_qemu_img: bool) -> String {
    let own = env!("CARGO_PKG_VERSION");
    if as_qemu_img {
        format!("qemu-img version 10.0.2 (rimg {own})\n")
    } else {
        let sandbox = crate::sandbox::support();
        format!("rimg {own} (takes the command lines of qemu-img 10.0)\n{sandbox}\n")
    }
}
