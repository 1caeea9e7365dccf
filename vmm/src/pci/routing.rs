//! Which interrupt pin of a slot goes to which input of the I/O APIC: inputs 16 to 23, taken in turn,
//! so that neighbouring slots do not share one.

/// First input for PCI.
pub const FIRST: u32 = 16;
/// How many.
pub const COUNT: u32 = 8;

/// The input of a pin (0 for INTA) of a device.
pub fn gsi(device: u8, pin: u8) -> u32 {
    FIRST + (u32::from(device) + u32::from(pin)) % COUNT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_those_of_the_io_apic_beyond_isa() {
        for device in 0..32 {
            for pin in 0..4 {
                assert!((16..24).contains(&gsi(device, pin)));
            }
        }
        assert_ne!(gsi(1, 0), gsi(2, 0));
    }
}
