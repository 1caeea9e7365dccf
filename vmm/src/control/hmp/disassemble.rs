//! Instructions, for `x/i`, in the syntax of the GNU assembler as QEMU shows it.

use std::fmt::Write as _;

use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter};

use crate::control::steered::CpuState;
use crate::num::{index, len_u64};

/// Longest instruction (Intel SDM volume 2, 2.3.11).
const LONGEST: usize = 15;

/// How wide the vCPU's code is at present: 16, 32 or 64 bits.
pub fn bits(cpu: &CpuState) -> u32 {
    let cs = &cpu.sregs.cs;
    if cs.l != 0 && cpu.sregs.efer & 1 << 10 != 0 {
        64
    } else if cs.db != 0 {
        32
    } else {
        16
    }
}

/// `count` instructions from `at` on; `read` fills a buffer from guest memory, or returns false.
pub fn list(mut at: u64, count: u64, bits: u32, read: &dyn Fn(u64, &mut [u8]) -> bool) -> String {
    let mut text = String::new();
    let mut formatter = GasFormatter::new();
    formatter.options_mut().set_gas_show_mnemonic_size_suffix(true);
    formatter.options_mut().set_uppercase_hex(false);
    formatter.options_mut().set_space_after_operand_separator(true);
    for _ in 0..count {
        let mut bytes = [0; LONGEST];
        // As much as can be read: an instruction may end where memory does.
        let readable = (1..=LONGEST).rev().find(|n| read(at, &mut bytes[..*n]));
        let Some(readable) = readable else {
            let _ = writeln!(text, "0x{at:08x}: unable to read memory");
            break;
        };
        let mut decoder = Decoder::with_ip(bits, &bytes[..readable], at, DecoderOptions::NONE);
        let instruction = decoder.decode();
        let len = if instruction.is_invalid() { 1 } else { instruction.len() };
        let mut words = String::new();
        if instruction.is_invalid() {
            words.push_str("(bad)");
        } else {
            formatter.format(&instruction, &mut words);
        }
        let raw: Vec<String> = bytes[..len].iter().map(|b| format!("{b:02x}")).collect();
        let _ = writeln!(text, "0x{at:08x}:  {:<23}  {words}", raw.join(" "));
        at = at.wrapping_add(len_u64(index(len_u64(len))));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_up_to_the_end_of_memory() {
        let memory = [0xea, 0x5b, 0xe0, 0x00, 0xf0, 0x90, 0x0f];
        let read = |at: u64, buf: &mut [u8]| {
            let at = index(at);
            let Some(found) = memory.get(at..at + buf.len()) else { return false };
            buf.copy_from_slice(found);
            true
        };
        let text = list(0, 9, 16, &read);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("0x00000000:  ea 5b e0 00 f0") && lines[0].contains("jmp"));
        assert!(lines[1].ends_with("nop"), "{text}");
        assert!(lines[2].ends_with("(bad)") && lines[3].ends_with("unable to read memory"));
    }
}
