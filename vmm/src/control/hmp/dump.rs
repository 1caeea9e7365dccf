//! `x`, `xp` and `print` with their formats.

use std::fmt::Write as _;

use crate::control::command::{Args, Context, Failure};
use crate::control::paging::Paging;
use crate::control::steered::Steered;
use crate::num::{get_le, index, len_u64};

/// Most values that one command shows.
const MOST: u64 = 1 << 16;

/// Whose addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// As the vCPU sees them at present.
    Virtual,
    /// Guest physical.
    Physical,
}

/// Reads guest memory by addresses of one kind.
struct Reader<'a> {
    machine: &'a dyn Steered,
    paging: Option<Paging>,
}

impl Reader<'_> {
    /// All bytes, or `false`.
    fn read(&self, at: u64, buf: &mut [u8]) -> bool {
        let Some(paging) = &self.paging else { return self.machine.read_physical(at, buf) };
        let mut done = 0;
        while done < buf.len() {
            let virtual_at = at.wrapping_add(len_u64(done));
            // Pages of every size hold whole pages of 4 KiB.
            let left = index(4096 - virtual_at % 4096).min(buf.len() - done);
            let Some(physical) = paging.translate(virtual_at, self.machine) else { return false };
            if !self.machine.read_physical(physical, &mut buf[done..done + left]) {
                return false;
            }
            done += left;
        }
        true
    }
}

/// `x` and `xp`.
pub fn memory(
    machine: &mut dyn Steered,
    args: &Args,
    context: &Context,
    space: Space,
) -> Result<String, Failure> {
    let count = args.number("count").unwrap_or(1).min(MOST);
    let mut at = args.number("addr").unwrap_or(0);
    let paging = match space {
        Space::Physical => None,
        Space::Virtual => Some(Paging::of(&machine.cpu_state(context.cpu)?)),
    };
    let format = args.text("format").chars().next().unwrap_or('x');
    if format == 'i' {
        let bits = super::disassemble::bits(&machine.cpu_state(context.cpu)?);
        let reader = Reader { machine, paging };
        return Ok(super::disassemble::list(at, count, bits, &|at, buf| reader.read(at, buf)));
    }
    let size = if format == 'c' { 1 } else { index(args.number("size").unwrap_or(4)).clamp(1, 8) };
    let row = if format == 'c' { 8 } else { 16 };
    let reader = Reader { machine, paging };
    let mut left = index(count) * size;
    let mut text = String::new();
    while left > 0 {
        let n = left.min(row);
        let mut bytes = vec![0; n];
        let _ = write!(text, "{at:016x}:");
        if !reader.read(at, &mut bytes) {
            text.push_str(" Cannot access memory\n");
            break;
        }
        for value in bytes.chunks(size) {
            text.push(' ');
            text.push_str(&padded(get_le(value), size, format));
        }
        text.push('\n');
        at = at.wrapping_add(len_u64(n));
        left -= n;
    }
    Ok(text)
}

/// A value in its column.
fn padded(value: u64, size: usize, format: char) -> String {
    let bits = 8 * size;
    let decimal = (bits * 10).div_ceil(33);
    match format {
        'o' => {
            let width = bits.div_ceil(3);
            let digits = if value == 0 { "0".into() } else { format!("0{value:o}") };
            format!("{digits:>width$}")
        }
        'u' => format!("{value:>decimal$}"),
        'd' => {
            let shift = 64 - 8 * u32::try_from(size).unwrap_or(8);
            let signed = (value << shift).cast_signed() >> shift;
            format!("{signed:>decimal$}")
        }
        'c' => character(value),
        _ => format!("0x{value:0width$x}", width = 2 * size),
    }
}

fn character(value: u64) -> String {
    let byte = crate::num::low8(value);
    match byte {
        b'\'' => r"'\''".into(),
        b'\\' => r"'\\'".into(),
        b'\n' => r"'\n'".into(),
        b'\r' => r"'\r'".into(),
        32..=126 => format!("'{}'", char::from(byte)),
        _ => format!("'\\x{byte:02x}'"),
    }
}

/// `print`.
pub fn print(args: &Args, context: &Context) -> String {
    let value = args.number("val").unwrap_or(0);
    match args.text("format").chars().next().unwrap_or(context.format) {
        'o' if value != 0 => format!("0{value:o}"),
        'x' if value != 0 => format!("{value:#x}"),
        'o' | 'x' => "0".into(),
        'u' => value.to_string(),
        'c' => character(value),
        _ => value.cast_signed().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_those_of_qemu() {
        assert_eq!(padded(0xffff_5bea, 4, 'x'), "0xffff5bea");
        assert_eq!(padded(224, 2, 'd'), "  224");
        assert_eq!(padded(0xffff, 2, 'd'), "   -1");
        assert_eq!(padded(0, 1, 'u'), "  0");
        assert_eq!(padded(8, 1, 'o'), "010");
        assert_eq!(padded(0xea, 1, 'c'), r"'\xea'");
        assert_eq!(padded(u64::MAX, 8, 'u'), "18446744073709551615");
    }
}
