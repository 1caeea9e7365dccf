//! Numbers at fixed offsets of a structure that is only looked at.
//!
//! File systems have large structures of which a few fields matter here: their offsets stand beside their
//! names where they are read, as the specifications list them. A field beyond the end reads as zero;
//! callers read structures of a fixed length.

/// A structure with little- or big-endian fields.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    bytes: &'a [u8],
    big: bool,
}

impl<'a> Fields<'a> {
    pub fn little(bytes: &'a [u8]) -> Self {
        Fields { bytes, big: false }
    }

    pub fn big(bytes: &'a [u8]) -> Self {
        Fields { bytes, big: true }
    }

    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let field = at.checked_add(N).and_then(|end| self.bytes.get(at..end));
        field.and_then(|b| b.try_into().ok()).unwrap_or([0; N])
    }

    pub fn u8(&self, at: usize) -> u8 {
        self.array::<1>(at)[0]
    }

    pub fn u16(&self, at: usize) -> u16 {
        let b = self.array(at);
        if self.big { u16::from_be_bytes(b) } else { u16::from_le_bytes(b) }
    }

    pub fn u32(&self, at: usize) -> u32 {
        let b = self.array(at);
        if self.big { u32::from_be_bytes(b) } else { u32::from_le_bytes(b) }
    }

    pub fn u64(&self, at: usize) -> u64 {
        let b = self.array(at);
        if self.big { u64::from_be_bytes(b) } else { u64::from_le_bytes(b) }
    }

    /// `len` bytes, or fewer at the end.
    pub fn bytes(&self, at: usize, len: usize) -> &'a [u8] {
        let rest = self.bytes.get(at..).unwrap_or_default();
        rest.get(..len).unwrap_or(rest)
    }
}
