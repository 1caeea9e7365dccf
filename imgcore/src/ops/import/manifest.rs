//! The manifest of an OVF: a hash of every file (DSP0243, 6.3): `SHA256(name)= digits`.

use std::io::Read;

use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

use super::super::Job;
use super::bundle::Bundle;
use crate::format::check_cancelled;
use crate::graph::gate::Policy;
use crate::num::len_u64;
use crate::{Error, Result};

/// Bytes hashed at a time.
const PIECE: usize = 1 << 20;

/// One line.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    kind: Kind,
    name: String,
    digits: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Sha1,
    Sha256,
    Sha512,
}

fn parse(text: &str) -> Result<Vec<Line>> {
    let lines = text.lines().map(str::trim).enumerate().filter(|(_, l)| !l.is_empty());
    lines.map(|(n, line)| read(line).ok_or_else(|| bad(n))).collect()
}

fn bad(index: usize) -> Error {
    Error::invalid(format!("line {} of the manifest does not read", index + 1))
        .hint("--no-checksums imports without it")
}

fn read(line: &str) -> Option<Line> {
    let (kind, rest) = line.split_once('(')?;
    let (name, digits) = rest.rsplit_once(')')?;
    let digits = digits.trim().strip_prefix('=')?.trim().to_ascii_lowercase();
    let (kind, len) = match kind.trim().to_ascii_uppercase().as_str() {
        "SHA1" => (Kind::Sha1, 40),
        "SHA256" => (Kind::Sha256, 64),
        "SHA512" => (Kind::Sha512, 128),
        _ => return None,
    };
    let whole = digits.len() == len && digits.bytes().all(|b| b.is_ascii_hexdigit());
    whole.then(|| Line { kind, name: name.to_owned(), digits })
}

/// Compares every file of a manifest with its hash. How many there were.
///
/// # Errors
/// When a line does not read, a file is missing, or a hash is another.
pub(super) fn check(text: &str, bundle: &Bundle, policy: &Policy, job: &Job<'_>) -> Result<usize> {
    let lines = parse(text)?;
    let sizes: Vec<u64> = lines
        .iter()
        .map(|line| {
            let place = bundle.find(&line.name, policy)?;
            Ok(match place.window {
                Some((_, len)) => len,
                None => std::fs::metadata(&place.path).map_or(0, |m| m.len()),
            })
        })
        .collect::<Result<_>>()?;
    let total: u64 = sizes.iter().sum();
    let mut done = 0;
    job.watcher.phase("checking");
    for line in &lines {
        let mut file = bundle.find(&line.name, policy)?.open()?;
        let found = match line.kind {
            Kind::Sha1 => hash::<Sha1>(&mut file, &mut done, total, job)?,
            Kind::Sha256 => hash::<Sha256>(&mut file, &mut done, total, job)?,
            Kind::Sha512 => hash::<Sha512>(&mut file, &mut done, total, job)?,
        };
        if found != line.digits {
            return Err(Error::corrupt(format!(
                "'{}' is not what the manifest says: its hash is {found}, not {}",
                line.name, line.digits
            ))
            .hint("the file is damaged or was changed; --no-checksums imports it nevertheless"));
        }
    }
    Ok(lines.len())
}

fn hash<D: Digest>(
    file: &mut impl Read,
    done: &mut u64,
    total: u64,
    job: &Job<'_>,
) -> Result<String> {
    let mut state = D::new();
    let mut buf = vec![0; PIECE];
    loop {
        check_cancelled(job.watcher)?;
        let len = match file.read(&mut buf) {
            Ok(0) => break,
            Ok(len) => len,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::io(&e)),
        };
        state.update(&buf[..len]);
        *done += len_u64(len);
        job.watcher.progress((*done).min(total), total);
    }
    Ok(state.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lines() {
        let ones = "1".repeat(40);
        let line = read(&format!("SHA1(a (b).vmdk)= {ones}")).unwrap();
        assert_eq!((line.kind, line.name.as_str()), (Kind::Sha1, "a (b).vmdk"));
        assert!(read(&format!("SHA256 (a) = {}", "A".repeat(64))).is_some());
        for bad in ["", "SHA1(a)= 12", "MD5(a)= 12", "SHA1 a", &format!("SHA1(a) {ones}")] {
            assert!(read(bad).is_none(), "{bad}");
        }
        assert!(parse("\n\nx").unwrap_err().report().contains("line 3"));
    }
}
