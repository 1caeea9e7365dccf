//! PBKDF2 (RFC 8018, section 5.2), and how many rounds take how long.
//!
//! Round counts come from image headers: a hostile one may ask for hours. [`pbkdf2`] finds out after a
//! moment how long it would take and refuses what is beyond any sensible setting.

use std::time::{Duration, Instant};

use hmac::{EagerHash, Hmac, KeyInit, Mac};

use super::{Hash, SecretBytes};
use crate::{Error, ErrorKind, Result};

/// Longest derivation that is carried out. cryptsetup and QEMU aim at two seconds on the machine that
/// made the image.
const MOST: Duration = Duration::from_secs(300);
/// Rounds between two looks at the clock.
const STEP: u32 = 1 << 18;

/// Derives `len` bytes from a passphrase in `rounds` rounds.
///
/// # Errors
/// No rounds at all, or so many that it would take longer than five minutes here.
pub fn pbkdf2(
    hash: Hash,
    passphrase: &[u8],
    salt: &[u8],
    rounds: u32,
    len: usize,
) -> Result<SecretBytes> {
    if rounds == 0 {
        return Err(Error::corrupt("PBKDF2 with zero iterations"));
    }
    let mut out = SecretBytes::new(vec![0; len]);
    match hash {
        Hash::Sha1 => derive::<sha1::Sha1>(passphrase, salt, rounds, &mut out)?,
        Hash::Sha224 => derive::<sha2::Sha224>(passphrase, salt, rounds, &mut out)?,
        Hash::Sha256 => derive::<sha2::Sha256>(passphrase, salt, rounds, &mut out)?,
        Hash::Sha384 => derive::<sha2::Sha384>(passphrase, salt, rounds, &mut out)?,
        Hash::Sha512 => derive::<sha2::Sha512>(passphrase, salt, rounds, &mut out)?,
        Hash::Ripemd160 => derive::<ripemd::Ripemd160>(passphrase, salt, rounds, &mut out)?,
    }
    Ok(out)
}

fn derive<D: EagerHash>(passphrase: &[u8], salt: &[u8], rounds: u32, out: &mut [u8]) -> Result<()>
where
    Hmac<D>: Mac + KeyInit + Clone,
{
    let keyed = <Hmac<D> as KeyInit>::new_from_slice(passphrase)
        .map_err(|_| Error::invalid("the passphrase cannot be used as a key"))?;
    let size = <Hmac<D> as hmac::digest::OutputSizeUser>::output_size();
    let blocks = u32::try_from(out.len().div_ceil(size)).unwrap_or(u32::MAX);
    let begun = Instant::now();
    for (number, part) in (1u32..).zip(out.chunks_mut(size)) {
        let mut mac = keyed.clone();
        mac.update(salt);
        mac.update(&number.to_be_bytes());
        let mut round = mac.finalize().into_bytes();
        part.copy_from_slice(&round[..part.len()]);
        for done in 1..rounds {
            let mut mac = keyed.clone();
            mac.update(&round);
            round = mac.finalize().into_bytes();
            for (to, from) in part.iter_mut().zip(&round) {
                *to ^= from;
            }
            if done.is_multiple_of(STEP) {
                check_time(begun.elapsed(), done, u64::from(rounds) * u64::from(blocks), number)?;
            }
        }
        zeroize::Zeroize::zeroize(round.as_mut_slice());
    }
    Ok(())
}

/// Refuses what would take too long at the speed seen so far.
fn check_time(taken: Duration, done: u32, all: u64, number: u32) -> Result<()> {
    let rounds = all / u64::from(number.max(1)).max(1);
    let expected = taken.as_secs_f64() / f64::from(done) * exact(rounds.min(all));
    if number == 1 && expected > MOST.as_secs_f64() {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!(
                "{all} rounds of PBKDF2 would take about {:.0} seconds here, more than {} are not \
                 spent on one passphrase",
                expected,
                MOST.as_secs()
            ),
        )
        .hint("the header may be damaged; or open the image on a faster machine and set the key again"));
    }
    Ok(())
}

/// For estimates: large counts need not be exact.
fn exact(n: u64) -> f64 {
    f64::from(u32::try_from(n >> 16).unwrap_or(u32::MAX)) * 65536.0
}

/// How many rounds give `len` bytes in about a second of this thread's processor time.
///
/// # Errors
/// As [`pbkdf2`].
pub fn rounds_per_second(hash: Hash, len: usize) -> Result<u64> {
    let mut rounds = 1u32 << 14;
    loop {
        let begun = thread_time();
        pbkdf2(hash, b"password", b"saltsaltsaltsaltsaltsaltsaltsalt", rounds, len)?;
        let taken = thread_time().saturating_sub(begun).as_micros();
        // Long enough for the clock.
        if taken >= 20_000 || rounds >= 1 << 28 {
            let taken = u64::try_from(taken).unwrap_or(u64::MAX).max(1);
            return Ok(u64::from(rounds) * 1_000_000 / taken);
        }
        rounds *= 2;
    }
}

/// Processor time of this thread: what others do meanwhile does not count.
fn thread_time() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map(Duration::from)
        .unwrap_or_default()
}
