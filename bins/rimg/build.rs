//! Makes completions and man pages from the option tables, and a list of them for the program.
//! They lie in the build's output folder; `rimg completions` and `rimg man` print them.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

#[path = "src/args"]
mod args {
    pub mod clap_command;
    pub mod commands;
    mod inspect;
    mod serve;
    mod sparsify;
    #[allow(dead_code)]
    pub mod table;
}

/// Date in the man pages: of the last change to the option tables, so that builds are reproducible.
const PAGES_DATE: &str = "2026-11-21";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=src/args");
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let mut list = String::new();
    completions(&out, &mut list)?;
    man_pages(&out, &mut list)?;
    fs::write(out.join("assets.rs"), list)
}

fn completions(out: &Path, list: &mut String) -> io::Result<()> {
    use clap_complete::Shell;
    list.push_str("const COMPLETIONS: &[(&str, &str)] = &[\n");
    for (name, shell) in [("bash", Shell::Bash), ("zsh", Shell::Zsh), ("fish", Shell::Fish)] {
        let mut text = Vec::new();
        let mut program = args::clap_command::program("rimg");
        clap_complete::generate(shell, &mut program, "rimg", &mut text);
        fs::write(out.join(format!("rimg.{name}")), text)?;
        entry(list, name, &format!("rimg.{name}"));
    }
    list.push_str("];\n");
    Ok(())
}

fn man_pages(out: &Path, list: &mut String) -> io::Result<()> {
    list.push_str("const MAN_PAGES: &[(&str, &str)] = &[\n");
    let program = args::clap_command::program("rimg");
    page(out, list, "", "rimg", program)?;
    for command in args::commands::COMMANDS {
        let title = format!("rimg-{}", command.name);
        let page_of = args::clap_command::one(command).bin_name(format!("rimg {}", command.name));
        page(out, list, command.name, &title, page_of)?;
    }
    list.push_str("];\n");
    Ok(())
}

fn page(
    out: &Path,
    list: &mut String,
    name: &str,
    title: &str,
    command: clap::Command,
) -> io::Result<()> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command)
        .title(title.to_uppercase())
        .date(PAGES_DATE)
        .manual("rimg manual")
        .render(&mut text)?;
    fs::write(out.join(format!("{title}.1")), text)?;
    entry(list, name, &format!("{title}.1"));
    Ok(())
}

fn entry(list: &mut String, name: &str, file: &str) {
    // Writing to a string cannot fail.
    let _ =
        writeln!(list, "    ({name:?}, include_str!(concat!(env!(\"OUT_DIR\"), \"/{file}\"))),");
}
