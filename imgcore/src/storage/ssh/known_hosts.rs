//! Whether a host's key is the one that was seen before (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT").

use std::io::Read;
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit, Mac};
use russh::keys::ssh_key::known_hosts::{Entry, HostPatterns, Marker};
use russh::keys::ssh_key::{Algorithm, PublicKey};

use crate::{Error, Result};

/// Longest file that is read.
const MAX_FILE: u64 = 32 << 20;

/// A key that is known.
#[derive(Debug)]
struct Known {
    key: PublicKey,
    revoked: bool,
    file: PathBuf,
    line: usize,
}

/// What is known of one host.
#[derive(Debug, Default)]
pub(super) struct KnownHost(Vec<Known>);

impl KnownHost {
    /// What these files say of a host, whose name is `host` or `[host]:port`. Files that are missing and lines that
    /// cannot be understood say nothing.
    pub fn find(files: &[PathBuf], host: &str) -> Result<Self> {
        let host = host.to_lowercase();
        let mut all = Vec::new();
        for file in files {
            let text = match read(file) {
                Ok(text) => text,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => {
                    let shown = file.display().to_string();
                    let what = format!("Could not read the keys of known hosts in '{shown}'");
                    return Err(Error::io(&e).context(what).at_path(shown));
                }
            };
            for (n, line) in text.lines().enumerate() {
                let line = line.trim();
                let said = (!line.starts_with('#')).then(|| line.parse::<Entry>().ok()).flatten();
                let Some(entry) = said.filter(|e| applies(e.host_patterns(), &host)) else {
                    continue;
                };
                let revoked = match entry.marker() {
                    // Hosts are not asked for certificates.
                    Some(Marker::CertAuthority) => continue,
                    Some(Marker::Revoked) => true,
                    None => false,
                };
                let key = entry.public_key().clone();
                all.push(Known { key, revoked, file: file.clone(), line: n + 1 });
            }
        }
        Ok(KnownHost(all))
    }

    /// Whether a key of this kind is known: a host is asked for such a one.
    pub fn has(&self, algorithm: &Algorithm) -> bool {
        self.0.iter().any(|k| !k.revoked && family(&k.key.algorithm()) == family(algorithm))
    }

    /// Checks the key that the host showed.
    pub fn check(&self, key: &PublicKey, host: &str, fingerprint: &str) -> Result<()> {
        let same = |k: &&Known| k.key.key_data() == key.key_data();
        let place = |k: &Known| format!("'{}', line {}", k.file.display(), k.line);
        if let Some(known) = self.0.iter().filter(|k| k.revoked).find(same) {
            return Err(Error::invalid(format!(
                "the key of host '{host}' is revoked ({})",
                place(known)
            )));
        }
        if self.0.iter().any(|k| same(&k)) {
            return Ok(());
        }
        let kind = key.algorithm();
        if let Some(known) = self.0.iter().find(|k| !k.revoked && k.key.algorithm() == kind) {
            return Err(Error::invalid(format!(
                "host key does not match the one in known_hosts: '{host}' showed {fingerprint}, and {} has another",
                place(known)
            ))
            .hint(format!(
                "somebody may sit between you and the host. If its key was changed by who keeps it: ssh-keygen -R '{host}'"
            )));
        }
        Err(Error::invalid(format!("no host key was found in known_hosts for '{host}'")).hint(
            format!(
                "log in once with ssh to make it known, or pin it by host-key-check: it showed {fingerprint}"
            ),
        ))
    }
}

/// Kinds that are one and the same key.
fn family(algorithm: &Algorithm) -> Algorithm {
    match algorithm {
        Algorithm::Rsa { .. } => Algorithm::Rsa { hash: None },
        other => other.clone(),
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether a line is about this host.
fn applies(patterns: &HostPatterns, host: &str) -> bool {
    match patterns {
        HostPatterns::HashedName { salt, hash } => {
            let Ok(mut mac) = Hmac::<sha1::Sha1>::new_from_slice(salt) else { return false };
            mac.update(host.as_bytes());
            mac.verify_slice(hash).is_ok()
        }
        HostPatterns::Patterns(all) => {
            let fits = |pattern: &str| fits(pattern.to_lowercase().as_bytes(), host.as_bytes());
            let (not, yes): (Vec<&String>, Vec<&String>) =
                all.iter().partition(|p| p.starts_with('!'));
            yes.iter().any(|p| fits(p)) && !not.iter().any(|p| fits(&p[1..]))
        }
    }
}

/// A pattern of `*` and `?`.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where the last star stood, and what it has taken so far.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    t = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
    const B: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILIG2T/B0l0gaqj3puu510tu9N1OkQ4znY3LYuEm5zCF";

    #[test]
    fn patterns() {
        for (pattern, text, wanted) in [
            ("h", "h", true),
            ("h", "hh", false),
            ("*.example.org", "a.b.example.org", true),
            ("*.example.org", "example.org", false),
            ("10.0.?.*", "10.0.1.22", true),
            ("*", "", true),
            ("a*b*c", "aXXbYYbZZc", true),
            ("a*b*c", "aXXbYYbZZ", false),
        ] {
            assert_eq!(fits(pattern.as_bytes(), text.as_bytes()), wanted, "{pattern} {text}");
        }
    }

    #[test]
    fn hosts_are_looked_up() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("known_hosts");
        let text = format!(
            "# a comment\nnonsense\n*.good,!bad.good {A}\n[h]:2222 {A}\nOther {B}\n\
             @revoked * {B}\n@cert-authority ca {A}\n"
        );
        std::fs::write(&file, text).unwrap();
        let files = [dir.path().join("none"), file];
        let (a, b): (PublicKey, PublicKey) = (A.parse().unwrap(), B.parse().unwrap());
        let check = |host: &str, key: &PublicKey| {
            let known = KnownHost::find(&files, host).unwrap();
            known
                .check(key, host, "SHA256:x")
                .map_or_else(|e| e.message().to_owned(), |()| "ok".to_owned())
        };
        assert_eq!(check("x.good", &a), "ok");
        assert!(check("bad.good", &a).contains("no host key was found"));
        assert_eq!(check("[H]:2222", &a), "ok");
        assert!(check("h", &a).contains("no host key was found"));
        assert!(check("other", &a).contains("does not match"));
        assert!(check("other", &b).contains("revoked"));
        assert!(check("ca", &a).contains("no host key was found"));
    }

    #[test]
    fn hashed_names() {
        use base64::Engine;
        let engine = base64::engine::general_purpose::STANDARD;
        let mut mac = Hmac::<sha1::Sha1>::new_from_slice(&[5; 20]).unwrap();
        mac.update(b"[h]:2222");
        let hash = engine.encode(mac.finalize().into_bytes());
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("known_hosts");
        std::fs::write(&file, format!("|1|{}|{hash} {A}\n", engine.encode([5; 20]))).unwrap();
        let files = [file];
        assert!(KnownHost::find(&files, "[h]:2222").unwrap().has(&Algorithm::Ed25519));
        assert!(!KnownHost::find(&files, "h").unwrap().has(&Algorithm::Ed25519));
    }
}
