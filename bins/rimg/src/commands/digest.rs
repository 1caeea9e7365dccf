//! `digest`: not a command of qemu-img.

use std::path::{Path, PathBuf};

use imgcore::Error;
use imgcore::ops::digest::{self, DigestReport, Kind, Written};
use imgcore::opts::http::without_credentials;
use imgcore::storage::CacheMode;
use serde_json::json;

use crate::args::getopt::Parser;
use crate::common::Common;
use crate::failure::Failure;
use crate::session::Session;

/// The image is not what it should be.
const DIFFERENT: u8 = 1;
/// No answer.
const TROUBLE: u8 = 2;

/// Where the expected digest comes from.
enum Expected {
    Nothing,
    Given(Written),
    Beside,
}

/// Runs it. Exit codes: 0 done (and as expected), 1 not as expected, 2 trouble.
pub fn run(session: &Session, mut parser: Parser) -> Result<u8, Failure> {
    let mut common = Common::new(session, parser.command);
    let mut expected = Expected::Nothing;
    let mut kind = None;
    let mut save = false;
    let trouble = |f: Failure| f.with_code(TROUBLE);
    while let Some(given) = parser.next_option()? {
        match given.id {
            "expect" => {
                let written = given.value.parse::<Written>().map_err(Failure::from);
                expected = Expected::Given(written.map_err(trouble)?);
            }
            "check" => expected = Expected::Beside,
            "save" => save = true,
            "sha256" => kind = Some(Kind::Sha256),
            _ => common.take(given)?,
        }
    }
    let name = common.one_image(parser.positionals()).map_err(trouble)?;
    let image = {
        let format = common.format.clone();
        common.source(&name, format.as_deref(), CacheMode::Writeback).map_err(trouble)?
    };
    let name = without_credentials(&name);
    let beside = PathBuf::from(format!("{name}.digest"));
    let expected = match expected {
        Expected::Nothing => None,
        Expected::Given(written) => Some(written),
        Expected::Beside => Some(load(&beside).map_err(|e| trouble(e.into()))?),
    };
    if let (Some(kind), Some(written)) = (kind, expected)
        && kind != written.kind
    {
        let text =
            format!("a {} digest is expected, not one by {}", written.kind.name(), kind.name());
        return Err(trouble(common.usage(text)));
    }
    let kind = kind.or(expected.map(|w| w.kind)).unwrap_or_default();
    let reporter = common.reporter();
    let result = common.run(&reporter, |job| digest::digest(&image, kind, job));
    reporter.end();
    let report = result.map_err(trouble)?;
    if save {
        store(&beside, report.digest).map_err(|e| trouble(e.into()))?;
    }
    let same = expected.map(|written| written == report.digest);
    let verdict = match same {
        None => format!("{}  {name}\n", report.digest),
        Some(true) => format!("{name}: OK\n"),
        Some(false) => format!("{name}: DIFFERENT: {}\n", report.digest),
    };
    common.report(&verdict, || to_json(&name, &report, same));
    Ok(if same == Some(false) { DIFFERENT } else { 0 })
}

fn to_json(name: &str, report: &DigestReport, same: Option<bool>) -> serde_json::Value {
    let mut value = json!({
        "filename": name,
        "digest": report.digest.to_string(),
        "virtual-size": report.virtual_size,
        "bytes-read": report.bytes_read,
    });
    if let Some(same) = same {
        value["as-expected"] = same.into();
    }
    value
}

/// The first word of the file beside the image.
fn load(path: &Path) -> imgcore::Result<Written> {
    let shown = path.to_string_lossy();
    let text = std::fs::read_to_string(path).map_err(|e| {
        Error::io(&e)
            .context(format!("Could not read '{shown}'"))
            .hint("rimg digest --save IMAGE makes it")
    })?;
    text.split_whitespace()
        .next()
        .unwrap_or_default()
        .parse::<Written>()
        .map_err(|e| e.context(format!("'{shown}' holds no digest")))
}

/// Written under another name first: a digest that is cut off must not be found.
fn store(path: &Path, digest: Written) -> imgcore::Result<()> {
    let part = path.with_extension("digest.part");
    let failed = |e: &std::io::Error| {
        Error::io(e).context(format!("Could not write '{}'", path.to_string_lossy()))
    };
    std::fs::write(&part, format!("{digest}\n")).map_err(|e| failed(&e))?;
    std::fs::rename(&part, path).map_err(|e| failed(&e))
}
