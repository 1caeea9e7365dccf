//! `--object secret,id=ID,data=TEXT|file=NAME[,format=raw|base64][,keyid=ID,iv=BASE64]` and
//! `--object secret_keyring,id=ID,serial=NUMBER`: passphrases for encrypted images, kept out of the
//! command line where the user wishes.
//!
//! With `keyid` the data are themselves encrypted with AES-256 in CBC mode (padded as PKCS #7 says) under
//! another secret of 32 bytes; `iv` is the initialization vector. Secrets are wiped when they are dropped.

use std::sync::Arc;

use super::OptError;
use super::json;
use super::list::{self, FirstItem};
use super::tree::{Flat, Scalar};
use crate::crypto::{Cipher, SecretBytes, raw_cbc_decrypt};
use crate::throttle::ThrottleGroup;
use crate::tls::Credentials;

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
    /// In the kernel's keyring, under this serial number.
    Keyring(i32),
}

/// How a secret is itself encrypted.
#[derive(Clone, PartialEq, Eq)]
pub struct Wrapped {
    /// Identifier of the secret that is the key.
    pub key: String,
    /// Initialization vector, in base64.
    pub iv: Option<String>,
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
    /// How it is encrypted.
    pub wrapped: Option<Wrapped>,
}

/// A secret, ready for use. Never printed by `Debug`; wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// What images call it.
    pub id: String,
    /// The bytes.
    pub bytes: SecretBytes,
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
    "thread-context",
];

/// Parses the argument of `--object`: a list, or a JSON object.
pub fn parse(text: &str) -> Result<SecretDef, OptError> {
    let mut flat = if text.starts_with('{') {
        Flat::from_tree(json::parse(text)?)?
    } else {
        Flat::from_items(&list::parse(text, FirstItem::ValueOf("qom-type")))
    };
    let kind = flat.take_text("qom-type").ok_or_else(|| missing("qom-type"))?;
    if !matches!(kind.as_str(), "secret" | "secret_keyring") {
        return Err(if OTHER_OBJECTS.contains(&kind.as_str()) {
            OptError::new(format!("Objects of type '{kind}' are not supported"))
                .hint("those are: secret, secret_keyring, throttle-group, tls-creds-x509")
        } else {
            OptError::not_accepted("qom-type", &kind)
        });
    }
    let id = flat.take_text("id").ok_or_else(|| missing("id"))?;
    check_id(&id)?;
    let format = match flat.take("format").as_ref().map(Scalar::text) {
        None | Some("raw") => SecretFormat::Raw,
        Some("base64") => SecretFormat::Base64,
        Some(other) => return Err(OptError::not_accepted("format", other)),
    };
    let wrapped = match (flat.take_text("keyid"), flat.take_text("iv")) {
        (Some(key), iv) => Some(Wrapped { key, iv }),
        (None, Some(_)) => {
            return Err(OptError::new(format!("Secret '{id}' has an 'iv' but no 'keyid'")));
        }
        (None, None) => None,
    };
    let source = if kind == "secret" { data_or_file(&mut flat)? } else { keyring(&mut flat)? };
    if let Some((key, _)) = flat.iter().next() {
        return Err(OptError::new(format!("Parameter '{key}' is unexpected")));
    }
    Ok(SecretDef { id, source: source?, format, wrapped })
}

/// The source, or what is wrong with it; an option that is not known is told before.
type Source = Result<Result<SecretSource, OptError>, OptError>;

fn data_or_file(flat: &mut Flat) -> Source {
    Ok(match (flat.take_text("data"), flat.take_text("file")) {
        (Some(_), Some(_)) => Err(OptError::new("'file' and 'data' are mutually exclusive")),
        (Some(d), None) => Ok(SecretSource::Data(d)),
        (None, Some(f)) => Ok(SecretSource::File(f)),
        (None, None) => Err(OptError::new("Either 'file' or 'data' must be provided")),
    })
}

fn keyring(flat: &mut Flat) -> Source {
    let Some(text) = flat.take_text("serial") else {
        return Ok(Err(OptError::new("'serial' parameter must be provided")));
    };
    let number = super::value::number("serial", &text)?;
    Ok(i32::try_from(number).map(SecretSource::Keyring).map_err(|_| {
        OptError::new("Parameter 'serial' expects the serial number of a key (see keyctl show)")
    }))
}

fn missing(name: &str) -> OptError {
    OptError::new(format!("Parameter '{name}' is missing"))
}

pub(super) fn check_id(id: &str) -> Result<(), OptError> {
    let good = id.starts_with(|c: char| c.is_ascii_alphabetic())
        && id.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    if good {
        return Ok(());
    }
    Err(OptError::new("Parameter 'id' expects an identifier")
        .hint("Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."))
}

impl SecretDef {
    /// Gets the bytes; `read` reads a file or a key, `known` are the secrets given before.
    pub fn load(
        self,
        known: &Secrets,
        read: impl FnOnce(&SecretSource) -> std::io::Result<Vec<u8>>,
    ) -> Result<Secret, OptError> {
        let words = |e: &std::io::Error| {
            let text = e.to_string();
            text.split(" (os error").next().unwrap_or(&text).to_owned()
        };
        let written = SecretBytes::new(match &self.source {
            SecretSource::Data(text) => text.clone().into_bytes(),
            SecretSource::File(name) => read(&self.source).map_err(|e| {
                OptError::new(format!(
                    "Unable to read {name}: Failed to open file “{name}”: {}",
                    words(&e)
                ))
            })?,
            SecretSource::Keyring(serial) => read(&self.source).map_err(|e| {
                OptError::new(format!("Unable to read key {serial} of the keyring: {}", words(&e)))
            })?,
        });
        let bytes = match self.format {
            SecretFormat::Raw => written,
            SecretFormat::Base64 => SecretBytes::new(decode_base64(&written)?),
        };
        let bytes = match &self.wrapped {
            Some(wrapped) => unwrap(wrapped, &bytes, known)?,
            None => bytes,
        };
        Ok(Secret { id: self.id, bytes })
    }
}

/// Decrypts a secret with another one.
fn unwrap(wrapped: &Wrapped, data: &[u8], known: &Secrets) -> Result<SecretBytes, OptError> {
    let key = known.get(&wrapped.key)?;
    if key.len() != 32 {
        return Err(OptError::new("Key should be 32 bytes in length"));
    }
    let Some(iv) = &wrapped.iv else {
        return Err(OptError::new("IV is required to decrypt secret"));
    };
    let iv = decode_base64(iv.as_bytes())?;
    let iv = <[u8; 16]>::try_from(iv)
        .map_err(|iv| OptError::new(format!("IV should be 16 bytes in length not {}", iv.len())))?;
    let plain = raw_cbc_decrypt(Cipher::Aes256, key, &iv, data)
        .map_err(|e| OptError::new(e.message().to_owned()))?;
    let pad = plain.last().map_or(0, |&n| usize::from(n));
    if plain.len() % 16 != 0 || pad == 0 || pad > 16 || pad > plain.len() {
        return Err(OptError::new(format!(
            "Incorrect number of padding bytes ({pad}) found on decrypted data"
        )));
    }
    Ok(SecretBytes::new(plain[..plain.len() - pad].to_vec()))
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

/// What a passphrase is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asking {
    /// To open an image.
    Open,
    /// To make one: asked twice.
    Create,
}

/// Somebody who can be asked for a passphrase.
pub trait Ask: Send + Sync {
    /// The passphrase of `image`. The same image may be asked for again: it is to be remembered.
    ///
    /// # Errors
    /// When there is nobody, or he gives up.
    fn passphrase(&self, image: &str, asking: Asking) -> Result<SecretBytes, OptError>;
}

/// The objects of a command, by identifier: its secrets, and who is asked where none is named; its groups of
/// limits; its credentials for TLS.
#[derive(Clone, Default)]
pub struct Secrets {
    list: Vec<Arc<Secret>>,
    groups: Vec<Arc<ThrottleGroup>>,
    credentials: Vec<(String, Credentials)>,
    ask: Option<Arc<dyn Ask>>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.list.iter().map(|s| &s.id)).finish()
    }
}

impl Secrets {
    /// Adds one; each identifier once.
    pub fn add(&mut self, secret: Secret) -> Result<(), OptError> {
        self.check_new(&secret.id)?;
        self.list.push(Arc::new(secret));
        Ok(())
    }

    /// Adds a group of limits; each identifier once.
    pub fn add_group(&mut self, group: ThrottleGroup) -> Result<(), OptError> {
        self.check_new(group.id())?;
        self.groups.push(Arc::new(group));
        Ok(())
    }

    /// Adds credentials; each identifier once.
    pub fn add_credentials(
        &mut self,
        id: String,
        credentials: Credentials,
    ) -> Result<(), OptError> {
        self.check_new(&id)?;
        self.credentials.push((id, credentials));
        Ok(())
    }

    /// The credentials of this identifier.
    pub fn credentials(&self, id: &str) -> Result<&Credentials, OptError> {
        let found = self.credentials.iter().find(|(known, _)| known == id);
        found.map(|(_, credentials)| credentials).ok_or_else(|| {
            OptError::new(if self.is_known(id) {
                format!("Object with id '{id}' is not TLS credentials")
            } else {
                format!("No TLS credentials with id '{id}'")
            })
        })
    }

    /// The group of limits of this identifier.
    pub fn group(&self, id: &str) -> Result<Arc<ThrottleGroup>, OptError> {
        let found = self.groups.iter().find(|g| g.id() == id);
        found.cloned().ok_or_else(|| OptError::new(format!("Throttle group '{id}' does not exist")))
    }

    fn is_known(&self, id: &str) -> bool {
        self.list.iter().any(|s| s.id == id)
            || self.groups.iter().any(|g| g.id() == id)
            || self.credentials.iter().any(|(known, _)| known == id)
    }

    fn check_new(&self, id: &str) -> Result<(), OptError> {
        if self.is_known(id) {
            return Err(OptError::new(format!(
                "attempt to add duplicate property '{id}' to object (type 'container')"
            )));
        }
        Ok(())
    }

    /// Has somebody asked where an encrypted image comes without a secret.
    pub fn ask(&mut self, who: Arc<dyn Ask>) {
        self.ask = Some(who);
    }

    /// The secret of this identifier.
    pub fn get(&self, id: &str) -> Result<&[u8], OptError> {
        self.list
            .iter()
            .find(|s| s.id == id)
            .map(|s| s.bytes.as_slice())
            .ok_or_else(|| OptError::new(format!("No secret with id '{id}'")))
    }

    /// The passphrase of an image: that of the secret, or what the user answers. `None`: neither.
    pub fn passphrase(
        &self,
        id: Option<&str>,
        image: &str,
        asking: Asking,
    ) -> Result<Option<SecretBytes>, OptError> {
        match (id, &self.ask) {
            (Some(id), _) => Ok(Some(SecretBytes::new(self.get(id)?.to_vec()))),
            (None, Some(ask)) => ask.passphrase(image, asking).map(Some),
            (None, None) => Ok(None),
        }
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
        assert_eq!(s.load(&Secrets::default(), |_| Ok(vec![])).unwrap().bytes[..], *b"b,c");
        let s = parse(r#"{"qom-type":"secret","id":"a","data":"aGk=","format":"base64"}"#).unwrap();
        assert_eq!(s.load(&Secrets::default(), |_| Ok(vec![])).unwrap().bytes[..], *b"hi");
        let s = parse("secret,id=a,file=f").unwrap();
        assert_eq!(
            s.load(&Secrets::default(), |_| Ok(b"pw\n".to_vec())).unwrap().bytes[..],
            *b"pw\n"
        );
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
        let bad = parse("secret,id=a,data=%%,format=base64")
            .unwrap()
            .load(&Secrets::default(), |_| Ok(vec![]));
        assert_eq!(bad.unwrap_err().message, "Base64 data contains invalid characters");
    }

    #[test]
    fn never_shown() {
        let s = parse("secret,id=a,data=hunter2").unwrap();
        assert!(!format!("{s:?}").contains("hunter2"));
        assert!(
            !format!("{:?}", s.load(&Secrets::default(), |_| Ok(vec![])).unwrap())
                .contains("hunter2")
        );
    }
}
