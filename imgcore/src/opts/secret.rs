//! `--object secret,id=ID,data=TEXT|file=NAME[,format=raw|base64]`: passphrases for encrypted
//! images, kept out of the command line where the user wishes.

use super::OptError;
use super::json;
use super::list::{self, FirstItem};
use super::tree::{Flat, Scalar};

/// How the data of a secret are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretFormat {
    /// As they are.
    Raw,
    /// In base64.
    Base64,
}

/// Where the data of a secret are.
#[derive(Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// On the command line.
    Data(String),
    /// In a file.
    File(String),
}

/// A `secret` object, not yet read.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretDef {
    /// What images call it.
    pub id: String,
    /// Where it comes from.
    pub source: SecretSource,
    /// How it is written.
    pub format: SecretFormat,
}

/// A secret, ready for use. Never printed by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// What images call it.
    pub id: String,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({})", self.id)
    }
}

impl std::fmt::Debug for SecretDef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SecretDef({})", self.id)
    }
}

/// Objects that exist elsewhere and are not provided here.
const OTHER_OBJECTS: &[&str] = &[
    "authz-list",
    "authz-list-file",
    "authz-simple",
    "iothread",
    "main-loop",
    "pr-manager-helper",
    "secret_keyring",
    "thread-context",
    "throttle-group",
    "tls-creds-anon",
    "tls-creds-psk",
    "tls-creds-x509",
];

/// Parses the argument of `--object`: a list, or a JSON object.
pub fn parse(text: &str) -> Result<SecretDef, OptError> {
    let mut flat = if text.starts_with('{') {
        Flat::from_tree(json::parse(text)?)?
    } else {
        Flat::from_items(&list::parse(text, FirstItem::ValueOf("qom-type")))
    };
    let kind = flat.take_text("qom-type").ok_or_else(|| missing("qom-type"))?;
    if kind != "secret" {
        return Err(if OTHER_OBJECTS.contains(&kind.as_str()) {
            OptError::new(format!("Objects of type '{kind}' are not supported"))
                .hint("only 'secret' objects are: --object secret,id=ID,file=NAME")
        } else {
            OptError::not_accepted("qom-type", &kind)
        });
    }
    let id = flat.take_text("id").ok_or_else(|| missing("id"))?;
    check_id(&id)?;
    let data = flat.take_text("data");
    let file = flat.take_text("file");
    let format = match flat.take("format").as_ref().map(Scalar::text) {
        None | Some("raw") => SecretFormat::Raw,
        Some("base64") => SecretFormat::Base64,
        Some(other) => return Err(OptError::not_accepted("format", other)),
    };
    if flat.take("keyid").is_some() || flat.take("iv").is_some() {
        return Err(OptError::new(format!(
            "Secret '{id}' is itself encrypted (keyid, iv): not supported"
        ))
        .hint("give the passphrase in a file only you can read: --object secret,id=ID,file=NAME"));
    }
    if let Some((key, _)) = flat.iter().next() {
        return Err(OptError::new(format!("Parameter '{key}' is unexpected")));
    }
    let source = match (data, file) {
        (Some(_), Some(_)) => {
            return Err(OptError::new("'file' and 'data' are mutually exclusive"));
        }
        (Some(d), None) => SecretSource::Data(d),
        (None, Some(f)) => SecretSource::File(f),
        (None, None) => return Err(OptError::new("Either 'file' or 'data' must be provided")),
    };
    Ok(SecretDef { id, source, format })
}

fn missing(name: &str) -> OptError {
    OptError::new(format!("Parameter '{name}' is missing"))
}

fn check_id(id: &str) -> Result<(), OptError> {
    let good = id.starts_with(|c: char| c.is_ascii_alphabetic())
        && id.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    if good {
        return Ok(());
    }
    Err(OptError::new("Parameter 'id' expects an identifier")
        .hint("Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."))
}

impl SecretDef {
    /// Gets the bytes; `read` reads a file.
    pub fn load(
        self,
        read: impl FnOnce(&str) -> std::io::Result<Vec<u8>>,
    ) -> Result<Secret, OptError> {
        let written = match self.source {
            SecretSource::Data(text) => text.into_bytes(),
            SecretSource::File(name) => read(&name).map_err(|e| {
                let text = e.to_string();
                let words = text.split(" (os error").next().unwrap_or(&text);
                OptError::new(format!(
                    "Unable to read {name}: Failed to open file “{name}”: {words}"
                ))
            })?,
        };
        let bytes = match self.format {
            SecretFormat::Raw => written,
            SecretFormat::Base64 => decode_base64(&written)?,
        };
        Ok(Secret { id: self.id, bytes })
    }
}

/// Decodes base64 (RFC 4648), ignoring line ends and taking padding as the end.
fn decode_base64(text: &[u8]) -> Result<Vec<u8>, OptError> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0u32);
    for &c in text {
        let six = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'\n' | b'\r' | b'=' => continue,
            _ => return Err(OptError::new("Base64 data contains invalid characters")),
        };
        bits = (bits << 6) | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push(u8::try_from((bits >> count) & 0xff).unwrap_or(0));
        }
    }
    Ok(out)
}

/// The secrets of a command, by identifier.
#[derive(Clone, Debug, Default)]
pub struct Secrets(Vec<Secret>);

impl Secrets {
    /// Adds one; each identifier once.
    pub fn add(&mut self, secret: Secret) -> Result<(), OptError> {
        if self.0.iter().any(|s| s.id == secret.id) {
            return Err(OptError::new(format!(
                "attempt to add duplicate property '{}' to object (type 'container')",
                secret.id
            )));
        }
        self.0.push(secret);
        Ok(())
    }

    /// The secret of this identifier.
    pub fn get(&self, id: &str) -> Result<&[u8], OptError> {
        self.0
            .iter()
            .find(|s| s.id == id)
            .map(|s| s.bytes.as_slice())
            .ok_or_else(|| OptError::new(format!("No secret with id '{id}'")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> String {
        parse(text).unwrap_err().message
    }

    #[test]
    fn forms() {
        let s = parse("secret,id=a,data=b,,c").unwrap();
        assert_eq!(s.load(|_| Ok(vec![])).unwrap().bytes, b"b,c");
        let s = parse(r#"{"qom-type":"secret","id":"a","data":"aGk=","format":"base64"}"#).unwrap();
        assert_eq!(s.load(|_| Ok(vec![])).unwrap().bytes, b"hi");
        let s = parse("secret,id=a,file=f").unwrap();
        assert_eq!(s.load(|_| Ok(b"pw\n".to_vec())).unwrap().bytes, b"pw\n");
    }

    #[test]
    fn refusals() {
        assert_eq!(message("foo"), "Parameter 'qom-type' does not accept value 'foo'");
        assert_eq!(message("secret,data=b"), "Parameter 'id' is missing");
        assert_eq!(message("secret,id=a"), "Either 'file' or 'data' must be provided");
        assert_eq!(
            message("secret,id=a,data=b,file=c"),
            "'file' and 'data' are mutually exclusive"
        );
        assert_eq!(message("secret,id=a,data=b,foo=1"), "Parameter 'foo' is unexpected");
        assert_eq!(message("secret,id=1a,data=b"), "Parameter 'id' expects an identifier");
        assert_eq!(
            message("secret,id=a,data=b,format=foo"),
            "Parameter 'format' does not accept value 'foo'"
        );
        let bad = parse("secret,id=a,data=%%,format=base64").unwrap().load(|_| Ok(vec![]));
        assert_eq!(bad.unwrap_err().message, "Base64 data contains invalid characters");
    }

    #[test]
    fn never_shown() {
        let s = parse("secret,id=a,data=hunter2").unwrap();
        assert!(!format!("{s:?}").contains("hunter2"));
        assert!(!format!("{:?}", s.load(|_| Ok(vec![])).unwrap()).contains("hunter2"));
    }
}
