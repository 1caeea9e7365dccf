//! What an installed Linux needs from the machine it runs on: drivers in its kernel and initial RAM disk,
//! names of devices in its configuration.

pub mod fstab;
pub mod initramfs;
pub mod kernel;
pub mod loader;
pub mod network;
pub mod release;

/// A module's name as the kernel has it, from a path such as
/// `kernel/drivers/virtio/virtio-pci.ko.xz`; `None` for other files.
pub(crate) fn module_name(path: &str) -> Option<String> {
    let file = path.trim().rsplit('/').next()?;
    let (name, packing) = file.split_once(".ko")?;
    let known = matches!(packing, "" | ".gz" | ".xz" | ".zst" | ".lz4" | ".bz2");
    (known && !name.is_empty()).then(|| name.replace('-', "_"))
}
