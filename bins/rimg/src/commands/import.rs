//! `import`: not a command of qemu-img.

use std::fmt::Write;

use imgcore::format::Level;
use imgcore::ops::convert::{Compress, Verify};
use imgcore::ops::import::{self, Checksums, Devices, Firmware, ImportOptions, ImportReport};
use imgcore::opts::human;
use imgcore::opts::list::Accumulated;

use super::pairs;
use crate::args::getopt::Parser;
use crate::common::Common;
use crate::failure::Failure;
use crate::session::Session;

/// Runs it.
pub fn run(session: &Session, mut parser: Parser) -> Result<u8, Failure> {
    let mut common = Common::new(session, parser.command);
    let mut wish = ImportOptions { driver: "qcow2".to_owned(), ..ImportOptions::default() };
    let mut given_options = Accumulated::default();
    let mut folder = None;
    while let Some(given) = parser.next_option()? {
        let value = given.value.clone();
        match given.id {
            "directory" => folder = Some(value),
            "output-format" => wish.driver = value,
            "options" => given_options.add(&value)?,
            "compress" => wish.compress = Compress::Yes(Level::default()),
            "verify" => wish.verify = Verify::Yes,
            "name" => wish.name = Some(value),
            "system" => wish.system = Some(value),
            "devices" => {
                wish.devices = match value.as_str() {
                    "auto" => Devices::Auto,
                    "virtio" => Devices::Virtio,
                    "described" => Devices::Described,
                    _ => {
                        return Err(common.usage("--devices expects auto, virtio or described"));
                    }
                };
            }
            "network" => {
                let Some((network, bridge)) = value.rsplit_once('=') else {
                    return Err(common.usage("--network expects NAME=BRIDGE"));
                };
                wish.bridges.push((network.to_owned(), bridge.to_owned()));
            }
            "no-checksums" => wish.checksums = Checksums::Skip,
            "dry-run" => wish.dry_run = true,
            _ => common.take(given)?,
        }
    }
    wish.source = common.one_image(parser.positionals())?;
    wish.folder = folder.ok_or_else(|| common.usage("Expecting a folder for the disks (-d)"))?;
    wish.options = pairs(&given_options);
    wish.overwrite = common.overwriting();
    common.will_read_file(&wish.source);
    common.will_fill(std::path::Path::new(&wish.folder));
    let reporter = common.reporter();
    let report = common.run(&reporter, |job| import::import(&wish, job))?;
    common.report(&human(&report, wish.dry_run), || {
        let mut value = serde_json::to_value(&report).unwrap_or_default();
        value["dry-run"] = wish.dry_run.into();
        value
    });
    Ok(0)
}

fn human(report: &ImportReport, dry_run: bool) -> String {
    let machine = &report.machine;
    let mut text = String::new();
    let firmware = match machine.firmware {
        Firmware::Bios => "BIOS",
        Firmware::Efi => "UEFI",
        Firmware::EfiSecureBoot => "UEFI with secure boot",
    };
    let _ = writeln!(
        text,
        "{}: {} processors, {} of memory, {firmware}{}",
        machine.name,
        machine.cpus,
        human::size(machine.memory),
        machine.system.as_ref().map(|s| format!(", {s}")).unwrap_or_default(),
    );
    if let Some(checked) = report.checked {
        let _ = writeln!(text, "{checked} files are what the manifest says");
    }
    for (disk, path) in machine.disks.iter().zip(&report.disks) {
        let _ = writeln!(text, "{} -> {path}", disk.label);
    }
    for note in &machine.notes {
        let _ = writeln!(text, "note: {note}");
    }
    if dry_run {
        text.push_str("dry run: nothing was written\n");
    } else {
        let _ = writeln!(text, "{} starts it:", report.script);
    }
    let _ = writeln!(text, "\n{}", import::shown(&report.command));
    text
}
