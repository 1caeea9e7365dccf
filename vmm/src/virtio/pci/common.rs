//! The registers: modern (section 4.1.4.3) and legacy (4.1.4.10).

use super::super::registers::Registers;
use crate::num::{get_le, low8, low16, low32, put_le};

/// What a write asks of the function beyond setting a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// Status zero: reset the device.
    Reset,
    /// The driver is ready: begin.
    Begin,
    /// A doorbell.
    Ring(u16),
}

/// All modern registers as bytes.
pub fn read_modern(r: &Registers, offset: u64, data: &mut [u8]) {
    let mut b = [0u8; 60];
    put_le(&mut b[0..4], r.device_select.into());
    put_le(&mut b[4..8], r.offered_half().into());
    put_le(&mut b[8..12], r.driver_select.into());
    put_le(&mut b[12..16], r.accepted_half().into());
    put_le(&mut b[16..18], r.config_vector.into());
    put_le(&mut b[18..20], crate::num::len_u64(r.queues.len()));
    b[20] = r.status;
    b[21] = r.generation;
    put_le(&mut b[22..24], r.queue_select.into());
    if let Some(q) = r.selected() {
        put_le(&mut b[24..26], q.size.into());
        put_le(&mut b[26..28], q.vector.into());
        put_le(&mut b[28..30], q.ready.into());
        put_le(&mut b[30..32], r.queue_select.into());
        for (i, ring) in q.rings.iter().enumerate() {
            put_le(&mut b[32 + 8 * i..40 + 8 * i], *ring);
        }
    }
    crate::num::read_within(&b, offset, data);
}

/// A modern register is written. `vector_ok` says whether an MSI-X vector exists.
pub fn write_modern(
    r: &mut Registers,
    offset: u64,
    data: &[u8],
    vector_ok: impl Fn(u16) -> bool,
) -> Action {
    let value = get_le(data);
    let checked = |v: u16| if vector_ok(v) { v } else { super::super::registers::NO_VECTOR };
    match (offset, data.len()) {
        (0, 4) => r.device_select = low32(value),
        (8, 4) => r.driver_select = low32(value),
        (12, 4) => r.accept_half(low32(value)),
        (16, 2) => r.config_vector = checked(low16(value)),
        (20, 1) if value == 0 => return Action::Reset,
        (20, 1) if r.set_status(low8(value)) => return Action::Begin,
        (22, 2) => r.queue_select = low16(value),
        (24..56, _) => queue_register(r, offset, data, checked),
        _ => {}
    }
    Action::None
}

fn queue_register(r: &mut Registers, offset: u64, data: &[u8], checked: impl Fn(u16) -> u16) {
    let value = get_le(data);
    let Some(q) = r.selected_mut() else { return };
    match (offset, data.len()) {
        (24, 2) => {
            let size = low16(value);
            if size.is_power_of_two() && size <= q.max {
                q.size = size;
            }
        }
        (26, 2) => q.vector = checked(low16(value)),
        (28, 2) => q.ready = value & 1 == 1,
        (32..56, 4 | 8) => {
            let at = crate::num::index(offset - 32);
            let mut bytes = q.rings[at / 8].to_le_bytes();
            if let Some(part) = bytes.get_mut(at % 8..at % 8 + data.len()) {
                part.copy_from_slice(data);
            }
            q.rings[at / 8] = u64::from_le_bytes(bytes);
        }
        _ => {}
    }
}

/// A legacy register is read; the interrupt status and the device's configuration are not among them.
pub fn read_legacy(r: &Registers, offset: u64, data: &mut [u8]) {
    let mut b = [0u8; 24];
    put_le(&mut b[0..4], r.offered & 0xffff_ffff);
    put_le(&mut b[4..8], r.accepted & 0xffff_ffff);
    if let Some(q) = r.selected() {
        put_le(&mut b[8..12], q.legacy_page());
        put_le(&mut b[12..14], q.max.into());
        put_le(&mut b[22..24], q.vector.into());
    }
    put_le(&mut b[14..16], r.queue_select.into());
    b[18] = r.status;
    put_le(&mut b[20..22], r.config_vector.into());
    crate::num::read_within(&b, offset, data);
}

/// A legacy register is written.
pub fn write_legacy(
    r: &mut Registers,
    offset: u64,
    data: &[u8],
    vector_ok: impl Fn(u16) -> bool,
) -> Action {
    let value = get_le(data);
    let checked = |v: u16| if vector_ok(v) { v } else { super::super::registers::NO_VECTOR };
    match (offset, data.len()) {
        // Old drivers take what they know; what was not offered they cannot have.
        (4, 4) => r.accepted = value & r.offered & 0xffff_ffff,
        (8, 4) => {
            if let Some(q) = r.selected_mut() {
                q.set_legacy_page(low32(value));
            }
        }
        (14, 2) => r.queue_select = low16(value),
        (16, 2) => return Action::Ring(low16(value)),
        (18, 1) if value == 0 => return Action::Reset,
        (18, 1) if r.set_status(low8(value)) => return Action::Begin,
        (20, 2) => r.config_vector = checked(low16(value)),
        (22, 2) => {
            if let Some(q) = r.selected_mut() {
                q.vector = checked(low16(value));
            }
        }
        _ => {}
    }
    Action::None
}
