//! The benchmark of `rkvm` beside Debian's QEMU, as the binary `vmbench` runs it.
//!
//! * [`start`]: directly on `/dev/kvm`, from exec to the first `KVM_RUN`.
//! * [`nested`]: in the nested host (`vmm/tests/nested`), in virtual time: exec to `/init`, memory beyond the guest's,
//!   virtio-blk. The binary runs there too: [`outer`] is its part in the outer machine, [`guest`] in the guest.
//! * [`table`]: the Markdown table, with the recorded figures of other monitors and the targets.

pub mod guest;
pub mod nested;
pub mod outer;
pub mod start;
pub mod table;

/// One measured figure: what, of whom, how much.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// What is measured; a row of the table.
    pub what: String,
    /// Of which program; a column of the table.
    pub who: String,
    /// In the row's unit.
    pub value: f64,
}

/// The middle one of some values (the upper of the two in the middle), 0 of none.
#[must_use]
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
