//! An image of a Ceph cluster, through the cluster's own library (librbd and librados, C).
//!
//! * `library`: the functions of the library that are used, and the only unsafe code.
//! * [`RbdStorage`]: the image as a storage.
//!
//! The library is loaded when an image is opened (`librbd.so.1`, `librados.so.2`: Debian's packages librbd1 and
//! librados2): building needs nothing of it, and a program whose users have no cluster runs without it. It starts
//! threads of its own, reads `/etc/ceph/ceph.conf` (or what `conf` names) and the keyring named there, and speaks to
//! the cluster. A cluster that is not there is given up after [`CONNECT`] seconds, unless the configuration says
//! otherwise (`client_mount_timeout`).
//!
//! Durability: `flush` returns when the cluster has what was written. An image keeps one writer at a time by its own
//! exclusive lock, where it has that feature. Where it has a valid object map, holes are known without reading.

mod library;
mod store;

pub use store::{CONNECT, RbdStorage};
