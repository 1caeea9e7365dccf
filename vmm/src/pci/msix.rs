//! MSI-X (PCI Local Bus 3.0, 6.8.2): the table of messages and the pending bits, in a BAR.
//!
//! Vectors are taken from the source when the guest first gives one a target, so that devices with
//! many unused vectors cost nothing. An interrupt raised while masked becomes pending, and is sent
//! when the mask goes away.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::irq::{MsiTarget, Vector, VectorSource};
use crate::num::{get_le, index, len_u64, low32, put_le, read_within};

/// Capability number.
pub const CAPABILITY: u8 = 0x11;
/// Pending bits lie here in the BAR, the table at 0.
pub const PBA_OFFSET: u32 = 0x800;
/// Bytes of the BAR: room for 128 vectors.
pub const BAR_LEN: u64 = 0x1000;
/// Most vectors.
pub const MAX_VECTORS: u16 = 128;

const ENTRY: usize = 16;
const ENABLE: u16 = 1 << 15;
const MASK_ALL: u16 = 1 << 14;

#[derive(Debug, Default)]
struct Entry {
    bytes: [u8; ENTRY],
    pending: bool,
    vector: Option<Arc<dyn Vector>>,
    /// Where the vector points at present.
    target: Option<MsiTarget>,
}

impl Entry {
    fn masked(&self) -> bool {
        self.bytes[12] & 1 != 0
    }

    fn wanted(&self) -> MsiTarget {
        MsiTarget { address: get_le(&self.bytes[0..8]), data: low32(get_le(&self.bytes[8..12])) }
    }
}

#[derive(Debug)]
struct State {
    entries: Vec<Entry>,
    control: u16,
}

/// The messages of one function.
#[derive(Debug)]
pub struct Msix {
    state: Mutex<State>,
    source: Arc<dyn VectorSource>,
}

impl Msix {
    /// With `count` vectors (at most [`MAX_VECTORS`]), all masked.
    pub fn new(count: u16, source: Arc<dyn VectorSource>) -> Self {
        let mut entries = Vec::new();
        entries.resize_with(usize::from(count.clamp(1, MAX_VECTORS)), Entry::default);
        let msix = Msix { state: Mutex::new(State { entries, control: 0 }), source };
        msix.reset();
        msix
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The capability's body behind its header, with the table in BAR `bar`; and what is writable.
    pub fn capability(&self, bar: u8) -> ([u8; 10], [u8; 10]) {
        let count = len_u64(self.lock().entries.len());
        let (mut body, mut mask) = ([0; 10], [0; 10]);
        put_le(&mut body[0..2], count - 1);
        put_le(&mut body[2..6], bar.into());
        put_le(&mut body[6..10], u64::from(PBA_OFFSET) | u64::from(bar));
        mask[1] = 0xc0;
        (body, mask)
    }

    /// The guest wrote the control register.
    pub fn set_control(&self, control: u16) {
        let mut state = self.lock();
        if state.control != control {
            state.control = control;
            for i in 0..state.entries.len() {
                self.update(&mut state, i);
            }
        }
    }

    /// True when the guest uses MSI-X instead of the pin.
    pub fn enabled(&self) -> bool {
        self.lock().control & ENABLE != 0
    }

    /// Whether a vector of this number exists.
    pub fn has(&self, vector: u16) -> bool {
        usize::from(vector) < self.lock().entries.len()
    }

    /// Brings a vector in line with its entry.
    fn update(&self, state: &mut State, i: usize) {
        let open = state.control & ENABLE != 0 && state.control & MASK_ALL == 0;
        let Some(entry) = state.entries.get_mut(i) else { return };
        let wanted = (open && !entry.masked()).then(|| entry.wanted());
        if wanted.is_some() && entry.vector.is_none() {
            // Without a vector (the host's table is full) the interrupt stays pending.
            entry.vector = self.source.allocate().ok();
        }
        let Some(vector) = entry.vector.clone() else { return };
        if entry.target != wanted && vector.set(wanted).is_ok() {
            entry.target = wanted;
        }
        if entry.target.is_some() && std::mem::take(&mut entry.pending) {
            vector.raise();
        }
    }

    /// The device raises a vector; nothing happens for those that do not exist.
    pub fn raise(&self, vector: u16) {
        let mut state = self.lock();
        let enabled = state.control & ENABLE != 0;
        if let Some(entry) = state.entries.get_mut(usize::from(vector)) {
            match (&entry.vector, entry.target) {
                (Some(v), Some(_)) => v.raise(),
                _ => entry.pending = enabled,
            }
        }
    }

    /// The guest reads the BAR.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        if offset >= u64::from(PBA_OFFSET) {
            let mut bits = [0u8; 16];
            for (i, e) in state.entries.iter().enumerate() {
                bits[i / 8] |= u8::from(e.pending) << (i % 8);
            }
            read_within(&bits, offset - u64::from(PBA_OFFSET), data);
            return;
        }
        data.fill(0);
        let i = index(offset) / ENTRY;
        if let Some(e) = state.entries.get(i) {
            read_within(&e.bytes, offset % len_u64(ENTRY), data);
        }
    }

    /// The guest writes the BAR.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        let i = index(offset) / ENTRY;
        let at = index(offset % len_u64(ENTRY));
        if let Some(e) = state.entries.get_mut(i) {
            for (b, value) in e.bytes.iter_mut().skip(at).zip(data) {
                *b = *value;
            }
            self.update(&mut state, i);
        }
    }

    /// Everything masked, nothing pending.
    pub fn reset(&self) {
        let mut state = self.lock();
        state.control = 0;
        for i in 0..state.entries.len() {
            state.entries[i].bytes = [0; ENTRY];
            state.entries[i].bytes[12] = 1;
            state.entries[i].pending = false;
            self.update(&mut state, i);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::RecordedVectors;

    #[test]
    fn masked_interrupts_wait() {
        let source = Arc::new(RecordedVectors::default());
        let m = Msix::new(3, source.clone());
        assert_eq!(m.capability(1).0, [2, 0, 1, 0, 0, 0, 1, 8, 0, 0]);
        m.write(16, &0xfee0_1000u64.to_le_bytes());
        m.write(24, &0x41u32.to_le_bytes());
        m.raise(1);
        m.set_control(ENABLE);
        assert!(source.0.lock().unwrap().is_empty(), "no vector before it is needed");
        m.raise(1);
        let mut pending = [0; 8];
        m.read(0x800, &mut pending);
        assert_eq!(pending[0], 2);
        m.write(28, &0u32.to_le_bytes());
        let v = source.0.lock().unwrap()[0].clone();
        assert_eq!(v.target(), Some(MsiTarget { address: 0xfee0_1000, data: 0x41 }));
        assert_eq!(v.count(), 1);
        m.raise(1);
        assert_eq!(v.count(), 2);
        m.set_control(ENABLE | MASK_ALL);
        m.raise(1);
        assert_eq!((v.count(), v.target()), (2, None));
        m.set_control(ENABLE);
        assert_eq!(v.count(), 3);
        m.raise(200);
        m.write(0x7ff, &[1; 8]);
        m.read(0x7f8, &mut pending);
        m.read(0xffc, &mut pending);
        m.reset();
        assert_eq!(v.target(), None);
        assert!(!m.enabled() && m.has(2) && !m.has(3));
    }
}
