//! An opened qcow: its parts, and where guest bytes are.

use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::header::{self, Geometry};
use super::layout::COMPRESSED;
use crate::format::crypt::legacy::{self, GuestKeyed};
use crate::format::deflate::{self, DecodedCluster};
use crate::format::two_level::{Run, TwoLevel};
use crate::format::{Access, Extent, Mapping, OpenContext, StorageId};
use crate::num::{HostOffset, len_u64, round_up, small};
use crate::storage::Storage;
use crate::{Error, Result};

/// Id of the plaintext of granted places of an encrypted image.
pub(super) const PLAIN: StorageId = StorageId(2);

/// What changes: all behind one lock, which is not held while data are read or written.
#[derive(Debug)]
pub(super) struct State {
    pub geometry: Geometry,
    pub tables: TwoLevel,
    /// Where the next cluster or table goes: the end of the file.
    pub next: u64,
}

/// The cipher of an encrypted image.
#[derive(Debug)]
pub(super) struct Keyed {
    pub places: Arc<GuestKeyed>,
    pub storage: Arc<dyn Storage>,
}

/// An opened image.
#[derive(Debug)]
pub(super) struct QcowImage {
    pub storage: Arc<dyn Storage>,
    pub access: Access,
    /// Private and unfinished: order of writes does not matter.
    pub scratch: bool,
    pub keyed: Option<Keyed>,
    pub state: RwLock<State>,
    pub decoded: DecodedCluster,
    /// One writer of tables at a time.
    pub flushing: Mutex<()>,
}

fn no_key() -> Error {
    Error::invalid("Parameter 'encrypt.key-secret' is required for cipher")
}

/// Opens an image file.
pub(super) fn open(cx: &OpenContext<'_>) -> Result<QcowImage> {
    let (mut format, mut secret) = (None, None);
    for (name, value) in cx.options {
        match name.as_str() {
            "encrypt.format" => format = Some(value.as_str()),
            "encrypt.key-secret" => secret = Some(value.as_str()),
            _ => return Err(crate::format::options::unknown("qcow", name)),
        }
    }
    let geometry = header::geometry(&*cx.storage)?;
    match (geometry.encrypted, format) {
        (_, None) | (true, Some("aes")) => {}
        (false, Some(wanted)) => {
            return Err(Error::invalid(format!(
                "No encryption in image header, but options specified format '{wanted}'"
            )));
        }
        (true, Some(wanted)) => {
            return Err(Error::invalid(format!(
                "Header reported 'aes' encryption format but options specify '{wanted}'"
            )));
        }
    }
    // Tables are not encrypted: a look at them needs no key.
    let keyless = cx.header_only || (cx.for_check && secret.is_none());
    let keyed = if geometry.encrypted && !keyless {
        let passphrase = cx.gate.passphrase(secret)?.ok_or_else(no_key)?;
        let cipher = legacy::cipher(&passphrase)?;
        let places = Arc::new(GuestKeyed::new(Arc::clone(&cx.storage), cipher));
        let storage = Arc::clone(&places) as Arc<dyn Storage>;
        Some(Keyed { places, storage })
    } else {
        None
    };
    let state =
        State { tables: TwoLevel::new(geometry.shape()), next: cx.storage.len()?, geometry };
    Ok(QcowImage {
        storage: Arc::clone(&cx.storage),
        access: cx.access,
        scratch: cx.scratch,
        keyed,
        state: RwLock::new(state),
        decoded: DecodedCluster::default(),
        flushing: Mutex::new(()),
    })
}

/// What kind of place an entry of an L2 table tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cluster {
    /// None.
    Nothing,
    /// Bytes of the file from there on.
    Plain(u64),
    /// A compressed stream.
    Packed,
}

impl Cluster {
    pub fn of(entry: u64) -> Self {
        match entry {
            0 => Cluster::Nothing,
            e if e & COMPRESSED != 0 => Cluster::Packed,
            e => Cluster::Plain(e),
        }
    }
}

impl QcowImage {
    pub(super) fn read_state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write_state(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an entry goes on where `first` began, `i` clusters ago.
    fn same(cluster: u64) -> impl Fn(u64, u64, u64) -> bool + Copy {
        move |first, i, entry| match (Cluster::of(first), Cluster::of(entry)) {
            (Cluster::Plain(a), Cluster::Plain(b)) => a.checked_add(i * cluster) == Some(b),
            (a, b) => a == b,
        }
    }

    /// Where guest bytes are; see [`crate::format::Image::map`].
    pub(super) fn locate(&self, at: u64, len: u64) -> Result<Extent> {
        {
            let state = self.read_state();
            let cluster = state.geometry.cluster();
            let max = (at % cluster + len).div_ceil(cluster);
            let run = state.tables.run(at / cluster, max, Self::same(cluster));
            if let Some(run) = run.filter(|run| !run.unread) {
                return self.extent(&state, (at, len), run);
            }
        }
        let mut state = self.write_state();
        let cluster = state.geometry.cluster();
        let max = (at % cluster + len).div_ceil(cluster);
        let run =
            state.tables.run_reading(&*self.storage, (at / cluster, max), Self::same(cluster))?;
        self.extent(&state, (at, len), run)
    }

    fn extent(&self, state: &State, (at, len): (u64, u64), run: Run) -> Result<Extent> {
        let (g, entry, n) = (&state.geometry, run.first, run.len);
        let inside = at % g.cluster();
        let len = (n * g.cluster() - inside).min(len);
        let mapping = match Cluster::of(entry) {
            Cluster::Nothing => Mapping::Backing,
            Cluster::Packed => Mapping::Encoded { at: None, compressed: true },
            Cluster::Plain(host) => {
                let last = host + (n - 1) * g.cluster();
                // Another process may have made the file longer since it was opened (shared use).
                if last >= state.next && last >= self.storage.len()? {
                    return Err(self.beyond(state, at, host));
                }
                if self.encrypted() {
                    let at = Some((StorageId(0), HostOffset(host + inside)));
                    Mapping::Encoded { at, compressed: false }
                } else {
                    Mapping::Data {
                        storage: StorageId(0),
                        offset: HostOffset(host + inside),
                        in_place: self.access == Access::Write,
                        probe_holes: false,
                    }
                }
            }
        };
        Ok(Extent { len, mapping })
    }

    /// Whether clusters are encrypted.
    pub(super) fn encrypted(&self) -> bool {
        self.keyed.is_some()
    }

    /// Error for an entry that leads out of the file.
    fn beyond(&self, state: &State, at: u64, host: u64) -> Error {
        Error::corrupt(format!(
            "the cluster for guest offset {at:#x} is said to be at {host:#x}, beyond the end of the file"
        ))
        .at_path(self.storage.name())
        .at_offset(state.tables.entry_at(at / state.geometry.cluster()))
        .hint("the file is truncated or damaged; restore it from its source")
    }

    /// See [`crate::format::Image::read_encoded`].
    pub(super) fn read_clusters(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let cluster = self.read_state().geometry.cluster();
        let mut done = 0;
        while done < buf.len() {
            let here = at + len_u64(done);
            let n = (buf.len() - done).min(small(cluster - here % cluster));
            let part = &mut buf[done..done + n];
            let entry = self.write_state().tables.fetch(&*self.storage, here / cluster)?;
            match (Cluster::of(entry), &self.keyed) {
                (Cluster::Packed, _) => {
                    self.decoded.read(cluster, (here, part), |start, to| self.unpack(start, to))?;
                }
                (Cluster::Plain(host), Some(keyed)) => {
                    keyed.places.read_guest(host + here % cluster, here, part)?;
                }
                _ => return Err(Error::errno(libc::EIO).at_offset(here)),
            }
            done += n;
        }
        Ok(())
    }

    /// Decompresses the cluster at guest offset `start` into `to` (a whole cluster).
    fn unpack(&self, start: u64, to: &mut [u8]) -> Result<()> {
        let (entry, (at, len)) = {
            let mut state = self.write_state();
            let index = start / state.geometry.cluster();
            let entry = state.tables.fetch(&*self.storage, index)?;
            (entry, state.geometry.packed(entry))
        };
        let damaged = |what: &str| {
            Error::errno(libc::EIO)
                .context(format!("compressed cluster at {at:#x} (guest offset {start:#x}) {what}"))
                .at_path(self.storage.name())
                .at_offset(at)
        };
        if Cluster::of(entry) != Cluster::Packed || at >= self.storage.len()? {
            return Err(damaged("lies beyond the end of the image file"));
        }
        let mut packed = vec![0u8; small(len)];
        self.storage.read_at(at, &mut packed)?;
        if deflate::inflate(&packed, to) { Ok(()) } else { Err(damaged("is damaged")) }
    }
}

/// Takes room for whole clusters or a table behind `next`.
pub(super) fn take(next: &mut u64, cluster: u64, len: u64) -> u64 {
    let at = round_up(*next, cluster);
    *next = at.saturating_add(len);
    at
}

impl State {
    /// Makes sure that clusters have tables that lead to them.
    pub(super) fn make_tables(
        &mut self,
        storage: &dyn Storage,
        clusters: (u64, u64),
    ) -> Result<()> {
        let (next, cluster) = (&mut self.next, self.geometry.cluster());
        self.tables.make_tables(storage, clusters, |len| take(next, cluster, len))
    }

    /// Takes room for whole clusters.
    pub(super) fn take(&mut self, len: u64) -> Result<u64> {
        let at = take(&mut self.next, self.geometry.cluster(), len);
        if i64::try_from(self.next).is_ok() { Ok(at) } else { Err(Error::errno(libc::EFBIG)) }
    }
}
