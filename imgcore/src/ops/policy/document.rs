//! What an upload service accepts, as a small document: TOML or JSON, every name of it known.

use serde::Deserialize;

use crate::opts::size;
use crate::{Error, Result};

/// The document with all defaults, as it is printed. A test holds it against [`Policy::default`].
pub const DOCUMENT: &str = include_str!("default.toml");

/// What to do about something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Demand {
    /// It may be there.
    Allow,
    /// It makes the image unacceptable.
    #[default]
    Refuse,
    /// It must be there.
    Require,
}

/// A number of bytes: a number, or a text with a suffix (`2T`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Bytes(pub u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Text(String),
}

impl TryFrom<Written> for Bytes {
    type Error = String;

    fn try_from(written: Written) -> std::result::Result<Self, String> {
        match written {
            Written::Number(n) => Ok(Bytes(n)),
            Written::Text(text) => size::parse(&text)
                .map(Bytes)
                .map_err(|_| format!("'{text}' is no size (512, 20G, 2T)")),
        }
    }
}

/// What is accepted. Each field is explained in [`DOCUMENT`].
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Policy {
    /// Formats that are accepted.
    pub formats: Vec<String>,
    /// The format must be given by the caller.
    pub explicit_format: bool,
    /// A second magic number.
    pub polyglots: Demand,
    /// Largest disk.
    pub max_virtual_size: Bytes,
    /// Largest file.
    pub max_file_size: Bytes,
    /// Bytes of data that one byte of the file may become.
    pub max_expansion: u64,
    /// Bytes of disk that one byte of the file may stand for; 0: any.
    pub max_sparseness: u64,
    /// Another image below.
    pub backing_file: Demand,
    /// Data in another file.
    pub data_file: Demand,
    /// Parts in other files.
    pub external_extents: Demand,
    /// Encryption.
    pub encryption: Demand,
    /// Internal snapshots.
    pub snapshots: Demand,
    /// Marks of being in use or damaged.
    pub unclean: Demand,
    /// A check of the format's structures.
    pub check: Demand,
    /// Features of qcow2 that are accepted.
    pub qcow2_features: Vec<String>,
    /// Kinds of VMDK that are accepted.
    pub vmdk_subformats: Vec<String>,
}

impl Default for Policy {
    fn default() -> Self {
        let texts = |all: &[&str]| all.iter().map(|t| (*t).to_owned()).collect();
        Policy {
            formats: texts(&["raw", "qcow2", "vmdk", "vdi", "vpc", "vhdx"]),
            explicit_format: false,
            polyglots: Demand::Refuse,
            max_virtual_size: Bytes(2 << 40),
            max_file_size: Bytes(2 << 40),
            max_expansion: 200,
            max_sparseness: 0,
            backing_file: Demand::Refuse,
            data_file: Demand::Refuse,
            external_extents: Demand::Refuse,
            encryption: Demand::Refuse,
            snapshots: Demand::Refuse,
            unclean: Demand::Refuse,
            check: Demand::Allow,
            qcow2_features: texts(&["bitmaps", "extended-l2", "lazy-refcounts", "zstd"]),
            vmdk_subformats: texts(&["monolithicSparse", "streamOptimized"]),
        }
    }
}

/// Features of qcow2 that can be named.
const QCOW2_FEATURES: &[&str] = &["bitmaps", "extended-l2", "lazy-refcounts", "zstd"];

impl Policy {
    /// Reads a document; what begins with `{` is JSON.
    ///
    /// # Errors
    /// When it is neither, or has a name or value that is not known.
    pub fn parse(text: &str) -> Result<Self> {
        let policy: Policy = if text.trim_start().starts_with('{') {
            serde_json::from_str(text).map_err(|e| bad(&e.to_string()))?
        } else {
            toml::from_str(text).map_err(|e| bad(e.message()))?
        };
        policy.check()?;
        Ok(policy)
    }

    fn check(&self) -> Result<()> {
        for format in &self.formats {
            if crate::format::driver(format).is_none() {
                return Err(bad(&format!("formats names '{format}', which is not known")));
            }
        }
        for feature in &self.qcow2_features {
            if !QCOW2_FEATURES.contains(&feature.as_str()) {
                let all = QCOW2_FEATURES.join(", ");
                return Err(bad(&format!("qcow2-features names '{feature}'; known are {all}")));
            }
        }
        for (name, demand) in [
            ("polyglots", self.polyglots),
            ("backing-file", self.backing_file),
            ("data-file", self.data_file),
            ("external-extents", self.external_extents),
            ("snapshots", self.snapshots),
            ("unclean", self.unclean),
        ] {
            if demand == Demand::Require {
                return Err(bad(&format!("{name} can be 'allow' or 'refuse'")));
            }
        }
        if self.check == Demand::Refuse {
            return Err(bad("check can be 'allow' (not made) or 'require'"));
        }
        Ok(())
    }
}

fn bad(text: &str) -> Error {
    Error::invalid(format!("The policy is not valid: {}", text.trim())).hint(
        "rimg inspect --print-policy prints one with every name, its default and what it means",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_printed_document_is_the_default() {
        assert_eq!(Policy::parse(DOCUMENT).unwrap(), Policy::default());
        assert_eq!(Policy::parse("").unwrap(), Policy::default());
        assert_eq!(Policy::parse("{}").unwrap(), Policy::default());
    }

    #[test]
    fn names_and_values() {
        let policy = Policy::parse("max-virtual-size = \"20G\"\nencryption = \"require\"").unwrap();
        assert_eq!(policy.max_virtual_size, Bytes(20 << 30));
        assert_eq!(policy.encryption, Demand::Require);
        let policy = Policy::parse(r#"{"formats": ["raw"], "max-file-size": 512}"#).unwrap();
        assert_eq!(policy.max_file_size, Bytes(512));
        for wrong in [
            "max-size = 1",
            "formats = [\"doc\"]",
            "snapshots = \"require\"",
            "check = \"refuse\"",
            "qcow2-features = [\"magic\"]",
            "max-virtual-size = \"big\"",
            "{",
            "formats",
        ] {
            assert!(Policy::parse(wrong).is_err(), "{wrong}");
        }
    }
}
