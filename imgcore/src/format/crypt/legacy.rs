//! The legacy AES encryption of qcow and qcow2: AES-128 in CBC mode under the passphrase itself, sectors
//! numbered by their place on the guest's disk.
//!
//! What a cluster holds depends on where the guest sees it, so it is read as an encoded cluster, and writes
//! go to places that were granted for guest bytes: [`GuestKeyed`] knows for each of them which. Nobody
//! should use it (no protection of the passphrase, the same data look the same).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::crypto::{Cipher, IvKind, Mode, SectorCipher};
use crate::num::{len_u64, round_up, small};
use crate::storage::{HostExtent, HostKind, Limits, Preallocation, Storage, ZeroMode};
use crate::{Error, Result};

/// The legacy key is the passphrase, cut or filled up to 16 bytes.
pub fn cipher(passphrase: &[u8]) -> Result<Arc<SectorCipher>> {
    let mut key = zeroize::Zeroizing::new([0u8; 16]);
    let len = passphrase.len().min(key.len());
    key[..len].copy_from_slice(&passphrase[..len]);
    SectorCipher::new(Cipher::Aes128, Mode::Cbc, IvKind::Plain64, &key[..], 512).map(Arc::new)
}

/// A granted place: where it begins, how long it is, and which guest bytes it is for.
#[derive(Clone, Copy, Debug)]
struct Place {
    len: u64,
    guest: u64,
}

/// Legacy AES: writes to granted places, encrypted by the guest offset they were granted for.
#[derive(Debug)]
pub struct GuestKeyed {
    inner: Arc<dyn Storage>,
    cipher: Arc<SectorCipher>,
    /// By host offset.
    places: Mutex<BTreeMap<u64, Place>>,
}

impl GuestKeyed {
    /// Over the file that holds the ciphertext.
    pub fn new(inner: Arc<dyn Storage>, cipher: Arc<SectorCipher>) -> Self {
        GuestKeyed { inner, cipher, places: Mutex::default() }
    }

    /// Reads guest bytes of one cluster; those of guest offset `at` lie at `host` of the file.
    pub fn read_guest(&self, host: u64, at: u64, buf: &mut [u8]) -> Result<()> {
        let skip = at % 512;
        let end = round_up(skip + len_u64(buf.len()), 512);
        let mut whole = zeroize::Zeroizing::new(vec![0u8; small(end)]);
        self.inner.read_at(host - skip, &mut whole)?;
        self.cipher.decrypt(at / 512, &mut whole);
        let skip = small(skip);
        buf.copy_from_slice(&whole[skip..skip + buf.len()]);
        Ok(())
    }

    fn places(&self) -> MutexGuard<'_, BTreeMap<u64, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place was granted.
    pub fn granted(&self, host: u64, len: u64, guest: u64) {
        self.places().insert(host, Place { len, guest });
    }

    /// It was linked or given back.
    pub fn done(&self, host: u64) {
        self.places().remove(&host);
    }

    /// The guest offset of a range inside one granted place.
    fn guest_of(&self, host: u64, len: u64) -> Result<u64> {
        let places = self.places();
        let found = places.range(..=host).next_back();
        found
            .filter(|(start, place)| host - **start + len <= place.len)
            .map(|(start, place)| place.guest + (host - start))
            .filter(|guest| (guest | host | len).is_multiple_of(512))
            .ok_or_else(|| {
                Error::errno(libc::EIO)
                    .context("encrypted data may only be written to places granted for them")
                    .at_offset(host)
            })
    }
}

impl Storage for GuestKeyed {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn len(&self) -> Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let guest = self.guest_of(offset, len_u64(buf.len()))?;
        self.inner.read_at(offset, buf)?;
        self.cipher.decrypt(guest / 512, buf);
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let guest = self.guest_of(offset, len_u64(buf.len()))?;
        let mut bytes = buf.to_vec();
        self.cipher.encrypt(guest / 512, &mut bytes);
        self.inner.write_at(offset, &bytes)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _mode: ZeroMode) -> Result<()> {
        let zeroes = vec![0u8; 64 << 10];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(len_u64(zeroes.len()));
            self.write_at(offset + done, &zeroes[..small(n)])?;
            done += n;
        }
        Ok(())
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }

    fn set_len(&self, _len: u64, _how: Preallocation) -> Result<()> {
        Err(Error::errno(libc::ENOTSUP))
    }

    fn status(&self, _offset: u64, len: u64) -> Result<HostExtent> {
        Ok(HostExtent { kind: HostKind::Data, len })
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn read_only(&self) -> bool {
        self.inner.read_only()
    }

    fn zero_init(&self) -> bool {
        false
    }
}
