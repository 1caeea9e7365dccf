//! What has to lie in memory and registers for the first instruction of a guest.
//!
//! * [`registers`]: processor states to start in.
//! * [`kernel`]: bzImage and ELF files, initial ramdisks, command lines.
//! * [`linux`], [`pvh`]: the two protocols that hand over to a kernel.
//! * [`e820`]: the map of memory.
//! * [`acpi`], [`smbios`]: tables that describe the machine.
//!
//! ```text
//! 0x500   descriptor table      0x9000  page tables (6 pages)
//! 0x6000  PVH start info        0x20000 kernel command line (64 KiB)
//! 0x7000  Linux boot parameters 0xe0000 ACPI tables     0xf0000 SMBIOS
//! ```

pub mod acpi;
pub mod e820;
pub mod kernel;
pub mod linux;
pub mod pvh;
pub mod registers;
pub mod smbios;
mod source;

/// PVH start info, modules and memory map.
pub const PVH_INFO: u64 = 0x6000;
/// Linux' boot parameters ("zero page").
pub const ZERO_PAGE: u64 = 0x7000;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Longest kernel command line with its final zero.
pub const CMDLINE_MAX: usize = 0x1_0000;
/// ACPI tables, the root pointer first.
pub const ACPI: u64 = 0xe_0000;
/// Room for them.
pub const ACPI_LEN: usize = 0x1_0000;
/// SMBIOS entry point and tables.
pub const SMBIOS: u64 = 0xf_0000;
/// Room for them.
pub const SMBIOS_LEN: usize = 0x1_0000;
