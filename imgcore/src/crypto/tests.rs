#![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
use super::*;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        hex.bytes().filter_map(|b| char::from(b).to_digit(16)).map(|d| d as u8).collect();
    digits.chunks_exact(2).map(|p| p[0] << 4 | p[1]).collect()
}

/// IEEE 1619-2007, annex B, vectors 1 and 2 have 32 bytes; a whole sector is vector 4 (512 bytes of
/// 00..ff twice), of which the first and the last block are compared.
#[test]
fn xts_of_the_standard() {
    let key = bytes("27182818284590452353602874713526 31415926535897932384626433832795");
    let cipher = SectorCipher::new(Cipher::Aes128, Mode::Xts, IvKind::Plain64, &key, 512).unwrap();
    let plain: Vec<u8> = (0..512u32).map(|i| i as u8).collect();
    let mut data = plain.clone();
    cipher.encrypt(0, &mut data);
    assert_eq!(data[..16], bytes("27a7479befa1d476489f308cd4cfa6e2"));
    assert_eq!(data[496..], bytes("0a282df920147beabe421ee5319d0568"));
    cipher.decrypt(0, &mut data);
    assert_eq!(data, plain);
}

/// Every cipher in every mode: back and forth, in one piece and sector by sector.
#[test]
fn every_combination_is_its_own_inverse() {
    let key: Vec<u8> = (0..64u8).map(|i| i.wrapping_mul(7) + 1).collect();
    let ivs =
        [IvKind::Plain, IvKind::Plain64, IvKind::Essiv(Hash::Sha256), IvKind::Benbi, IvKind::Null];
    let names = [
        "aes-128",
        "aes-192",
        "aes-256",
        "cast5-128",
        "serpent-128",
        "serpent-192",
        "serpent-256",
        "twofish-128",
        "twofish-192",
        "twofish-256",
    ];
    let mut made = 0;
    for name in names {
        let cipher = Cipher::from_name(name).unwrap();
        assert_eq!(cipher.name(), name);
        for mode in ["ecb", "cbc", "xts", "ctr"].map(|m| Mode::from_name(m).unwrap()) {
            for iv in ivs {
                for sector in [512, 4096] {
                    let key = &key[..cipher.key_len() * mode.keys()];
                    let Ok(c) = SectorCipher::new(cipher, mode, iv, key, sector) else { continue };
                    made += 1;
                    let plain: Vec<u8> = (0..12288u32).map(|i| (i / 3) as u8).collect();
                    let mut whole = plain.clone();
                    c.encrypt(u64::from(u32::MAX) - 3, &mut whole);
                    assert_ne!(whole, plain);
                    let mut pieces = plain.clone();
                    for (i, piece) in (0u64..).zip(pieces.chunks_mut(sector)) {
                        let number = u64::from(u32::MAX) - 3 + i * sector as u64 / 512;
                        c.encrypt(number, piece);
                    }
                    assert!(whole == pieces, "{name} {} {}", mode.name(), iv.name());
                    c.decrypt(u64::from(u32::MAX) - 3, &mut whole);
                    assert!(whole == plain, "{name} {} {}", mode.name(), iv.name());
                }
            }
        }
    }
    assert!(made > 200, "{made}");
}

/// RFC 6070 (SHA-1) and the same with SHA-256 (RFC 7914, section 11).
#[test]
fn pbkdf2_of_the_rfcs() {
    let made = pbkdf::pbkdf2(Hash::Sha1, b"password", b"salt", 4096, 20).unwrap();
    assert_eq!(made[..], bytes("4b007901b765489abead49d926f721d065a429c1"));
    let made = pbkdf::pbkdf2(Hash::Sha256, b"passwd", b"salt", 1, 64).unwrap();
    assert_eq!(made[..16], bytes("55ac046e56e3089fec1691c22544b605"));
    assert_eq!(made[48..], bytes("7c71b845b1e30bd509112041d3a19783"));
    assert!(pbkdf::pbkdf2(Hash::Sha256, b"a", b"b", 0, 32).is_err());
}

#[test]
fn hopeless_round_counts_are_refused_soon() {
    let begun = std::time::Instant::now();
    let error = pbkdf::pbkdf2(Hash::Ripemd160, b"a", b"b", u32::MAX, 4096).unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::TooLarge);
    assert!(begun.elapsed().as_secs() < 60);
}

#[test]
fn split_keys_come_back() {
    for hash in ["sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160"] {
        let hash = Hash::from_name(hash).unwrap();
        assert_eq!(hash.digest(&[b"a"]).len(), hash.size());
        let key: Vec<u8> = (0..64).collect();
        let spread = af::split(hash, &key, 40).unwrap();
        assert_eq!(spread.len(), 64 * 40);
        assert_eq!(*af::merge(hash, &spread, 64), key);
        let mut bad = spread.clone();
        bad[100] ^= 1;
        assert_ne!(*af::merge(hash, &bad, 64), key);
    }
}

/// Not a benchmark of the machine, only of gross mistakes: `cargo test --release -p imgcore
/// crypto::tests::speed -- --nocapture` shows the numbers.
#[test]
fn speed() {
    let key = [7u8; 64];
    for (cipher, mode, iv) in [
        (Cipher::Aes256, Mode::Xts, IvKind::Plain64),
        (Cipher::Aes128, Mode::Cbc, IvKind::Plain64),
        (Cipher::Aes256, Mode::Cbc, IvKind::Essiv(Hash::Sha256)),
    ] {
        let key = &key[..cipher.key_len() * mode.keys()];
        let c = SectorCipher::new(cipher, mode, iv, key, 512).unwrap();
        let mut data = vec![0u8; 256 << 10];
        for encrypt in [true, false] {
            let begun = std::time::Instant::now();
            let rounds = 400;
            for i in 0..rounds {
                if encrypt { c.encrypt(i, &mut data) } else { c.decrypt(i, &mut data) }
            }
            let rate = (data.len() as f64) * rounds as f64 / begun.elapsed().as_secs_f64() / 1e9;
            println!("{} {} encrypt={encrypt}: {rate:.2} GB/s", cipher.name(), mode.name());
        }
    }
}
