//! What the bytes of an image mean.
//!
//! A format *maps*, it does not copy. [`Image::map`] answers where guest bytes are; reading, zero
//! filling, looking into a backing file and copy-on-write are done once, for all formats, in
//! [`crate::graph::Node`].
//!
//! # Writing
//!
//! Writes are prepared, then published:
//!
//! 1. [`Image::prepare_write`] allocates invisibly and grants a place of one host-contiguous run.
//!    The grant covers whole allocation units (clusters, grains, subclusters).
//! 2. The caller stores *all* bytes of the grant: the new data, and around it what the guest saw
//!    there before.
//! 3. [`Image::commit_write`] links the mapping; or [`Image::abort_write`] gives the place back.
//!
//! Until `commit_write` the guest's view is unchanged, whatever happens. The mapping becomes durable
//! at the next [`Image::flush`]; each format's `mod.rs` states the order in which it writes data,
//! reference counts, mappings and header, so that a crash between any two writes costs leaked
//! clusters at worst.
//!
//! Allocation happens in the order of the `prepare` calls and depends on nothing else: a caller that
//! prepares in guest order gets the same file from any number of threads.
//!
//! # Encryption
//!
//! An encrypted image hands out a storage of plaintext ([`crate::storage::CryptStorage`]) under an id of its
//! own and maps guest bytes there: whoever reads and writes through [`Image::storage`] handles plaintext,
//! and no path leads around the cipher. [`Image::storages`] lists the files. Passphrases come through the
//! gates ([`OpenGate::passphrase`], [`NewFiles::passphrase`]), which the caller answers.
//!
//! # Locking
//!
//! All methods take `&self`. Tables sit behind one lock inside the image, which is never held while
//! data are read or written. The caller ([`crate::graph::Node`]'s range locks) makes sure that a
//! mapping is not changed while it is being used.

mod block_table;
pub mod bochs;
pub mod cloop;
mod codec;
pub mod cow;
mod crypt;
mod deflate;
pub mod dmg;
mod findings;
mod header_mark;
pub mod info;
pub mod luks;
pub mod options;
mod packed;
pub mod parallels;
pub mod qcow;
pub mod qcow2;
pub mod qed;
pub mod raw;
#[cfg(test)]
mod testing;
mod two_level;
mod used;
pub(crate) mod uuid;
pub mod vdi;
pub mod vhdx;
pub mod vmdk;
pub mod vpc;

use std::any::Any;
use std::sync::Arc;

use crate::crypto::SecretBytes;
use crate::num::{GuestOffset, HostOffset};
use crate::storage::{Preallocation, Storage, ZeroMode};
use crate::{Error, Result};

pub use info::{CheckReport, SnapshotInfo, SpecificInfo};
pub use options::{CreateOptions, OptionKind, OptionSpec};

/// Index of one of an image's storages: 0 is the image file itself, others are external data files
/// or extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StorageId(pub u32);

/// Where a run of guest bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Stored as they are.
    Data {
        /// In which storage.
        storage: StorageId,
        /// Where the run begins there.
        offset: HostOffset,
        /// Whether writing in place is allowed (not shared with a snapshot).
        in_place: bool,
        /// Whether holes of the storage below should be reported as zeroes (raw images, and images
        /// that were preallocated without writing data).
        probe_holes: bool,
    },
    /// Reads as zeroes because the image says so; may have a place reserved.
    Zero {
        /// The reserved place.
        reserved: Option<(StorageId, HostOffset)>,
    },
    /// Stored compressed or otherwise encoded: [`Image::read_encoded`] gets the bytes.
    Encoded {
        /// Where the encoded bytes begin, if that can be said.
        at: Option<(StorageId, HostOffset)>,
        /// Compressed (and not only encrypted).
        compressed: bool,
    },
    /// Not in this image: the backing file's bytes, or zeroes without one.
    Backing,
}

/// A run of guest bytes with one mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes from the offset asked for; at least 1, never more than was asked for. Neighbouring
    /// extents may have the same mapping: callers that want maximal runs merge.
    pub len: u64,
    /// Where they are.
    pub mapping: Mapping,
}

/// A place for guest bytes, not yet visible. Every byte of it must be stored before the commit.
#[derive(Debug)]
pub struct Grant {
    /// First guest byte covered; at most the offset asked for.
    pub at: GuestOffset,
    /// Guest bytes covered (for an encoded grant: the guest bytes that the encoded run stands for).
    pub len: u64,
    /// Storage to write to.
    pub storage: StorageId,
    /// Where to write there.
    pub offset: HostOffset,
    /// For the format's own use.
    pub token: u64,
    /// For the format's own use.
    pub state: Option<Box<dyn Any + Send>>,
}

/// A file that an image names as the one below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingRef {
    /// The name, as written in the image.
    pub name: String,
    /// The format, if the image says.
    pub format: Option<String>,
}

/// A change of the disk's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resize {
    /// New size in bytes.
    pub size: u64,
    /// How new space is reserved.
    pub how: Preallocation,
    /// The file below reaches into the new area and must not show there.
    pub hide_below: bool,
}

/// What an opened image can do, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granularity {
    /// Unit in which mappings change: writes smaller than it may need copy-on-write, and range
    /// locks are rounded to it. A power of two or 1.
    pub allocation: u64,
    /// Unit in which `write_zeroes` works without writing data; `None`: not at all.
    pub zero: Option<u64>,
    /// Unit in which `discard` works; `None`: not at all.
    pub discard: Option<u64>,
    /// Unit of encoded (compressed) writing; `None`: not at all.
    pub encode: Option<u64>,
    /// Encoded writing only, each unit once, in guest order (streamOptimized).
    pub append_only: bool,
}

/// What may become of the space below zeroed guest bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroSpace {
    /// May be given back.
    Unmap,
    /// Keep what is allocated.
    Keep,
}

impl From<ZeroSpace> for ZeroMode {
    fn from(space: ZeroSpace) -> Self {
        match space {
            ZeroSpace::Unmap => ZeroMode::MayUnmap,
            ZeroSpace::Keep => ZeroMode::KeepAllocated,
        }
    }
}

/// Outcome of encoding one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoded {
    /// The bytes to store are in the output buffer.
    Done,
    /// Not worth it: store the unit as it is.
    Incompressible,
}

/// Turns guest bytes into what the image stores; one per thread.
pub trait Encoder: Send {
    /// Encodes one unit (`Granularity::encode` bytes, padded with zeroes at the end of the disk) that
    /// lies at `at`; replaces the content of `out`.
    fn encode(&mut self, at: GuestOffset, unit: &[u8], out: &mut Vec<u8>) -> Result<Encoded>;
}

/// How hard to compress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Level {
    /// The format's choice.
    #[default]
    Default,
    /// The codec's own scale.
    Exactly(u32),
}

/// What to repair while checking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Repair {
    /// Nothing.
    #[default]
    Nothing,
    /// Give leaked clusters back.
    Leaks,
    /// Everything that can be.
    All,
}

/// The caller's side of a long job: progress, lines to show, cancelling.
pub trait Watcher: Sync {
    /// `done` of `total` units (bytes, mostly).
    fn progress(&self, _done: u64, _total: u64) {}
    /// Another pass over the bytes begins, and progress with it. A word like `verifying`.
    fn phase(&self, _name: &'static str) {}
    /// A line for the user (a finding of a check, for example).
    fn note(&self, _line: &str) {}
    /// True when the job should stop.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unwatched;
impl Watcher for Unwatched {}

/// Error of a job that the caller stopped.
pub fn check_cancelled(watcher: &dyn Watcher) -> Result<()> {
    if watcher.cancelled() {
        return Err(Error::new(crate::ErrorKind::Cancelled, "cancelled"));
    }
    Ok(())
}

/// An opened image.
pub trait Image: Send + Sync + std::fmt::Debug {
    /// The driver's name, as in `-f`.
    fn format_name(&self) -> &'static str;

    /// Size of the guest's disk in bytes.
    fn virtual_size(&self) -> u64;

    /// Units of mapping, zeroing, discarding, encoding.
    fn granularity(&self) -> Granularity;

    /// The storage behind an id that this image handed out.
    fn storage(&self, id: StorageId) -> &Arc<dyn Storage>;

    /// All storages: the image file first.
    fn storages(&self) -> Vec<&Arc<dyn Storage>> {
        vec![self.storage(StorageId(0))]
    }

    /// The storage that holds the guest's disk byte for byte, where that is all there is to this image:
    /// a flush, a discard or a zeroing of it is one of the storage.
    fn plain(&self) -> Option<&Arc<dyn Storage>> {
        None
    }

    /// The file below, if the image names one.
    fn backing(&self) -> Option<BackingRef> {
        None
    }

    /// Refuses a file below that is not the one this image was made on (VMDK's content ids). Called
    /// before bytes of `below` are used; cheap once it said yes.
    fn check_backing(&self, _below: &dyn Image) -> Result<()> {
        Ok(())
    }

    /// Records that `below`, which changed with this image's knowledge (a commit into it), is still the
    /// file that this image is made on.
    fn adopt_backing(&self, _below: &dyn Image) -> Result<()> {
        Ok(())
    }

    /// Where the bytes at `at` are; looks at no more than `len` (> 0) bytes. `at + len` must lie
    /// inside the disk.
    fn map(&self, at: GuestOffset, len: u64) -> Result<Extent>;

    /// Called before [`Image::map`] is used to tell data from zeroes: time to find out whether holes of
    /// the storage should be looked at (`probe_holes`).
    fn prepare_status(&self) -> Result<()> {
        Ok(())
    }

    /// Reads bytes that [`Image::map`] said are encoded. `buf` must lie inside that extent.
    fn read_encoded(&self, at: GuestOffset, _buf: &mut [u8]) -> Result<()> {
        Err(Error::unsupported("image has no encoded clusters").at_offset(at.0))
    }

    /// Announces that a guest range is about to change (bitmaps, dirty marks). Called before the first
    /// byte of any write, zeroing or discard, also of those in place.
    fn note_write(&self, _at: GuestOffset, _len: u64) -> Result<()> {
        Ok(())
    }

    /// Grants a place for `len` bytes at `at`, all of which are not writable in place. May cover less
    /// than `len`, but always `at` itself.
    fn prepare_write(&self, at: GuestOffset, _len: u64) -> Result<Grant> {
        Err(read_only(self.format_name()).at_offset(at.0))
    }

    /// Grants a place for one encoded unit of `encoded_len` bytes.
    fn prepare_encoded(&self, at: GuestOffset, _encoded_len: u64) -> Result<Grant> {
        Err(Error::errno(libc::ENOTSUP).at_offset(at.0))
    }

    /// Links what was stored at the granted place.
    fn commit_write(&self, _grant: Grant) -> Result<()> {
        Err(read_only(self.format_name()))
    }

    /// Gives a granted place back.
    fn abort_write(&self, _grant: Grant) {}

    /// An encoder for this image's units, if it can store encoded ones.
    fn encoder(&self, _level: Level) -> Option<Box<dyn Encoder>> {
        None
    }

    /// Makes a range read as zeroes; `at` and `len` are multiples of `Granularity::zero` (or end
    /// with the disk).
    fn write_zeroes(&self, at: GuestOffset, _len: u64, _space: ZeroSpace) -> Result<()> {
        Err(Error::errno(libc::ENOTSUP).at_offset(at.0))
    }

    /// Gives a range back; `at` and `len` are multiples of `Granularity::discard` (or end with the
    /// disk). With a backing file the range must then read as zeroes, not as the backing file.
    fn discard(&self, _at: GuestOffset, _len: u64) -> Result<()> {
        Ok(())
    }

    /// Announces that ranges will be discarded and [`Image::release_unused`] called then. A format that finds
    /// discarded space only by looking through all of its tables may take discards from now on.
    fn begin_release(&self) {}

    /// Gives the host's space of all that the image's file holds unused back, where a discard alone keeps it
    /// for the next allocation. The image must have been checked: what its tables call unused is lost.
    fn release_unused(&self) -> Result<()> {
        Ok(())
    }

    /// Writes all tables in a safe order and waits until they and all data are on disk.
    fn flush(&self) -> Result<()>;

    /// Flushes and leaves the image as a clean shutdown does (dirty bits, bitmaps, footers). Nothing
    /// may be written afterwards.
    fn close(&self) -> Result<()> {
        self.flush()
    }

    /// Changes the size of the guest's disk. Bytes between the old end and the end of its unit may read
    /// as anything afterwards: [`crate::graph::Node::resize`] clears them.
    fn resize(&self, _request: Resize) -> Result<()> {
        Err(Error::unsupported("Image format driver does not support resize"))
    }

    /// Looks for damage and repairs it if asked. `None`: this format has no check.
    fn check(&self, _repair: Repair, _watcher: &dyn Watcher) -> Option<Result<CheckReport>> {
        None
    }

    /// Drops every mapping, so that the whole disk reads as the backing file.
    fn make_empty(&self) -> Result<()> {
        Err(Error::errno(libc::ENOTSUP))
    }

    /// Names another file below (or none). The guest's view must have been prepared for it.
    fn set_backing(&self, _backing: Option<&BackingRef>) -> Result<()> {
        Err(Error::errno(libc::ENOTSUP))
    }

    /// Changes options of an existing image.
    fn amend(&self, _request: &Amendment<'_>, _watcher: &dyn Watcher) -> Result<()> {
        Err(Error::unsupported(format!(
            "Format driver '{}' does not support option amendment",
            self.format_name()
        )))
    }

    /// What `info` shows beyond size and backing file.
    fn info(&self) -> Result<ImageInfo>;

    /// Internal snapshots, if the format has them.
    fn snapshots(&self) -> Option<&dyn SnapshotStore> {
        None
    }

    /// Persistent dirty bitmaps, if the format has them.
    fn bitmaps(&self) -> Option<&dyn BitmapStore> {
        None
    }

    /// Whether a new image of this kind surely reads as zeroes where nothing was written.
    fn zero_init(&self) -> bool {
        true
    }

    /// Whether zeroes of whole units are a change of metadata, and not bytes that are written.
    fn zeroes_are_quick(&self, _space: ZeroSpace) -> bool {
        false
    }

    /// Whether guest data are encrypted on their way to the storage. Places of such data in a file say
    /// nothing about bytes, and moving them costs processor time.
    fn encrypts(&self) -> bool {
        false
    }
}

/// Finds the passphrase of a secret by its identifier.
pub type SecretLookup<'a> = &'a dyn Fn(&str) -> Result<SecretBytes>;

/// A change of options.
#[derive(Clone, Copy)]
pub struct Amendment<'a> {
    /// The options, checked against the driver's list.
    pub options: &'a CreateOptions,
    /// Also what cannot be undone (`--force`).
    pub force: bool,
    /// For new and old passphrases.
    pub secret: SecretLookup<'a>,
}

/// What `info` shows.
#[derive(Clone, Debug, Default)]
pub struct ImageInfo {
    /// Bytes.
    pub cluster_size: Option<u64>,
    /// Encrypted.
    pub encrypted: bool,
    /// All data are compressed (streamOptimized).
    pub compressed: Option<bool>,
    /// Not cleanly closed; `None` where `info` says nothing about it.
    pub dirty: Option<bool>,
    /// Offset of the VM state area: where it would begin as a guest offset.
    pub vm_state_offset: Option<u64>,
    /// Details of one format.
    pub specific: Option<SpecificInfo>,
}

/// Internal snapshots.
pub trait SnapshotStore {
    /// All, in the order of the table.
    fn list(&self) -> Result<Vec<SnapshotInfo>>;
    /// Takes one.
    fn create(&self, name: &str, at: std::time::SystemTime) -> Result<()>;
    /// Makes the disk what it was; found by id first, then by name, as QEMU does.
    fn apply(&self, id_or_name: &str) -> Result<()>;
    /// Deletes one.
    fn delete(&self, id_or_name: &str) -> Result<()>;
}

/// A persistent dirty bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapInfo {
    /// Name, unique in the image.
    pub name: String,
    /// Bytes of the disk per bit.
    pub granularity: u64,
    /// Was not stored cleanly: its content is useless.
    pub in_use: bool,
    /// Records writes.
    pub auto: bool,
}

/// Persistent dirty bitmaps.
pub trait BitmapStore {
    /// Whether this image can hold any (an old version of the format may not).
    fn can_store(&self) -> bool {
        true
    }
    /// All, in the order of the directory.
    fn list(&self) -> Result<Vec<BitmapInfo>>;
    /// Adds an empty one; `granularity` 0 chooses QEMU's default.
    fn add(&self, name: &str, granularity: u64) -> Result<()>;
    /// Removes one.
    fn remove(&self, name: &str) -> Result<()>;
    /// Clears all bits.
    fn clear(&self, name: &str) -> Result<()>;
    /// Records writes from now on, or stops.
    fn set_enabled(&self, name: &str, enabled: bool) -> Result<()>;
    /// Dirty ranges `(start, len)` in bytes, ascending, not touching.
    fn dirty_ranges(&self, name: &str) -> Result<Vec<(u64, u64)>>;
    /// Marks ranges dirty (merging from another bitmap).
    fn mark(&self, name: &str, ranges: &[(u64, u64)]) -> Result<()>;
}

/// How an image may be used by the one who opens it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Access {
    /// Reading.
    #[default]
    Read,
    /// Reading and writing.
    Write,
}

impl Access {
    /// Refuses a change at `at` where an image of this format is open for reading only.
    pub(crate) fn check_writable(self, format: &str, at: u64) -> Result<()> {
        match self {
            Access::Read => Err(read_only(format).at_offset(at)),
            Access::Write => Ok(()),
        }
    }
}

/// Opens files that an image names; the policy is the implementer's (see [`crate::graph`]).
pub trait OpenGate {
    /// Names of what is in `folder` (relative to the image's folder), sorted and bounded, for formats that
    /// tell their parent by an identifier.
    fn list_folder(&self, _folder: &str) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Opens `reference` (as written in the image; relative to the image's folder) as a flat storage.
    fn open_storage(&self, reference: &str, access: Access) -> Result<Arc<dyn Storage>>;

    /// Whether the user said himself what lies below the image, or that nothing does: the file that the image
    /// names need not be there then.
    fn below_is_given(&self) -> bool {
        false
    }

    /// A further file of the image that the user named himself, by its role (`header`).
    fn given(&self, _role: &str) -> Option<Arc<dyn Storage>> {
        None
    }

    /// The passphrase of the image: that of the secret `id`, or what the user is asked for. `None`: no
    /// secret was named and nobody can be asked.
    fn passphrase(&self, id: Option<&str>) -> Result<Option<SecretBytes>> {
        id.map_or(Ok(None), |id| Err(Error::invalid(format!("No secret with id '{id}'"))))
    }
}

/// A gate that opens nothing.
#[derive(Clone, Copy, Debug)]
pub struct NoGate;

impl OpenGate for NoGate {
    fn open_storage(&self, reference: &str, _access: Access) -> Result<Arc<dyn Storage>> {
        Err(Error::new(
            crate::ErrorKind::Forbidden,
            format!("'{reference}' may not be opened here"),
        ))
    }
}

/// Everything a driver gets to open an image.
pub struct OpenContext<'a> {
    /// The image file.
    pub storage: Arc<dyn Storage>,
    /// For reading or writing.
    pub access: Access,
    /// For files that the image names.
    pub gate: &'a dyn OpenGate,
    /// Internal snapshot to show instead of the present state, by id or name (read only).
    pub snapshot: Option<SnapshotSelector>,
    /// An explicitly given external data file, instead of the one the image names.
    pub data_file: Option<Arc<dyn Storage>>,
    /// The image is a private, unfinished target: order of writes does not matter, and nothing must be
    /// preserved if it fails.
    pub scratch: bool,
    /// For commands that look only at the header (`info`): a missing external data file is not an error.
    pub header_only: bool,
    /// For `check`: open an image that is marked corrupt for writing too, and do not repair by itself.
    pub for_check: bool,
    /// Options of the driver from `-o`-like key=value lists at opening (`lazy-refcounts`, ...).
    pub options: &'a [(String, String)],
}

impl OpenContext<'_> {
    /// Whether the file below that the image names may be missing: nothing of it will be read.
    pub fn parent_may_be_missing(&self) -> bool {
        self.header_only || self.for_check || self.gate.below_is_given()
    }
}

/// Which internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotSelector {
    /// By id, else by name.
    IdOrName(String),
    /// Both or one of them given explicitly.
    Exact {
        /// The id.
        id: Option<String>,
        /// The name.
        name: Option<String>,
    },
}

/// Everything a driver gets to create an image.
pub struct CreateContext<'a> {
    /// Makes (and empties) files; `None` stands for the image itself, a name for a further file beside
    /// it. The names are the final ones; where the bytes really go until they are complete is the
    /// implementer's.
    pub files: &'a dyn NewFiles,
    /// Final file name of the image (no folder), for descriptors.
    pub file_name: &'a str,
    /// Size of the guest's disk in bytes.
    pub size: u64,
    /// Options, checked against the driver's list.
    pub options: &'a CreateOptions,
    /// The file below.
    pub backing: Option<BackingRef>,
    /// What the format wants to know of the file below (VMDK's CID), if it could be opened.
    pub backing_image: Option<&'a dyn Image>,
}

/// Makes files for a new image.
pub trait NewFiles {
    /// The image's own file, empty.
    fn main(&self) -> Result<Arc<dyn Storage>>;
    /// Another file named by the image, empty. `name` is as it will be written in the image.
    fn beside(&self, name: &str) -> Result<Arc<dyn Storage>>;
    /// Opens a file that exists already (an external data file to keep), for writing.
    fn existing(&self, name: &str) -> Result<Arc<dyn Storage>>;
    /// The passphrase for the new image, as [`OpenGate::passphrase`].
    fn passphrase(&self, id: Option<&str>) -> Result<Option<SecretBytes>> {
        id.map_or(Ok(None), |id| Err(Error::invalid(format!("No secret with id '{id}'"))))
    }
}

/// What `measure` answers, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measurement {
    /// For the data as they are.
    pub required: u64,
    /// If all of the disk were written.
    pub fully_allocated: u64,
    /// For persistent bitmaps, if the target can hold them.
    pub bitmaps: Option<u64>,
}

/// Receives runs `(start, len)` in bytes.
pub type RunSink<'a> = &'a mut dyn FnMut(u64, u64) -> Result<()>;

/// What a driver has to know of a source to measure.
pub struct MeasureSource<'a> {
    /// Size of the guest's disk.
    pub virtual_size: u64,
    /// Calls back with each run of bytes that must be stored, ascending.
    pub data_runs: &'a mut dyn FnMut(RunSink<'_>) -> Result<()>,
    /// There is a source, and not only a size.
    pub from_image: bool,
    /// Bitmaps of the source: granularity of each, and name length.
    pub bitmaps: Option<Vec<(u64, usize)>>,
}

/// A format.
pub trait Driver: Sync {
    /// Name as in `-f`.
    fn name(&self) -> &'static str;

    /// How surely `head` (the first 2 KiB or all of a shorter file) is of this format, 0 to 100, as
    /// QEMU scores it. `name` is the file's name, for formats known by it.
    fn probe(&self, head: &[u8], name: &str) -> u32;

    /// Opens an image.
    fn open(&self, cx: OpenContext<'_>) -> Result<Box<dyn Image>>;

    /// Options of `create`, in the order in which `Formatting ...` prints them; empty if the format
    /// cannot be created.
    fn create_options(&self) -> &'static [OptionSpec];

    /// Options of `amend`.
    fn amend_options(&self) -> &'static [OptionSpec] {
        &[]
    }

    /// Whether images can be created.
    fn can_create(&self) -> bool {
        true
    }

    /// Whether a wish for compressed data is taken although only some images of the format can store
    /// any; the others store plainly then.
    fn may_compress(&self) -> bool {
        false
    }

    /// Whether images can have a file below.
    fn supports_backing(&self) -> bool {
        false
    }

    /// Fills in what `create` will choose for options not given, for the line that `create` prints,
    /// and refuses bad combinations.
    fn resolve_options(&self, _options: &mut CreateOptions, _size: u64) -> Result<()> {
        Ok(())
    }

    /// Creates an empty image.
    fn create(&self, _cx: &CreateContext<'_>) -> Result<()> {
        Err(Error::unsupported(format!(
            "Format driver '{}' does not support image creation",
            self.name()
        )))
    }

    /// How large an image of this format would be.
    fn measure(&self, _options: &CreateOptions, _source: MeasureSource<'_>) -> Result<Measurement> {
        Err(Error::unsupported(format!(
            "Block driver '{}' does not support size measurement",
            self.name()
        )))
    }
}

/// All drivers.
pub fn drivers() -> &'static [&'static dyn Driver] {
    &[
        &raw::RawDriver,
        &qcow2::Qcow2Driver,
        &qcow::QcowDriver,
        &qed::QedDriver,
        &parallels::ParallelsDriver,
        &vmdk::VmdkDriver,
        &vdi::VdiDriver,
        &vpc::VpcDriver,
        &vhdx::VhdxDriver,
        &bochs::BochsDriver,
        &cloop::CloopDriver,
        &cow::CowDriver,
        &luks::LuksDriver,
        &dmg::DmgDriver,
    ]
}

/// The driver of that name.
pub fn driver(name: &str) -> Option<&'static dyn Driver> {
    drivers().iter().copied().find(|d| d.name() == name)
}

/// How many bytes [`probe`] wants to see.
pub const PROBE_LEN: usize = 2048;

/// The driver that fits `head` best; `raw` when no other claims it.
pub fn probe(head: &[u8], name: &str) -> &'static dyn Driver {
    let mut best: (&'static dyn Driver, u32) = (&raw::RawDriver, 1);
    for &candidate in drivers() {
        let score = candidate.probe(head, name);
        if score > best.1 {
            best = (candidate, score);
        }
    }
    best.0
}

/// Error for opening an image of a format that is only read for writing, with QEMU's words.
pub fn never_written() -> Error {
    Error::new(crate::ErrorKind::ReadOnly, "Image is read-only")
        .hint("convert it to a format that can be written: rimg convert -O qcow2 SOURCE TARGET")
}

/// Error for writing to an image that cannot be written.
pub fn read_only(format: &str) -> Error {
    Error::new(crate::ErrorKind::ReadOnly, format!("{format} image is read-only"))
}
