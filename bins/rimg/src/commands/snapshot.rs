//! `snapshot`

use imgcore::ops::snapshot::{self, SnapshotAction, SnapshotOptions};
use imgcore::storage::CacheMode;
use serde_json::json;

use crate::args::getopt::Parser;
use crate::common::Common;
use crate::failure::Failure;
use crate::output::snapshots;
use crate::session::Session;

/// Runs it.
pub fn run(session: &Session, mut parser: Parser) -> Result<u8, Failure> {
    let mut common = Common::new(session, parser.command);
    let mut action = None;
    while let Some(given) = parser.next_option()? {
        let next = match given.id {
            "list" => SnapshotAction::List,
            "create" => SnapshotAction::Create(given.value),
            "apply" => SnapshotAction::Apply(given.value),
            "delete" => SnapshotAction::Delete(given.value),
            _ => {
                common.take(given)?;
                continue;
            }
        };
        if action.replace(next).is_some() {
            return Err(common.usage("Cannot mix '-l', '-a', '-c', '-d'"));
        }
    }
    let name = common.one_image(parser.positionals())?;
    let action = action.unwrap_or_default();
    if !matches!(action, SnapshotAction::List) {
        common.changes_images();
    }
    let image = common.image(&name, CacheMode::Writeback)?;
    let reporter = common.reporter();
    let options = SnapshotOptions { image, action };
    let list = common.run(&reporter, |job| snapshot::snapshot(&options, job))?;
    let done = match &options.action {
        SnapshotAction::List => None,
        SnapshotAction::Create(n) => Some(("created", n)),
        SnapshotAction::Apply(n) => Some(("applied", n)),
        SnapshotAction::Delete(n) => Some(("deleted", n)),
    };
    common.report(&snapshots::table(&list), || match done {
        None => snapshots::json(&list),
        Some((what, snapshot)) => json!({ "filename": name, what: snapshot }),
    });
    Ok(0)
}
