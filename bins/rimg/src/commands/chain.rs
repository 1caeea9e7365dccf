//! `chain`, `chain relocate`, `chain flatten`: not commands of qemu-img.

use std::fmt::Write;
use std::path::PathBuf;

use imgcore::ops::chain::{
    self, Branch, ChainLink, ChainOptions, FlattenOptions, LinkState, RelocateOptions, Rule, Style,
};
use imgcore::opts::human;
use imgcore::storage::CacheMode;
use serde_json::json;

use crate::args::getopt::{Given, Parser};
use crate::common::Common;
use crate::failure::Failure;
use crate::session::Session;

/// The chain cannot be read through.
const BAD: u8 = 1;
const TROUBLE: u8 = 2;

#[derive(Default)]
struct Wish {
    tree: bool,
    rules: Vec<Rule>,
    style: Style,
    compress: bool,
    dry_run: bool,
}

impl Wish {
    fn take(&mut self, given: Given, common: &mut Common<'_>) -> Result<(), Failure> {
        match given.id {
            "tree" => self.tree = true,
            "map" => {
                let rule =
                    given.value.split_once('=').filter(|(a, b)| !a.is_empty() && !b.is_empty());
                let Some((from, to)) = rule else {
                    return Err(common.usage("--map expects OLD=NEW"));
                };
                common.names(to);
                self.rules.push(Rule { from: PathBuf::from(from), to: PathBuf::from(to) });
            }
            "relative" => self.style = Style::Relative,
            "absolute" => self.style = Style::Absolute,
            "compress" => self.compress = true,
            "dry-run" => self.dry_run = true,
            _ => common.take(given)?,
        }
        Ok(())
    }
}

/// Runs it. Exit codes: 0 the chain is whole, 1 it is not, 2 trouble.
pub fn run(session: &Session, mut parser: Parser) -> Result<u8, Failure> {
    let trouble = |f: Failure| f.with_code(TROUBLE);
    let mut common = Common::new(session, parser.command);
    let mut wish = Wish::default();
    while let Some(given) = parser.next_option()? {
        wish.take(given, &mut common).map_err(|f| if f.code() == 0 { f } else { trouble(f) })?;
    }
    let mut names = parser.positionals();
    let action = match names.first().map(String::as_str) {
        Some("relocate") => relocate,
        Some("flatten") => flatten,
        _ => {
            let name = common.one_image(names).map_err(trouble)?;
            return show(&common, &wish, &name).map_err(trouble);
        }
    };
    names.remove(0);
    common.changes_images();
    action(&common, &wish, names).map_err(trouble)
}

fn show(common: &Common<'_>, wish: &Wish, name: &str) -> Result<u8, Failure> {
    let options = ChainOptions { image: common.image(name, CacheMode::Writeback)? };
    let reporter = common.reporter();
    if wish.tree {
        let root = common.run(&reporter, |job| chain::tree(&options, job))?;
        let mut text = String::new();
        draw(&root, &mut text, "", "");
        common.report(&text, || serde_json::to_value(&root).unwrap_or_default());
        return Ok(if good(&root) { 0 } else { BAD });
    }
    let links = common.run(&reporter, |job| chain::look(&options, job))?;
    let mut text = String::new();
    for (depth, link) in links.iter().enumerate() {
        let lead = if depth == 0 { String::new() } else { "   ".repeat(depth - 1) + "└─ " };
        line(link, &mut text, &lead, &("   ".repeat(depth) + "   "));
    }
    common.report(&text, || serde_json::to_value(&links).unwrap_or_default());
    Ok(if links.iter().all(|l| l.state.is_usable()) { 0 } else { BAD })
}

fn good(branch: &Branch) -> bool {
    (!branch.in_chain || branch.link.state.is_usable()) && branch.overlays.iter().all(good)
}

/// Draws a tree: the lowest image first, what stands on it indented below.
fn draw(branch: &Branch, text: &mut String, lead: &str, indent: &str) {
    line(&branch.link, text, lead, &format!("{indent}   "));
    for (i, overlay) in branch.overlays.iter().enumerate() {
        let last = i + 1 == branch.overlays.len();
        let (corner, bar) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        draw(overlay, text, &format!("{indent}{corner}"), &format!("{indent}{bar}"));
    }
}

/// One image, and what to know about it on lines of its own.
fn line(link: &ChainLink, text: &mut String, lead: &str, indent: &str) {
    let _ = write!(text, "{lead}{}", link.filename);
    if let (Some(format), Some(size)) = (&link.format, link.virtual_size) {
        let _ = write!(text, "  {format}, {}", human::size(size));
    }
    if let Some(actual) = link.actual_size {
        let _ = write!(text, ", {} on disk", human::size(actual));
    }
    match link.snapshots {
        0 => {}
        1 => text.push_str(", 1 snapshot"),
        n => {
            let _ = write!(text, ", {n} snapshots");
        }
    }
    text.push('\n');
    let trouble = match &link.state {
        LinkState::Good => None,
        LinkState::Changed(why) => Some(format!("CHANGED: {why}")),
        LinkState::Missing => Some("MISSING".to_owned()),
        LinkState::Broken(why) => Some(format!("BROKEN: {why}")),
        LinkState::NotAllowed => {
            Some("NOT ALLOWED: it is outside of the image's folder (--allow DIR)".to_owned())
        }
        LinkState::Loop => Some("LOOP: it stands above already".to_owned()),
    };
    for note in trouble.iter().chain(&link.notes) {
        let _ = writeln!(text, "{indent}{note}");
    }
}

fn relocate(common: &Common<'_>, wish: &Wish, names: Vec<String>) -> Result<u8, Failure> {
    let name = common.one_image(names)?;
    if wish.rules.is_empty() && wish.style == Style::Keep {
        return Err(common.usage("relocate expects --map OLD=NEW, --relative or --absolute"));
    }
    let options = RelocateOptions {
        image: common.image(&name, CacheMode::Writeback)?,
        rules: wish.rules.clone(),
        style: wish.style,
        dry_run: wish.dry_run,
    };
    let reporter = common.reporter();
    let done = common.run(&reporter, |job| chain::relocate(&options, job))?;
    let mut text = String::new();
    for renamed in &done {
        let _ = writeln!(text, "{}: '{}' -> '{}'", renamed.filename, renamed.from, renamed.to);
    }
    if done.is_empty() {
        text.push_str("nothing to change\n");
    } else if wish.dry_run {
        text.push_str("dry run: nothing was changed\n");
    }
    common.report(&text, || json!({ "dry-run": wish.dry_run, "renamed": done }));
    Ok(0)
}

fn flatten(common: &Common<'_>, wish: &Wish, mut names: Vec<String>) -> Result<u8, Failure> {
    let range = if names.len() > 1 { names.pop() } else { None };
    let name = common.one_image(names)?;
    let (upper, lower) = match range.as_deref() {
        None => ("", ""),
        Some(range) => range
            .split_once("..")
            .ok_or_else(|| common.usage(format!("'{range}' is no range A..B")))?,
    };
    let options = FlattenOptions {
        image: common.image(&name, CacheMode::Writeback)?,
        upper: upper.to_owned(),
        lower: lower.to_owned(),
        compress: wish.compress,
        dry_run: wish.dry_run,
    };
    let reporter = common.reporter();
    let report = common.run(&reporter, |job| chain::flatten(&options, job))?;
    let would = if wish.dry_run { "would take" } else { "has taken" };
    let mut text = format!("{} {would} up {}\n", report.filename, report.taken_up.join(", "));
    let stands = if wish.dry_run { "would stand" } else { "stands" };
    match &report.backing_filename {
        Some(name) => {
            let _ = writeln!(text, "it {stands} on {name} then");
        }
        None => {
            let _ = writeln!(text, "it {stands} alone then");
        }
    }
    common.report(&text, || {
        let mut value = serde_json::to_value(&report).unwrap_or_default();
        value["dry-run"] = wish.dry_run.into();
        value
    });
    Ok(0)
}
