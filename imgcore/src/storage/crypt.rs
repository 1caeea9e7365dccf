//! A storage whose bytes are encrypted in another one: plaintext above, ciphertext below.
//!
//! Whoever holds a [`CryptStorage`] reads and writes plaintext and cannot get at the ciphertext by
//! mistake: it is no file ([`Storage::as_file`]) and no window ([`Storage::whole`]), it has no holes (a
//! hole below decrypts to noise), and nothing can be copied into it around the cipher.
//!
//! Sectors are encrypted by their number, which follows from their offset. A write of a part of a sector
//! reads, decrypts and rewrites it; meanwhile no other write is under way.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::{AlignedBuf, HostExtent, HostKind, Limits, Preallocation, Storage, ZeroMode};
use crate::crypto::SectorCipher;
use crate::num::{len_u64, round_down, round_up, small};
use crate::{Error, Result};

/// Bytes that are read or written at a time: they stay in the second-level cache between the copy and
/// the cipher.
const PIECE: usize = 128 << 10;

/// Plaintext of what another storage holds encrypted.
#[derive(Debug)]
pub struct CryptStorage {
    inner: Arc<dyn Storage>,
    cipher: Arc<SectorCipher>,
    /// Where in `inner` the first byte is.
    start: u64,
    /// Number of the first sector, in units of 512 bytes.
    first: u64,
    /// Shared by writers of whole sectors, alone by those of parts.
    writers: RwLock<()>,
    /// Held while handing ciphertext to a file: the kernel lets one writer at a time into it anyway, and
    /// waiting here costs nothing while waiting there is spinning.
    handing: Option<Mutex<()>>,
}

impl CryptStorage {
    /// What lies in `inner` from `start` on; its first sector has the number `first` (in units of 512
    /// bytes).
    pub fn new(inner: Arc<dyn Storage>, cipher: Arc<SectorCipher>, start: u64, first: u64) -> Self {
        let buffered = inner.as_file().is_some()
            && inner.limits().request_alignment == 1
            && !inner.limits().block_device;
        CryptStorage {
            inner,
            cipher,
            start,
            first,
            writers: RwLock::new(()),
            handing: buffered.then(Mutex::default),
        }
    }

    fn sector(&self) -> u64 {
        len_u64(self.cipher.sector())
    }

    fn number(&self, offset: u64) -> u64 {
        self.first.wrapping_add(offset / 512)
    }

    fn place(&self, offset: u64) -> Result<u64> {
        self.start.checked_add(offset).ok_or_else(|| Error::errno(libc::EFBIG))
    }

    /// Reads whole sectors.
    fn read_sectors(&self, mut offset: u64, buf: &mut [u8]) -> Result<()> {
        for piece in buf.chunks_mut(PIECE) {
            self.inner.read_at(self.place(offset)?, piece)?;
            self.cipher.decrypt(self.number(offset), piece);
            offset += len_u64(piece.len());
        }
        Ok(())
    }

    /// Writes whole sectors.
    fn write_sectors(&self, mut offset: u64, buf: &[u8]) -> Result<()> {
        thread_local! {
            static CIPHERTEXT: RefCell<AlignedBuf> = RefCell::new(AlignedBuf::new(PIECE));
        }
        CIPHERTEXT.with(|bounce| {
            let mut bounce = bounce.borrow_mut();
            for piece in buf.chunks(PIECE) {
                let bounce = &mut bounce.bytes()[..piece.len()];
                bounce.copy_from_slice(piece);
                self.cipher.encrypt(self.number(offset), bounce);
                let _turn =
                    self.handing.as_ref().map(|m| m.lock().unwrap_or_else(PoisonError::into_inner));
                self.inner.write_at(self.place(offset)?, bounce)?;
                offset += len_u64(piece.len());
            }
            Ok(())
        })
    }

    fn aligned(&self, offset: u64, len: usize) -> bool {
        (offset | len_u64(len)).is_multiple_of(self.sector())
    }
}

impl Storage for CryptStorage {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn len(&self) -> Result<u64> {
        Ok(self.inner.len()?.saturating_sub(self.start))
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        if self.aligned(offset, buf.len()) {
            return self.read_sectors(offset, buf);
        }
        let from = round_down(offset, self.sector());
        let to = round_up(offset + len_u64(buf.len()), self.sector());
        let mut whole = zeroize::Zeroizing::new(vec![0u8; small(to - from)]);
        self.read_sectors(from, &mut whole)?;
        let skip = small(offset - from);
        buf.copy_from_slice(&whole[skip..skip + buf.len()]);
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        if self.aligned(offset, buf.len()) {
            let _shared = self.writers.read().unwrap_or_else(PoisonError::into_inner);
            return self.write_sectors(offset, buf);
        }
        let _alone = self.writers.write().unwrap_or_else(PoisonError::into_inner);
        let sector = self.sector();
        let from = round_down(offset, sector);
        let to = round_up(offset + len_u64(buf.len()), sector);
        let mut whole = zeroize::Zeroizing::new(vec![0u8; small(to - from)]);
        let one = small(sector);
        let last = whole.len() - one;
        self.read_sectors(from, &mut whole[..one])?;
        if last > 0 {
            self.read_sectors(to - sector, &mut whole[last..])?;
        }
        let skip = small(offset - from);
        whole[skip..skip + buf.len()].copy_from_slice(buf);
        self.write_sectors(from, &whole)
    }

    /// Zeroes are bytes like others: they are encrypted and written.
    fn write_zeroes(&self, offset: u64, len: u64, _mode: ZeroMode) -> Result<()> {
        let zeroes = vec![0u8; small(len.min(len_u64(PIECE)))];
        let mut done = 0;
        while done < len {
            // Up to a multiple of the sector, so that no sector is written in two parts.
            let at = offset + done;
            let n = (round_down(at, 4096) + len_u64(PIECE) - at).min(len - done);
            let n = small(n).min(zeroes.len());
            self.write_at(at, &zeroes[..n])?;
            done += len_u64(n);
        }
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let (from, to) = (round_up(offset, self.sector()), offset + len);
        let to = round_down(to, self.sector());
        if from >= to { Ok(()) } else { self.inner.discard(self.place(from)?, to - from) }
    }

    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }

    fn expect_write(&self, offset: u64, len: u64) {
        if let Ok(at) = self.place(offset) {
            self.inner.expect_write(at, len);
        }
    }

    fn begin_writeback(&self) {
        self.inner.begin_writeback();
    }

    fn set_len(&self, len: u64, how: Preallocation) -> Result<()> {
        self.inner.set_len(self.place(len)?, how)
    }

    fn status(&self, _offset: u64, len: u64) -> Result<HostExtent> {
        Ok(HostExtent { kind: HostKind::Data, len })
    }

    fn allocated(&self) -> Result<Option<u64>> {
        self.inner.allocated()
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

    fn set_sharing(&self, write: bool) -> Result<()> {
        self.inner.set_sharing(write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{Cipher, IvKind, Mode};
    use crate::storage::MemoryStorage;

    #[test]
    fn parts_of_sectors() {
        let below = Arc::new(MemoryStorage::new("m", vec![0; 65536]));
        let cipher =
            SectorCipher::new(Cipher::Aes128, Mode::Xts, IvKind::Plain64, &[7; 32], 512).unwrap();
        let storage =
            CryptStorage::new(Arc::clone(&below) as Arc<dyn Storage>, Arc::new(cipher), 1024, 0);
        storage.write_zeroes(0, 64512, ZeroMode::MayUnmap).unwrap();
        let mut model = vec![0u8; 64512];
        let mut n = 1u64;
        for i in 0..200u8 {
            n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = small(n >> 33) % 60000;
            let len = 1 + small(n >> 20) % 3000;
            model[at..at + len].fill(i);
            storage.write_at(len_u64(at), &vec![i; len]).unwrap();
        }
        let mut all = vec![0; model.len()];
        storage.read_at(0, &mut all).unwrap();
        assert!(all == model);
        let mut part = vec![0; 1000];
        storage.read_at(700, &mut part).unwrap();
        assert_eq!(part, model[700..1700]);
        let raw = below.to_vec();
        assert!(raw[..1024].iter().all(|b| *b == 0), "nothing before the start");
        assert_ne!(raw[1024..], model[..]);
        assert!(storage.as_file().is_none() && storage.whole().is_none());
    }
}
