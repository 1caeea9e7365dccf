//! LUKS disks: against a vector of bytes, against the reference tools, and damaged.

use std::sync::Arc;

use super::LuksDriver;
use crate::crypto::SecretBytes;
use crate::format::testing::{
    Dice, Dir, PASSPHRASE, challenge, content, create, memory, node, open_storage, pattern,
    refused, scribble,
};
use crate::format::{Access, Amendment, CreateOptions, Driver, Image, Unwatched};
use crate::graph::Node;
use crate::graph::open::{OpenOptions, OpenRequest, open};
use crate::opts::secret::{Secret, Secrets};
use crate::storage::crash::CrashStorage;
use crate::storage::{MemoryStorage, Preallocation, Storage};
use crate::{ErrorKind, Result};

/// The smallest header, made quickly.
const SMALL: &[(&str, &str)] =
    &[("cipher-alg", "aes-128"), ("cipher-mode", "cbc"), ("iter-time", "0")];

fn writer(storage: &Arc<MemoryStorage>) -> Node {
    node(&LuksDriver, Arc::clone(storage) as Arc<dyn Storage>, Access::Write)
}

fn read(bytes: &[u8]) -> Vec<u8> {
    content(&node(&LuksDriver, memory(bytes), Access::Read))
}

fn secrets(passphrase: &str) -> Secrets {
    let mut all = Secrets::default();
    all.add(Secret { id: "s".into(), bytes: SecretBytes::new(passphrase.into()) }).unwrap();
    all
}

/// Opens a file of a folder as the programs do.
fn open_file(dir: &Dir, name: &str, passphrase: &str) -> Result<Arc<Node>> {
    let mut request = OpenRequest::file(dir.file(name).to_str().unwrap()).with_driver(Some("luks"));
    request.options.push(("key-secret".into(), "s".into()));
    open(&request, &OpenOptions { secrets: secrets(passphrase), ..OpenOptions::default() })
}

#[test]
fn random_operations() {
    for seed in 1..4 {
        let storage = memory(&create(&LuksDriver, 300_000, SMALL).unwrap());
        let mut at = writer(&storage);
        assert_eq!(at.virtual_size(), 300_032);
        let mut disk = content(&at);
        let mut dice = Dice(seed);
        for round in 0..60 {
            match dice.roll(8) {
                0 => at.flush().unwrap(),
                1 => {
                    at.close().unwrap();
                    at = writer(&storage);
                }
                2 => {
                    let size = [100_000u64, 512, 400_000][usize::try_from(dice.roll(3)).unwrap()];
                    at.resize(size, Preallocation::Off).unwrap();
                    disk.resize(usize::try_from(at.virtual_size()).unwrap(), 0);
                }
                _ => scribble(&at, &mut disk, &mut dice, 70_000),
            }
            assert!(content(&at) == disk, "seed {seed}, after operation {round}");
        }
        at.close().unwrap();
        assert!(read(&storage.to_vec()) == disk);
    }
}

/// Every cipher that qemu-img can make, both ways.
#[test]
fn qemu_reads_ours_and_we_read_qemus() {
    let dir = Dir::new();
    dir.put("disk", &pattern(200_192, 3));
    dir.put("pw", PASSPHRASE.as_bytes());
    let sets: &[&[(&str, &str)]] = &[
        &[],
        &[("cipher-alg", "aes-128"), ("hash-alg", "sha1")],
        &[("cipher-alg", "aes-192"), ("hash-alg", "sha512"), ("ivgen-alg", "plain")],
        &[("cipher-mode", "cbc"), ("ivgen-alg", "essiv"), ("ivgen-hash-alg", "sha256")],
        &[("ivgen-alg", "essiv")],
        &[("cipher-mode", "ctr"), ("hash-alg", "sha224")],
        &[("cipher-mode", "ecb"), ("hash-alg", "sha384")],
        &[("cipher-alg", "serpent-256"), ("hash-alg", "ripemd160")],
        &[("cipher-alg", "serpent-128"), ("cipher-mode", "cbc")],
        &[("cipher-alg", "twofish-256")],
        &[("cipher-alg", "twofish-192")],
        &[("cipher-alg", "cast5-128"), ("cipher-mode", "cbc")],
    ];
    let object = "secret,id=s,file=pw";
    let image = "driver=luks,key-secret=s,file.filename=ours";
    for set in sets {
        let mut options = set.to_vec();
        options.push(("iter-time", "0"));
        let storage = memory(&create(&LuksDriver, 200_192, &options).unwrap());
        let ours = writer(&storage);
        ours.write(0, &dir.get("disk")).unwrap();
        ours.close().unwrap();
        dir.put("ours", &storage.to_vec());
        let compare = ["compare", "--object", object, "--image-opts"];
        let raw = "driver=raw,file.filename=disk";
        let args = [&compare[..], &[image, raw]].concat();
        if dir.must("qemu-img", &args).is_none() {
            return;
        }
        let list: Vec<String> = options.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let list = format!("key-secret=s,{}", list.join(","));
        dir.must(
            "qemu-img",
            &["convert", "--object", object, "-O", "luks", "-o", &list, "disk", "theirs"],
        );
        assert!(read(&dir.get("theirs")) == dir.get("disk"), "{list}");
        let dump = dir.must("cryptsetup", &["luksDump", "ours"]);
        assert!(dump.is_none_or(|d| d.contains("Key Slot 0: ENABLED")), "{list}");
    }
    dir.put("ours", &create(&LuksDriver, 4096, &[("iter-time", "0")]).unwrap());
    dir.must("cryptsetup", &["open", "--test-passphrase", "--key-file", "pw", "ours"]);
}

fn luks2(dir: &Dir, name: &str, more: &[&str]) -> Option<Vec<u8>> {
    let mut plain = pattern(3 << 20, 8);
    plain.resize(35 << 20, 0);
    dir.put(name, &plain);
    dir.put("pw", PASSPHRASE.as_bytes());
    // Encrypts in place, without any help of the kernel.
    let args = [
        &["reencrypt", "-q", "--encrypt", "--type", "luks2", "--reduce-device-size", "32M"][..],
        &["--key-file", "pw"],
        more,
        &[name],
    ]
    .concat();
    let out = dir.tool("cryptsetup", &args)?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        eprintln!("SKIPPED cryptsetup {more:?}: it cannot encrypt here: {said}");
        return None;
    }
    plain.truncate(3 << 20);
    Some(plain)
}

const QUICK: &[&str] = &["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];

#[test]
fn luks2_by_cryptsetup() {
    let dir = Dir::new();
    let argon = |kind| {
        ["--pbkdf", kind, "--pbkdf-force-iterations", "4", "--pbkdf-memory", "1024"].to_vec()
    };
    let with = |more: &[&'static str]| [QUICK, more].concat();
    for more in [
        argon("argon2id"),
        argon("argon2i"),
        with(&["--sector-size", "4096"]),
        with(&["--hash", "sha512", "-c", "aes-cbc-essiv:sha256", "-s", "256"]),
        with(&["-c", "aes-xts-benbi", "-s", "256"]),
    ] {
        let Some(plain) = luks2(&dir, "two", &more) else { continue };
        let node = open_file(&dir, "two", PASSPHRASE).unwrap();
        let seen = content(&node);
        assert!(seen[..plain.len()] == plain, "{more:?}");
        drop(node);
        let error = open_file(&dir, "two", "wrong").unwrap_err();
        assert!(error.report().contains("cannot unlock any keyslot"), "{error:?}");
    }
}

#[test]
fn luks2_damaged() {
    let dir = Dir::new();
    let Some(plain) = luks2(&dir, "two", QUICK) else { return };
    let mut bytes = dir.get("two");
    // The first copy: the second one counts.
    bytes[5000] ^= 1;
    assert!(read(&bytes)[..plain.len()] == plain);
    bytes[..4096].fill(0);
    bytes[..8].copy_from_slice(b"LUKS\xba\xbe\0\x02");
    assert!(read(&bytes)[..plain.len()] == plain);
    let second = 0x4000 + 5000;
    bytes[second] ^= 1;
    assert_eq!(refused(&LuksDriver, &bytes).kind(), ErrorKind::Corrupt);
    let good = dir.get("two");
    for cut in [10, 4096, 20_000, 33_000, 16 << 20] {
        challenge(&LuksDriver, &good[..cut]);
    }
    let image = open_storage(&LuksDriver, memory(&good), Access::Write, false);
    assert_eq!(image.unwrap_err().kind(), ErrorKind::ReadOnly);
}

/// The checksum is right, what it covers is not.
#[test]
fn luks2_that_asks_too_much() {
    let dir = Dir::new();
    let argon = ["--pbkdf", "argon2id", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "1024"];
    let Some(_) = luks2(&dir, "two", &argon) else { return };
    let good = dir.get("two");
    let changed = |from: &str, to: &str| {
        let mut bytes = good.clone();
        for copy in [0, 0x4000] {
            let json = String::from_utf8_lossy(&bytes[copy + 4096..copy + 0x4000]).into_owned();
            assert!(json.contains(from), "{json}");
            // Zeroes follow the text.
            let mut json = json.replace(from, to).into_bytes();
            json.resize(0x4000 - 4096, 0);
            bytes[copy + 4096..copy + 0x4000].copy_from_slice(&json);
            bytes[copy + 448..copy + 512].fill(0);
            let sum = crate::crypto::Hash::Sha256.digest(&[&bytes[copy..copy + 0x4000]]);
            bytes[copy + 448..copy + 448 + sum.len()].copy_from_slice(&sum);
        }
        let begun = std::time::Instant::now();
        let error = refused(&LuksDriver, &bytes);
        assert!(begun.elapsed().as_secs() < 60, "{to}");
        error
    };
    for (from, to) in [
        (r#""memory":1024"#, r#""memory":4194305"#),
        (r#""time":4"#, r#""time":4294967295"#),
        (r#""cpus":"#, r#""cpus":99"#),
    ] {
        assert_eq!(changed(from, to).kind(), ErrorKind::TooLarge, "{to}");
    }
    assert_eq!(changed(r#""memory":1024"#, r#""memory":4e99"#).kind(), ErrorKind::Corrupt);
    let e = changed(r#""stripes":4000"#, r#""stripes":9999"#);
    assert_eq!(e.kind(), ErrorKind::Corrupt, "{e:?}");
    let e = changed(r#""key_size":64"#, r#""key_size":00"#);
    assert_eq!(e.kind(), ErrorKind::Corrupt, "{e:?}");
}

fn amend(image: &dyn Image, force: bool, options: &[(&str, &str)]) -> Result<()> {
    let given: Vec<_> = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let wishes = CreateOptions::parse(LuksDriver.amend_options(), &given)?;
    let secret = |id: &str| Ok(SecretBytes::new(id.into()));
    image.amend(&Amendment { options: &wishes, force, secret: &secret }, &Unwatched)
}

/// Slots 6 (which crosses a sector's end) and 7 are set and erased: a crash at any point leaves a header
/// that the first passphrase opens.
#[test]
fn key_slots_and_crashes() {
    let base = create(&LuksDriver, 4096, SMALL).unwrap();
    let disk = read(&base);
    let storage = Arc::new(CrashStorage::new("image", base.clone()));
    let target = node(&LuksDriver, Arc::clone(&storage) as Arc<dyn Storage>, Access::Write);
    for slot in ["6", "7"] {
        let set = [("state", "active"), ("new-secret", "other"), ("keyslot", slot)];
        amend(target.image(), false, &[&set[..], &[("iter-time", "0")]].concat()).unwrap();
    }
    let erase = [("state", "inactive"), ("old-secret", "other")];
    amend(target.image(), false, &erase).unwrap();
    let again = amend(target.image(), false, &erase).unwrap_err();
    assert_eq!(again.message(), "No keyslots match given (old) password for erase operation");
    drop(target);
    let history = storage.history(base);
    let mut dice = Dice(7);
    for at in 0..=history.events.len() {
        assert!(read(&history.prefix(at)) == disk, "after {at}");
        for eighths in [1, 4, 7] {
            let bytes = history.power_loss(at, || dice.roll(8) < eighths);
            assert!(read(&bytes) == disk, "after {at}, power loss");
        }
    }
}

#[test]
fn damaged_headers() {
    let good = create(&LuksDriver, 4096, SMALL).unwrap();
    let words = |at: usize, bytes: &[u8]| {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        let e = refused(&LuksDriver, &bad);
        assert!(e.offset().is_some() && e.path().is_some(), "{e:?}");
        e.message().to_owned()
    };
    assert_eq!(words(0, b"X"), "Volume is not in LUKS format");
    assert_eq!(words(7, &[9]), "LUKS version 9 is not supported");
    assert_eq!(words(8, &[65; 32]), "LUKS header cipher name is not NUL terminated");
    assert_eq!(words(40, &[65; 32]), "LUKS header cipher mode is not NUL terminated");
    assert_eq!(words(40, b"cbc_plain\0"), "Unexpected cipher mode string format 'cbc_plain'");
    assert_eq!(words(104, &[0, 0, 0, 7]), "LUKS payload is overlapping with the header");
    assert_eq!(words(104, &[0, 0, 0, 99]), "Keyslot 0 is overlapping with the encrypted payload");
    assert!(words(104, &[0xff; 4]).contains("beyond the end of the file"));
    assert!(words(108, &[0xff; 4]).contains("not supported"));
    assert_eq!(words(164, &[0; 4]), "LUKS key iteration count is zero");
    assert_eq!(words(208, &[1]), "Keyslot 0 state (active/disable) is corrupted");
    assert_eq!(words(212, &[0; 4]), "Keyslot 0 iteration count is zero");
    assert_eq!(words(248, &[0; 4]), "Keyslot 0 is overlapping with the LUKS header");
    assert_eq!(words(252, &[0xff; 4]), "Keyslot 0 is corrupted (stripes -1 != 4000)");
    assert_eq!(words(300, &[0xff; 4]), "Keyslot 1 is corrupted (stripes -1 != 4000)");
    let begun = std::time::Instant::now();
    for at in [212, 164] {
        let mut bad = good.clone();
        bad[at..at + 4].fill(0xff);
        assert_eq!(refused(&LuksDriver, &bad).kind(), ErrorKind::TooLarge, "at {at}");
    }
    assert!(begun.elapsed().as_secs() < 60, "hopeless counts take no time");
    let places = (0..592).step_by(3).filter(|at| !(164..168).contains(at) && *at != 213);
    for at in places {
        for value in [0xff, 0, 0x80] {
            // Large round counts are legal, and slow.
            if matches!(at, 212 | 214 | 215) {
                continue;
            }
            let mut bad = good.clone();
            bad[at] = value;
            challenge(&LuksDriver, &bad);
        }
    }
    for cut in [0, 8, 100, 591, 592, 4096, 70_000, good.len() - 4096] {
        challenge(&LuksDriver, &good[..cut]);
    }
}

#[test]
fn images_of_others() {
    let dir = Dir::new();
    let hash = |name: &str, passphrase: &str| {
        let node = open_file(&dir, name, passphrase).unwrap();
        let digest = crate::crypto::Hash::Sha256.digest(&[&content(&node)]);
        digest.iter().map(|b| format!("{b:02x}")).collect::<String>()
    };
    const SAME: &str = "4b5b97e5da01df338841586d8e70df1d27e7a0ac18d42049ed1115e4d4a50f04";
    for (path, passphrases, wanted) in [
        (
            "luks/cryptsetup-compatimage-old.img.xz",
            &["compatkey"][..],
            "eb793453f65dfd0d72331066631d4ae6aecbc7a22ea6c46581b093f2c4264151",
        ),
        ("luks/cs26-aes-cbc-essiv_sha256-256-sha1.luks", &["corpus-pass"], SAME),
        ("luks/cs26-aes-xts-plain64-512-sha256.luks", &["corpus-pass", "second-pass"], SAME),
    ] {
        if dir.unpack(path, "image").is_none() {
            return;
        }
        for passphrase in passphrases {
            assert_eq!(hash("image", passphrase), wanted, "{path}");
        }
        assert!(open_file(&dir, "image", "no").is_err());
    }
    dir.unpack("luks/evil_hdr-keyslot_overlap.img.xz", "evil").unwrap();
    let e = open_file(&dir, "evil", "x").unwrap_err().report();
    assert!(e.contains("Keyslots 1 and 2 are overlapping in the header"), "{e}");
    dir.unpack("luks/cryptsetup-hdr-luks1_aes-xts-plain64-sha256.img.xz", "wiped").unwrap();
    let e = open_file(&dir, "wiped", "x").unwrap_err().report();
    assert!(e.contains("cannot unlock any keyslot"), "{e}");
}
