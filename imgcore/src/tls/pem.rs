//! Files of certificates, keys and lists of revoked certificates (PEM, RFC 7468).

use std::io::Read;
use std::path::{Path, PathBuf};

use pkcs8::EncryptedPrivateKeyInfoRef;
use pkcs8::der::SecretDocument;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs8KeyDer,
};
use zeroize::Zeroizing;

use crate::num::len_u64;
use crate::{Error, ErrorKind, Result};

/// Longest file; the certificates of all authorities of the world have less.
const MAX_FILE: u64 = 4 << 20;

/// How a key begins that is encrypted (RFC 5958), and how it ends.
const ENCRYPTED: [&str; 2] =
    ["-----BEGIN ENCRYPTED PRIVATE KEY-----", "-----END ENCRYPTED PRIVATE KEY-----"];

/// A folder of credentials.
#[derive(Debug)]
pub(super) struct Folder<'a>(pub &'a str);

impl Folder<'_> {
    /// Where a file of it is.
    pub fn path(&self, name: &str) -> PathBuf {
        Path::new(self.0).join(name)
    }

    /// Reads a file; `None` when it is not there.
    fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>> {
        let path = self.path(name);
        let shown = path.display();
        let failed = |e: &std::io::Error| {
            Error::io(e).context(format!("Unable to access credentials {shown}"))
        };
        let file = match std::fs::File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(|e| failed(&e))?,
        };
        let mut bytes = Zeroizing::new(Vec::new());
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|e| failed(&e))?;
        if len_u64(bytes.len()) > MAX_FILE {
            let text = format!("{shown} is longer than the {MAX_FILE} bytes that are taken");
            return Err(Error::new(ErrorKind::TooLarge, text));
        }
        Ok(Some(bytes))
    }

    /// A file that must be there is not.
    pub fn missing(&self, name: &str) -> Error {
        Error::errno(libc::ENOENT)
            .context(format!("Unable to access credentials {}", self.path(name).display()))
    }

    fn bad(&self, name: &str, why: impl std::fmt::Display) -> Error {
        Error::invalid(format!("Unable to import {}: {why}", self.path(name).display()))
    }

    /// The certificates of a file, at least one; `None` when there is no such file.
    pub fn certificates(&self, name: &str) -> Result<Option<Vec<CertificateDer<'static>>>> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        let all: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
            .collect::<std::result::Result<_, _>>()
            .map_err(|e| self.bad(name, e))?;
        if all.is_empty() {
            return Err(self.bad(name, "there is no certificate in it (PEM)"));
        }
        Ok(Some(all))
    }

    /// The same of a file that must be there.
    pub fn needed_certificates(&self, name: &str) -> Result<Vec<CertificateDer<'static>>> {
        self.certificates(name)?.ok_or_else(|| self.missing(name))
    }

    /// The lists of revoked certificates of a file; none when there is no such file.
    pub fn revoked(&self, name: &str) -> Result<Vec<CertificateRevocationListDer<'static>>> {
        let Some(bytes) = self.read(name)? else { return Ok(Vec::new()) };
        let all: Vec<_> = CertificateRevocationListDer::pem_slice_iter(&bytes)
            .collect::<std::result::Result<_, _>>()
            .map_err(|e| self.bad(name, e))?;
        if all.is_empty() {
            return Err(self.bad(name, "there is no list of revoked certificates in it (PEM)"));
        }
        Ok(all)
    }

    /// The private key of a file, decrypted with `password` where it is encrypted; `None` when there is no such file.
    pub fn key(
        &self,
        name: &str,
        password: Option<&[u8]>,
    ) -> Result<Option<PrivateKeyDer<'static>>> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        let text = std::str::from_utf8(&bytes).map_err(|_| self.bad(name, "it is no PEM file"))?;
        if let Some(section) = encrypted(text) {
            let Some(password) = password else {
                return Err(self
                    .bad(name, "the key is encrypted")
                    .hint("name its password: --object secret,id=PW,file=FILE and passwordid=PW"));
            };
            return self.decrypt(name, section, password).map(Some);
        }
        if text.contains("Proc-Type: 4,ENCRYPTED") {
            return Err(self
                .bad(name, "the key is encrypted in the old way of OpenSSL, which protects little")
                .hint("rewrite it: openssl pkcs8 -topk8 -in OLD -out NEW"));
        }
        PrivateKeyDer::from_pem_slice(&bytes).map(Some).map_err(|_| {
            self.bad(name, "there is no private key in it (PEM of PKCS #8, PKCS #1 or SEC 1)")
        })
    }

    /// The same of a file that must be there.
    pub fn needed_key(
        &self,
        name: &str,
        password: Option<&[u8]>,
    ) -> Result<PrivateKeyDer<'static>> {
        self.key(name, password)?.ok_or_else(|| self.missing(name))
    }

    fn decrypt(&self, name: &str, pem: &str, password: &[u8]) -> Result<PrivateKeyDer<'static>> {
        let (_, document) = SecretDocument::from_pem(pem).map_err(|e| self.bad(name, e))?;
        let sealed = EncryptedPrivateKeyInfoRef::try_from(document.as_bytes())
            .map_err(|e| self.bad(name, format!("the key is encrypted in an unknown way: {e}")))?;
        let plain = sealed
            .decrypt(password)
            .map_err(|_| self.bad(name, "the password does not decrypt the key"))?;
        Ok(PrivatePkcs8KeyDer::from(plain.as_bytes().to_vec()).into())
    }
}

/// The encrypted key of a file, if there is one.
fn encrypted(text: &str) -> Option<&str> {
    let [begin, end] = ENCRYPTED;
    let from = text.find(begin)?;
    let len = text[from..].find(end)? + end.len();
    Some(&text[from..from + len])
}
