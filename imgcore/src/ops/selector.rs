//! Which internal snapshot is meant: `-l NAME`, `-l snapshot.name=NAME`, `-l snapshot.id=ID`.

use crate::format::SnapshotSelector;
use crate::opts::OptError;
use crate::opts::list::{self, FirstItem};

/// Parses the argument of `-l`.
pub fn parse(text: &str) -> Result<SnapshotSelector, OptError> {
    if !text.starts_with("snapshot.") {
        return Ok(SnapshotSelector::IdOrName(text.to_owned()));
    }
    let (mut id, mut name) = (None, None);
    for item in list::parse(text, FirstItem::Flag) {
        match item.key.as_str() {
            "snapshot.id" => id = Some(item.value),
            "snapshot.name" => name = Some(item.value),
            other => return Err(OptError::unknown(other)),
        }
    }
    Ok(SnapshotSelector::Exact { id, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        assert_eq!(parse("a=b").unwrap(), SnapshotSelector::IdOrName("a=b".into()));
        assert_eq!(
            parse("snapshot.id=1,snapshot.name=x,,y").unwrap(),
            SnapshotSelector::Exact { id: Some("1".into()), name: Some("x,y".into()) }
        );
        let e = parse("snapshot.foo=1").unwrap_err();
        assert_eq!(e.message, "Invalid parameter 'snapshot.foo'");
    }
}
