//! Images made by other products: known content, there and back; and hostile ones.
//!
//! The images in `testdata/` are always used, those of the shared corpus where it is found
//! (`$CORPUS`, or `shared/corpus` beside the workspace).

#![allow(clippy::unwrap_used)] // all of it is test code

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use suite::content::sha256;
use suite::corpus::{Corpus, Row};
use suite::hostile;
use suite::process::{End, Invocation};
use suite::roundtrip::{Programs, digest_trip, round_trip};
use suite::tools;

/// The formats that are whole so far.
const FORMATS: &[&str] = &[
    "raw",
    "qcow2",
    "qcow",
    "qed",
    "parallels",
    "vmdk",
    "vdi",
    "vhd",
    "vhdx",
    "bochs",
    "cloop",
    "dmg",
];

/// Formats whose images need a passphrase: their content is compared in the format's own tests; here they
/// are only challenged.
const ENCRYPTED: &[&str] = &["luks"];

/// Disks larger than this are compared by digest, and do not become raw.
const HUGE: u64 = 64 << 30;

#[test]
fn images_in_testdata_convert_to_their_known_content_and_back() {
    let corpus = Corpus::load(tools::workspace().join("testdata")).unwrap();
    assert!(corpus.rows.len() >= 5, "testdata/MANIFEST.tsv has lost rows");
    convert_all(&corpus);
}

#[test]
fn images_by_other_products_convert_to_their_known_content_and_back() {
    match Corpus::find() {
        Ok(corpus) => convert_all(&corpus),
        Err(why) => tools::skip("the images by other products", &why),
    }
}

#[test]
fn an_overlay_of_user_mode_linux_shows_its_disk() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let testdata = tools::workspace().join("testdata");
    let corpus = Corpus::load(testdata).unwrap();
    let row = |name: &str| corpus.rows.iter().find(|r| r.name() == name).unwrap();
    let rimg = |args: &[&str]| {
        let said = Invocation::new(tools::rimg().unwrap(), dir.path()).args(args).run().unwrap();
        (said.end == End::Exit(0), String::from_utf8_lossy(&said.stderr).into_owned())
    };
    let overlay = row("uml-empty.cow");
    corpus.unpack(overlay, dir.path()).unwrap();
    corpus.unpack(row("p12m-64k.cloop"), dir.path()).unwrap();
    let (done, said) = rimg(&["convert", "-f", "cloop", "-O", "raw", "p12m-64k.cloop", "disk.raw"]);
    assert!(done, "{said}");
    // It names a disk that was in a folder of whoever made it.
    let (done, said) = rimg(&["convert", "-O", "raw", "uml-empty.cow", "all.raw"]);
    assert!(!done && said.contains("umlbase.raw"), "{said}");
    let opts =
        "driver=cow,file.filename=uml-empty.cow,backing.driver=raw,backing.file.filename=disk.raw";
    let (done, said) = rimg(&["convert", "--image-opts", "-O", "raw", opts, "all.raw"]);
    assert!(done, "{said}");
    assert_eq!(sha256(&dir.path().join("all.raw")).unwrap(), overlay.sha256_content);
}

#[test]
fn hostile_images_are_refused_within_bounds() {
    let corpus = match Corpus::find() {
        Ok(corpus) => corpus,
        Err(why) => return tools::skip("the hostile images", &why),
    };
    let rimg = tools::rimg().unwrap();
    let ours = |row: &&Row| {
        // Third-party rows name no format; their names tell.
        let named = [".qcow2", ".vmdk"].iter().any(|end| row.name().ends_with(end));
        let format = row.format.as_str();
        FORMATS.contains(&format)
            || ENCRYPTED.contains(&format)
            || (row.driver().is_none() && named)
    };
    let rows: Vec<&Row> =
        corpus.rows.iter().filter(|row| row.is_hostile() && !row.is_part()).filter(ours).collect();
    each(&rows, |row, dir| hostile::challenge(&rimg, &corpus, row, &dir));
}

fn convert_all(corpus: &Corpus) {
    let judge = match tools::Reference::find() {
        Ok(reference) => Some(reference.img),
        Err(why) => {
            tools::skip("the second opinion of qemu-img on converted images", &why);
            None
        }
    };
    let programs = Programs { rimg: tools::rimg().unwrap(), judge };
    let (rows, huge): (Vec<&Row>, Vec<&Row>) = corpus
        .images(FORMATS)
        // A differencing VHDX is there to be refused by qemu-img only.
        .filter(|row| !row.is_hostile() || row.path.contains("synth-diff"))
        .partition(|row| row.virtual_size.is_none_or(|size| size <= HUGE));
    each(&rows, |row, dir| round_trip(&programs, corpus, row, &dir));
    each(&huge, |row, dir| digest_trip(&programs, corpus, row, &dir));
}

/// Runs `job` on every row in a directory of its own, on two threads, and fails with all complaints.
fn each(rows: &[&Row], job: impl Fn(&Row, PathBuf) -> Result<Vec<String>, String> + Sync) {
    let next = AtomicUsize::new(0);
    let complaints: Mutex<Vec<String>> = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
                    let found = job(row, dir.path().to_path_buf()).unwrap_or_else(|why| vec![why]);
                    let found = found.iter().map(|what| format!("{}: {what}", row.path));
                    complaints.lock().unwrap().extend(found);
                }
            });
        }
    });
    let complaints = complaints.into_inner().unwrap();
    let bad: std::collections::BTreeSet<_> =
        complaints.iter().filter_map(|line| line.split(": ").next()).collect();
    tools::say(&format!("{} of {} images behave", rows.len() - bad.len(), rows.len()));
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}
