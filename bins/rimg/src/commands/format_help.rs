//! `-o help`: which options a format has.

use imgcore::format::{self, Driver, OptionSpec};
use imgcore::ops::creation;

use crate::failure::Failure;
use crate::output;

/// A driver that can make images.
fn creatable(name: &str) -> Result<&'static dyn Driver, Failure> {
    let driver = format::driver(name)
        .ok_or_else(|| Failure::new(format!("Unknown file format '{name}'")))?;
    if !driver.can_create() {
        return Err(Failure::new(format!(
            "Format driver '{name}' does not support image creation"
        )));
    }
    Ok(driver)
}

/// Options of `create` and `convert`; with a file name also those of the file below the format.
pub fn creation(name: &str, filename: Option<&str>) -> Result<(), Failure> {
    let driver = creatable(name)?;
    let rows = driver.create_options();
    let text = if filename.is_some() {
        list("Supported options:", &creation::with_storage(rows, creation::FILE))
    } else {
        let own: Vec<OptionSpec> =
            rows.iter().filter(|r| !belongs_to_file(name, r.name)).copied().collect();
        list(&format!("Supported {name} options:"), &own)
            + "\nThe protocol level may support further options.\nSpecify the target filename to \
               include those options.\n"
    };
    output::print(&text);
    Ok(())
}

/// Whether an option is rather the file's than the format's. Of a raw image, which is its file, only
/// the size remains; qcow2 alone has a preallocation of its own.
fn belongs_to_file(format: &str, option: &str) -> bool {
    option != "size"
        && creation::FILE.iter().any(|r| r.name == option)
        && (format != "qcow2" || option != "preallocation")
}

/// Options of `amend`.
pub fn amendment(name: &str) -> Result<(), Failure> {
    let driver = format::driver(name)
        .ok_or_else(|| Failure::new(format!("Unknown file format '{name}'")))?;
    let rows = driver.amend_options();
    if rows.is_empty() {
        return Err(Failure::new(format!(
            "Format driver '{name}' does not support option amendment"
        )));
    }
    output::print(&list(&format!("Amend options for '{name}':"), rows));
    Ok(())
}

fn list(heading: &str, rows: &[OptionSpec]) -> String {
    let mut text = format!("{heading}\n");
    for line in creation::help_lines(rows) {
        text.push_str(&line);
        text.push('\n');
    }
    text
}
