//! The functions of librados and librbd that are used (rados/librados.h, rbd/librbd.h), found at run time.
//!
//! All unsafe code of the module is here. Handles are opaque pointers that only the library looks into; both
//! libraries promise that their handles may be used by any number of threads.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::{Arc, OnceLock};

use crate::{Error, ErrorKind, Result};

type Handle = *mut c_void;
type Visit = unsafe extern "C" fn(u64, usize, c_int, *mut c_void) -> c_int;

/// Declares a table of functions and how it is filled from a library by their names.
macro_rules! functions {
    ($table:ident { $($name:ident: fn($($arg:ty),*) -> $back:ty;)* }) => {
        struct $table {
            $($name: unsafe extern "C" fn($($arg),*) -> $back,)*
        }

        impl $table {
            fn load(library: &Library) -> std::result::Result<Self, String> {
                Ok($table {
                    $($name: {
                        let found = library.find(stringify!($name))?;
                        // SAFETY: the symbol is the function of that name, whose C declaration has these arguments and
                        // this result in every version of the library with this soname.
                        unsafe {
                            std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($arg),*) -> $back>(found)
                        }
                    },)*
                })
            }
        }
    };
}

functions!(Rados {
    rados_create: fn(*mut Handle, *const c_char) -> c_int;
    rados_conf_read_file: fn(Handle, *const c_char) -> c_int;
    rados_conf_set: fn(Handle, *const c_char, *const c_char) -> c_int;
    rados_connect: fn(Handle) -> c_int;
    rados_shutdown: fn(Handle) -> ();
    rados_ioctx_create: fn(Handle, *const c_char, *mut Handle) -> c_int;
    rados_ioctx_set_namespace: fn(Handle, *const c_char) -> ();
    rados_ioctx_destroy: fn(Handle) -> ();
});

functions!(Rbd {
    rbd_open: fn(Handle, *const c_char, *mut Handle, *const c_char) -> c_int;
    rbd_open_read_only: fn(Handle, *const c_char, *mut Handle, *const c_char) -> c_int;
    rbd_close: fn(Handle) -> c_int;
    rbd_create: fn(Handle, *const c_char, u64, *mut c_int) -> c_int;
    rbd_rename: fn(Handle, *const c_char, *const c_char) -> c_int;
    rbd_remove: fn(Handle, *const c_char) -> c_int;
    rbd_get_size: fn(Handle, *mut u64) -> c_int;
    rbd_stat: fn(Handle, *mut Stat, usize) -> c_int;
    rbd_get_features: fn(Handle, *mut u64) -> c_int;
    rbd_get_flags: fn(Handle, *mut u64) -> c_int;
    rbd_resize: fn(Handle, u64) -> c_int;
    rbd_read: fn(Handle, u64, usize, *mut c_char) -> isize;
    rbd_write: fn(Handle, u64, usize, *const c_char) -> isize;
    rbd_discard: fn(Handle, u64, u64) -> c_int;
    rbd_write_zeroes: fn(Handle, u64, usize, c_int, c_int) -> isize;
    rbd_flush: fn(Handle) -> c_int;
    rbd_diff_iterate2: fn(Handle, *const c_char, u64, u64, u8, u8, Visit, *mut c_void) -> c_int;
});

/// `rbd_image_info_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Stat {
    size: u64,
    object_size: u64,
    objects: u64,
    order: c_int,
    prefix: [c_char; 24],
    parent_pool: i64,
    parent_name: [c_char; 96],
}

/// A library that was loaded. It is never unloaded: its threads may outlive every handle.
struct Library(*mut c_void);

impl Library {
    fn open(name: &CStr) -> std::result::Result<Self, String> {
        // SAFETY: the name ends with a NUL. Loading runs the library's initialisers: it is the system's own library, found
        // where the system keeps its libraries.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() { Err(last_error()) } else { Ok(Library(handle)) }
    }

    fn find(&self, name: &str) -> std::result::Result<*mut c_void, String> {
        let name = CString::new(name).map_err(|e| e.to_string())?;
        // SAFETY: the handle comes from dlopen and is never closed; the name ends with a NUL.
        let found = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        if found.is_null() { Err(last_error()) } else { Ok(found) }
    }
}

fn last_error() -> String {
    // SAFETY: dlerror gives null or a string that lives until this thread's next call of the dl functions.
    unsafe {
        let text = libc::dlerror();
        if text.is_null() {
            return "it cannot be loaded".to_owned();
        }
        CStr::from_ptr(text).to_string_lossy().into_owned()
    }
}

struct Functions {
    rados: Rados,
    rbd: Rbd,
}

fn functions() -> Result<&'static Functions> {
    static LOADED: OnceLock<std::result::Result<Functions, String>> = OnceLock::new();
    let loaded = LOADED.get_or_init(|| {
        let rados = Rados::load(&Library::open(c"librados.so.2")?)?;
        let rbd = Rbd::load(&Library::open(c"librbd.so.1")?)?;
        Ok(Functions { rados, rbd })
    });
    loaded.as_ref().map_err(|why| {
        Error::unsupported(format!("Ceph's library cannot be used: {why}")).hint(
            "install it: apt-get install librbd1 (Debian), librbd1 (Fedora), ceph-libs (Arch)",
        )
    })
}

fn text(value: &str) -> Result<CString> {
    CString::new(value).map_err(|_| Error::invalid("a name of rbd holds a NUL"))
}

/// What the library gives back below zero is an errno.
fn failed(code: i64) -> Error {
    let errno = i32::try_from(code.unsigned_abs()).unwrap_or(libc::EIO);
    // The library has codes of its own beyond those of the system.
    if errno > 133 {
        return Error::new(ErrorKind::Io(libc::EIO), format!("Ceph's error {errno}"));
    }
    Error::errno(errno)
}

fn check(code: c_int) -> Result<()> {
    if code < 0 { Err(failed(code.into())) } else { Ok(()) }
}

fn count(code: isize) -> Result<usize> {
    usize::try_from(code).map_err(|_| failed(i64::try_from(code).unwrap_or(-5)))
}

/// A connection to a cluster, before or after connecting.
pub(super) struct Cluster {
    functions: &'static Functions,
    handle: Handle,
}

// SAFETY: librados: "a rados_t may be used by several threads"; the handle is only passed to the library.
unsafe impl Send for Cluster {}
// SAFETY: as above.
unsafe impl Sync for Cluster {}

impl Cluster {
    /// Not connected yet.
    pub fn new(user: Option<&str>) -> Result<Self> {
        let functions = functions()?;
        let user = user.map(text).transpose()?;
        let name = user.as_ref().map_or(std::ptr::null(), |user| user.as_ptr());
        let mut handle = std::ptr::null_mut();
        // SAFETY: the place for the handle is ours; the name is null or ends with a NUL and outlives the call.
        check(unsafe { (functions.rados.rados_create)(&raw mut handle, name) })?;
        Ok(Cluster { functions, handle })
    }

    /// Reads a configuration file; `None`: those of the default places.
    pub fn read_conf(&self, path: Option<&str>) -> Result<()> {
        let path = path.map(text).transpose()?;
        let name = path.as_ref().map_or(std::ptr::null(), |path| path.as_ptr());
        // SAFETY: the handle is one of rados_create; the path is null or ends with a NUL and outlives the call.
        check(unsafe { (self.functions.rados.rados_conf_read_file)(self.handle, name) })
    }

    /// Sets an option of the configuration.
    pub fn set(&self, key: &str, value: &str) -> Result<()> {
        let (key, value) = (text(key)?, text(value)?);
        // SAFETY: the handle is one of rados_create; both strings end with a NUL and outlive the call.
        check(unsafe {
            (self.functions.rados.rados_conf_set)(self.handle, key.as_ptr(), value.as_ptr())
        })
    }

    /// Connects.
    pub fn connect(&self) -> Result<()> {
        // SAFETY: the handle is one of rados_create.
        check(unsafe { (self.functions.rados.rados_connect)(self.handle) })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // SAFETY: the handle is one of rados_create, and nobody uses it after this: pools hold the cluster.
        unsafe { (self.functions.rados.rados_shutdown)(self.handle) }
    }
}

/// A pool of a cluster.
pub(super) struct Pool {
    cluster: Arc<Cluster>,
    handle: Handle,
}

// SAFETY: librados locks what its handles share; the handle is only passed to the library.
unsafe impl Send for Pool {}
// SAFETY: as above; nothing changes the handle's settings after `open`.
unsafe impl Sync for Pool {}

impl Pool {
    /// Opens a pool, or a namespace of it.
    pub fn open(cluster: &Arc<Cluster>, name: &str, namespace: Option<&str>) -> Result<Self> {
        let (name, namespace) = (text(name)?, namespace.map(text).transpose()?);
        let rados = &cluster.functions.rados;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the cluster is connected; the name ends with a NUL; the place for the handle is ours.
        check(unsafe {
            (rados.rados_ioctx_create)(cluster.handle, name.as_ptr(), &raw mut handle)
        })?;
        let pool = Pool { cluster: Arc::clone(cluster), handle };
        if let Some(namespace) = namespace {
            // SAFETY: the handle is the one just made; the name ends with a NUL and outlives the call, which copies it.
            unsafe { (rados.rados_ioctx_set_namespace)(handle, namespace.as_ptr()) };
        }
        Ok(pool)
    }
}

impl Pool {
    /// Makes an empty image, with what the configuration says of new ones.
    pub fn create(&self, name: &str) -> Result<()> {
        let name = text(name)?;
        let mut order = 0;
        // SAFETY: the pool is open; the name ends with a NUL; the place for the size of objects is ours, and zero asks for
        // the default.
        check(unsafe {
            (self.cluster.functions.rbd.rbd_create)(self.handle, name.as_ptr(), 0, &raw mut order)
        })
    }

    /// Gives an image another name, which no image has yet.
    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        let (from, to) = (text(from)?, text(to)?);
        // SAFETY: the pool is open; both names end with a NUL.
        check(unsafe {
            (self.cluster.functions.rbd.rbd_rename)(self.handle, from.as_ptr(), to.as_ptr())
        })
    }

    /// Removes an image that nobody uses.
    pub fn remove(&self, name: &str) -> Result<()> {
        let name = text(name)?;
        // SAFETY: the pool is open; the name ends with a NUL.
        check(unsafe { (self.cluster.functions.rbd.rbd_remove)(self.handle, name.as_ptr()) })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: the handle is one of rados_ioctx_create, and nobody uses it after this: images hold the pool.
        unsafe { (self.cluster.functions.rados.rados_ioctx_destroy)(self.handle) }
    }
}

/// How an image is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Read,
    Write,
}

/// An open image.
pub(super) struct Image {
    pool: Arc<Pool>,
    handle: Handle,
}

// SAFETY: librbd locks what an image's calls share ("rbd_image_t may be used by several threads"); the handle is only passed
// to the library.
unsafe impl Send for Image {}
// SAFETY: as above.
unsafe impl Sync for Image {}

/// What the walk over a range has found so far.
struct Walk {
    /// Where the range begins.
    start: u64,
    /// Where its first run ends: nothing stored up to there, or bytes stored.
    end: u64,
    stored: bool,
    begun: bool,
}

/// Ends a walk; any value that the library does not use itself.
const ENOUGH: c_int = -9000;

/// Told of every run of stored bytes, in order (and of holes since a snapshot, which is not asked for).
unsafe extern "C" fn visit(offset: u64, len: usize, exists: c_int, walk: *mut c_void) -> c_int {
    // SAFETY: `first_run` passes its own `Walk`, which lives until the walk is over and is used by nobody else.
    let walk = unsafe { &mut *walk.cast::<Walk>() };
    let end = offset.saturating_add(crate::num::len_u64(len));
    let stored = exists != 0;
    if !walk.begun {
        walk.begun = true;
        if offset > walk.start || !stored {
            (walk.stored, walk.end) = (false, if stored { offset } else { end });
            return ENOUGH;
        }
        (walk.stored, walk.end) = (true, end);
        return 0;
    }
    if stored && offset == walk.end {
        walk.end = end;
        return 0;
    }
    ENOUGH
}

impl Image {
    /// Opens an image or a snapshot of it.
    pub fn open(pool: &Arc<Pool>, name: &str, snapshot: Option<&str>, mode: Mode) -> Result<Self> {
        let (name, snapshot) = (text(name)?, snapshot.map(text).transpose()?);
        let rbd = &pool.cluster.functions.rbd;
        let open = if mode == Mode::Write { rbd.rbd_open } else { rbd.rbd_open_read_only };
        let snapshot = snapshot.as_ref().map_or(std::ptr::null(), |s| s.as_ptr());
        let mut handle = std::ptr::null_mut();
        // SAFETY: the pool is open; names end with a NUL (the snapshot may be null) and outlive the call; the place for
        // the handle is ours.
        check(unsafe { open(pool.handle, name.as_ptr(), &raw mut handle, snapshot) })?;
        Ok(Image { pool: Arc::clone(pool), handle })
    }

    fn rbd(&self) -> &'static Rbd {
        &self.pool.cluster.functions.rbd
    }

    /// A number that one of the library's functions tells.
    fn number(&self, ask: unsafe extern "C" fn(Handle, *mut u64) -> c_int) -> Result<u64> {
        let mut value = 0;
        // SAFETY: the image is open, and the place for the number is ours.
        check(unsafe { ask(self.handle, &raw mut value) })?;
        Ok(value)
    }

    /// Length in bytes.
    pub fn size(&self) -> Result<u64> {
        self.number(self.rbd().rbd_get_size)
    }

    /// `RBD_FEATURE_*`.
    pub fn features(&self) -> Result<u64> {
        self.number(self.rbd().rbd_get_features)
    }

    /// `RBD_FLAG_*`.
    pub fn flags(&self) -> Result<u64> {
        self.number(self.rbd().rbd_get_flags)
    }

    /// Bytes of an object.
    pub fn object_size(&self) -> Result<u64> {
        let mut stat = Stat {
            size: 0,
            object_size: 0,
            objects: 0,
            order: 0,
            prefix: [0; 24],
            parent_pool: 0,
            parent_name: [0; 96],
        };
        // SAFETY: the image is open; the library fills the structure, whose layout and size are those of its header.
        check(unsafe { (self.rbd().rbd_stat)(self.handle, &raw mut stat, size_of::<Stat>()) })?;
        Ok(stat.object_size)
    }

    /// Sets the length; what is cut off is lost, what is new is zero.
    pub fn resize(&self, size: u64) -> Result<()> {
        // SAFETY: the image is open.
        check(unsafe { (self.rbd().rbd_resize)(self.handle, size) })
    }

    /// Reads; how much.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        // SAFETY: the image is open, and the library writes at most `len` bytes to the buffer, which is ours.
        let read = unsafe {
            (self.rbd().rbd_read)(self.handle, offset, buf.len(), buf.as_mut_ptr().cast())
        };
        count(read)
    }

    /// Writes; how much.
    pub fn write(&self, offset: u64, buf: &[u8]) -> Result<usize> {
        // SAFETY: the image is open, and the library reads `len` bytes of the buffer, which outlives the call.
        let wrote =
            unsafe { (self.rbd().rbd_write)(self.handle, offset, buf.len(), buf.as_ptr().cast()) };
        count(wrote)
    }

    /// Gives space back.
    pub fn discard(&self, offset: u64, len: u64) -> Result<()> {
        // SAFETY: the image is open.
        check(unsafe { (self.rbd().rbd_discard)(self.handle, offset, len) })
    }

    /// Makes a range read as zeroes. `keep`: its space stays reserved (`RBD_WRITE_ZEROES_FLAG_THICK_PROVISION`).
    pub fn write_zeroes(&self, offset: u64, len: usize, keep: Keep) -> Result<usize> {
        let flags = if keep == Keep::Yes { 1 } else { 0 };
        // SAFETY: the image is open.
        count(unsafe { (self.rbd().rbd_write_zeroes)(self.handle, offset, len, flags, 0) })
    }

    /// Returns when the cluster has all that was written.
    pub fn flush(&self) -> Result<()> {
        // SAFETY: the image is open.
        check(unsafe { (self.rbd().rbd_flush)(self.handle) })
    }

    /// Whether bytes are stored at `offset`, and how far that holds; not beyond `offset + len`.
    pub fn first_run(&self, offset: u64, len: u64) -> Result<(bool, u64)> {
        let end = offset.saturating_add(len);
        let mut walk = Walk { start: offset, end, stored: false, begun: false };
        let place: *mut Walk = &raw mut walk;
        // SAFETY: the image is open; null asks for all that is stored; `visit` is called within this call only, with our
        // `Walk`, by one thread at a time.
        let code = unsafe {
            (self.rbd().rbd_diff_iterate2)(
                self.handle,
                std::ptr::null(),
                offset,
                len,
                1,
                1,
                visit,
                place.cast(),
            )
        };
        if code != ENOUGH {
            check(code)?;
        }
        Ok((walk.stored, walk.end.clamp(offset, end)))
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // SAFETY: the handle is one of rbd_open, and nobody uses it after this. It is closed before its pool.
        unsafe { (self.rbd().rbd_close)(self.handle) };
    }
}

/// Whether space stays reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    Yes,
    No,
}
