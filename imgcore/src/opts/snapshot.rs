//! Which internal snapshot is meant: `-l NAME`, `-l snapshot.name=NAME`, `-l snapshot.id=ID`.

use super::OptError;
use super::list::{self, FirstItem};

/// A snapshot as a person names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotParam {
    /// A bare word: an identifier if one matches, else a name.
    IdOrName(String),
    /// Given key by key; what is given must match.
    Exact {
        /// `snapshot.id`.
        id: Option<String>,
        /// `snapshot.name`.
        name: Option<String>,
    },
}

impl SnapshotParam {
    /// Parses the argument of `-l`.
    pub fn parse(text: &str) -> Result<Self, OptError> {
        if !text.starts_with("snapshot.") {
            return Ok(SnapshotParam::IdOrName(text.to_owned()));
        }
        let (mut id, mut name) = (None, None);
        for item in list::parse(text, FirstItem::Flag) {
            match item.key.as_str() {
                "snapshot.id" => id = Some(item.value),
                "snapshot.name" => name = Some(item.value),
                other => return Err(OptError::unknown(other)),
            }
        }
        Ok(SnapshotParam::Exact { id, name })
    }

    /// What to call it in a message.
    pub fn label(&self) -> &str {
        match self {
            SnapshotParam::IdOrName(t) => t,
            SnapshotParam::Exact { id, name } => {
                name.as_deref().or(id.as_deref()).unwrap_or_default()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        assert_eq!(SnapshotParam::parse("a=b").unwrap(), SnapshotParam::IdOrName("a=b".into()));
        assert_eq!(
            SnapshotParam::parse("snapshot.id=1,snapshot.name=x,,y").unwrap(),
            SnapshotParam::Exact { id: Some("1".into()), name: Some("x,y".into()) }
        );
        let e = SnapshotParam::parse("snapshot.foo=1").unwrap_err();
        assert_eq!(e.message, "Invalid parameter 'snapshot.foo'");
    }
}
