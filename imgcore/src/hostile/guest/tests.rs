//! Dice instead of a fuzzer, and what fuzzers found.

use super::*;

fn dice(mut seed: u64) -> impl FnMut() -> u8 {
    move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u8::try_from(seed >> 56).unwrap()
    }
}

#[test]
fn untouched_samples_are_read_whole() {
    for family in Family::ALL {
        let samples = samples(family);
        for index in 0..samples.len() {
            drive(&samples, &[u8::try_from(index).unwrap(), 0]);
        }
    }
}

/// The guards are where the tools put checksums: sealing what nobody changed changes nothing.
#[test]
fn seals_fit() {
    for family in Family::ALL {
        for sample in samples(family) {
            let mut disk = Changed::new(Arc::clone(&sample));
            for guard in &sample.guards {
                guard.seal(&mut disk);
                assert!(disk.is_as_made(), "{}: {guard:?}", sample.name);
            }
            let sealed = sample.guarded.is_none() || !sample.guards.is_empty();
            assert!(sealed, "{}", sample.name);
        }
    }
}

#[test]
fn changed_samples_do_no_harm() {
    for family in Family::ALL {
        let samples = samples(family);
        let mut roll = dice(5);
        for round in 0..60 {
            let mut input: Vec<u8> = (0..200).map(|_| roll()).collect();
            // Few changes as often as many.
            input[1] &= if round % 2 == 0 { 0x1f } else { 0xff };
            drive(&samples, &input);
        }
    }
}

/// Inputs that once did harm: the family, then the input in hexadecimal.
#[test]
fn found_by_fuzzing() {
    for line in include_str!("found.txt").lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let (family, input) = line.split_once(' ').unwrap();
        let family = Family::ALL.into_iter().find(|f| format!("{f:?}") == family).unwrap();
        let bytes: Vec<u8> = (0..input.len() / 2)
            .map(|i| u8::from_str_radix(&input[i * 2..i * 2 + 2], 16).unwrap())
            .collect();
        drive(&samples(family), &bytes);
    }
}
