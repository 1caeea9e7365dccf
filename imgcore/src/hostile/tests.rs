//! Dice instead of a fuzzer, and what fuzzers found.

use super::*;
use crate::format::{driver, drivers};

fn dice(mut seed: u64) -> impl FnMut() -> u8 {
    move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u8::try_from(seed >> 56).unwrap()
    }
}

#[test]
fn untouched_images_keep_every_byte() {
    for driver in drivers() {
        let bases = bases(*driver);
        let mut roll = dice(7);
        for base in 0..bases.len() {
            for _ in 0..3 {
                let mut input = vec![u8::try_from(base).unwrap(), 1];
                input.extend((0..8 * 20).map(|_| roll()));
                drive(*driver, &bases, &input);
            }
        }
    }
}

#[test]
fn changed_images_do_no_harm() {
    for driver in drivers() {
        let bases = bases(*driver);
        let mut roll = dice(11);
        for _ in 0..25 {
            let input: Vec<u8> = (0..300).map(|_| roll()).collect();
            drive(*driver, &bases, &input);
        }
    }
}

/// Inputs that once did harm, in hexadecimal.
#[test]
fn found_by_fuzzing() {
    for (format, input) in include_str!("found.txt")
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
        .map(|l| l.split_once(' ').unwrap())
    {
        let driver = driver(format).unwrap();
        let bytes: Vec<u8> = (0..input.len() / 2)
            .map(|i| u8::from_str_radix(&input[i * 2..i * 2 + 2], 16).unwrap())
            .collect();
        drive(driver, &bases(driver), &bytes);
    }
}
