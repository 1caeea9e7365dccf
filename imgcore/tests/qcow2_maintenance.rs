//! Check, repair, snapshots, bitmaps and amend of qcow2 side by side with the installed qemu-img: each
//! judges what the other did. Skipped, visibly, where there is none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Mutex;
use std::time::SystemTime;

use common::{Folder, Rng, assert_checks_clean, open, qemu_img};
use imgcore::format::{
    self, Access, Amendment, CheckReport, CreateOptions, Image, OpenContext, OpenGate, Repair,
    SnapshotSelector, Unwatched, Watcher,
};
use imgcore::graph::Node;
use imgcore::storage::Preallocation;

fn have_oracle() -> bool {
    let found = Command::new("qemu-img").arg("--version").output().is_ok()
        && Command::new("qemu-io").arg("--version").output().is_ok();
    if !found {
        eprintln!("SKIPPED: no qemu-img and qemu-io");
    }
    found
}

fn qemu(dir: &Path, args: &[&str]) -> Output {
    qemu_img(dir, args).unwrap()
}

fn must(dir: &Path, args: &[&str]) -> Output {
    let out = qemu(dir, args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    out
}

fn io(dir: &Path, commands: &[String], name: &str) {
    let mut run = Command::new("qemu-io");
    for c in commands {
        run.args(["-c", c]);
    }
    run.current_dir(dir).arg(name).output().unwrap();
}

#[derive(Default)]
struct Lines(Mutex<Vec<String>>);

impl Watcher for Lines {
    fn note(&self, line: &str) {
        self.0.lock().unwrap().push(line.to_owned());
    }
}

fn open_to_check(dir: &Path, name: &str, access: Access) -> imgcore::Result<Box<dyn Image>> {
    let gate = Folder(dir.to_owned(), name.to_owned());
    format::driver("qcow2").unwrap().open(OpenContext {
        storage: gate.open_storage(name, access)?,
        access,
        gate: &gate,
        snapshot: None,
        data_file: None,
        scratch: false,
        header_only: false,
        for_check: true,
        options: &[],
    })
}

fn check(
    dir: &Path,
    name: &str,
    repair: Repair,
) -> imgcore::Result<(imgcore::Result<CheckReport>, Vec<String>)> {
    let access = if repair == Repair::Nothing { Access::Read } else { Access::Write };
    let image = open_to_check(dir, name, access)?;
    let lines = Lines::default();
    let report = image.check(repair, &lines).unwrap();
    if repair != Repair::Nothing && report.is_ok() {
        image.close()?;
    }
    Ok((report, lines.0.into_inner().unwrap()))
}

/// What the guest sees, by qemu-img.
fn content(dir: &Path, name: &str, snapshot: Option<&str>) -> Vec<u8> {
    let mut args = vec!["convert", "-O", "raw"];
    if let Some(s) = snapshot {
        args.extend(["-l", s]);
    }
    args.extend([name, "content.raw"]);
    must(dir, &args);
    std::fs::read(dir.join("content.raw")).unwrap()
}

/// What the guest sees, by this crate.
fn own_content(dir: &Path, name: &str, snapshot: Option<&str>) -> Vec<u8> {
    let gate = Folder(dir.to_owned(), name.to_owned());
    let image = format::driver("qcow2")
        .unwrap()
        .open(OpenContext {
            storage: gate.open_storage(name, Access::Read).unwrap(),
            access: Access::Read,
            gate: &gate,
            snapshot: snapshot.map(|s| SnapshotSelector::IdOrName(s.to_owned())),
            data_file: None,
            scratch: false,
            header_only: false,
            for_check: false,
            options: &[],
        })
        .unwrap();
    let node = Node::new(name, image, None, Access::Read);
    let mut all = vec![0; usize::try_from(node.virtual_size()).unwrap()];
    node.read(0, &mut all).unwrap();
    all
}

fn pick<'a, T: ?Sized>(rng: &mut Rng, from: &[&'a T]) -> &'a T {
    from[usize::try_from(rng.below(from.len() as u64)).unwrap()]
}

/// Random writes of every kind through qemu-io.
fn random_writes(rng: &mut Rng, cluster: u64, size: u64) -> Vec<String> {
    (0..1 + rng.below(7))
        .map(|_| {
            let at = rng.below(size / 512) * 512;
            let len = ((1 + rng.below(20)) * cluster / 1024 * 512).max(512).min(size - at);
            match rng.below(20) {
                0..12 => format!("write -P {} {at} {len}", 1 + rng.below(255)),
                12..15 => format!("write -z {at} {len}"),
                15..17 => format!("discard {at} {len}"),
                _ => format!("write -c -P 7 {} {cluster}", at / cluster * cluster),
            }
        })
        .collect()
}

/// Host offsets of words that matter: L1 and L2 entries, the refcount table, the first refcount block.
fn metadata_words(bytes: &[u8], cluster: u64) -> Vec<usize> {
    let word =
        |at: usize| bytes.get(at..at + 8).map_or(0, |b| u64::from_be_bytes(b.try_into().unwrap()));
    let l1_size = usize::try_from(word(32) & 0xffff_ffff).unwrap();
    let l1 = usize::try_from(word(40)).unwrap();
    let table = usize::try_from(word(48)).unwrap();
    let block = usize::try_from(word(table)).unwrap();
    let cluster = usize::try_from(cluster).unwrap();
    let mut all = vec![table, table + 8];
    all.extend((0..64).map(|i| block + i * 8));
    for i in 0..l1_size {
        all.push(l1 + i * 8);
        let l2 = usize::try_from(word(l1 + i * 8) & 0x00ff_ffff_ffff_fe00).unwrap();
        all.extend((0..cluster / 8).map(|j| l2 + j * 8).filter(|&at| l2 != 0 && word(at) != 0));
    }
    all.retain(|at| at + 8 <= bytes.len());
    all
}

fn damage(rng: &mut Rng, bytes: &mut [u8], words: &[usize]) {
    for _ in 0..rng.below(4) {
        let at = words[usize::try_from(rng.below(words.len() as u64)).unwrap()];
        let byte = at + usize::try_from(rng.below(8)).unwrap();
        match rng.below(4) {
            0 => bytes[byte] ^= 1 << rng.below(8),
            1 => bytes[at..at + 8].fill(0),
            2 => {
                let from = words[usize::try_from(rng.below(words.len() as u64)).unwrap()];
                bytes.copy_within(from..from + 8, at);
            }
            _ => bytes[byte] = rng.next().to_le_bytes()[0],
        }
    }
}

/// How bad an exit code of `qemu-img check` is.
fn badness(out: &Output) -> u32 {
    match out.status.code() {
        Some(0) => 0,
        Some(3) => 1,
        Some(2) => 2,
        _ => 3,
    }
}

#[test]
fn damaged_images_get_the_same_report_and_no_worse_repair() {
    if !have_oracle() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for seed in 0..60 {
        let mut rng = Rng(seed);
        let cluster: u64 = pick(&mut rng, &["512", "1024", "4096", "65536"]).parse().unwrap();
        let bits = pick(&mut rng, &["1", "2", "8", "16", "16", "32", "64"]);
        let options = format!("cluster_size={cluster},refcount_bits={bits}");
        let size = cluster * 200;
        must(dir, &["create", "-q", "-f", "qcow2", "-o", &options, "a.qcow2", &size.to_string()]);
        io(dir, &random_writes(&mut rng, cluster, size), "a.qcow2");
        if *bits != *"1" && rng.below(2) == 0 {
            qemu(dir, &["snapshot", "-c", "s", "a.qcow2"]);
            io(dir, &random_writes(&mut rng, cluster, size), "a.qcow2");
        }
        let mut bytes = std::fs::read(dir.join("a.qcow2")).unwrap();
        let words = metadata_words(&bytes, cluster);
        damage(&mut rng, &mut bytes, &words);
        std::fs::write(dir.join("a.qcow2"), &bytes).unwrap();
        let Ok((ours, lines)) = check(dir, "a.qcow2", Repair::Nothing) else {
            let theirs = qemu(dir, &["check", "a.qcow2"]);
            assert_eq!(theirs.status.code(), Some(1), "seed {seed}: refused only here");
            continue;
        };
        let theirs = qemu(dir, &["check", "-f", "qcow2", "--output=json", "a.qcow2"]);
        let json: Option<serde_json::Value> = serde_json::from_slice(&theirs.stdout).ok();
        if let (Ok(r), Some(json)) = (&ours, &json) {
            let n = |name: &str| json.get(name).and_then(serde_json::Value::as_u64).unwrap_or(0);
            let want = [
                ("check-errors", r.check_errors),
                ("corruptions", r.corruptions),
                ("leaks", r.leaks),
                ("image-end-offset", r.image_end_offset.unwrap()),
                ("total-clusters", r.total_clusters.unwrap()),
                ("allocated-clusters", r.allocated_clusters.unwrap()),
                ("fragmented-clusters", r.fragmented_clusters.unwrap()),
                ("compressed-clusters", r.compressed_clusters.unwrap()),
            ];
            for (name, ours) in want {
                assert_eq!(ours, n(name), "seed {seed}: {name}: {lines:?}");
            }
            let said = String::from_utf8_lossy(&theirs.stderr).into_owned();
            let mut said: Vec<&str> =
                said.lines().filter(|l| !l.is_empty() && !l.starts_with("qemu-img:")).collect();
            let mut mine: Vec<&str> = lines.iter().map(String::as_str).collect();
            said.sort_unstable();
            mine.sort_unstable();
            if r.check_errors == 0 {
                assert_eq!(mine, said, "seed {seed}");
            }
        }
        for (repair, word) in [(Repair::Leaks, "leaks"), (Repair::All, "all")] {
            for name in ["o.qcow2", "q.qcow2"] {
                std::fs::write(dir.join(name), &bytes).unwrap();
            }
            let _ = check(dir, "o.qcow2", repair).unwrap();
            qemu(dir, &["check", "-q", "-f", "qcow2", "-r", word, "q.qcow2"]);
            let ours = qemu(dir, &["check", "-f", "qcow2", "o.qcow2"]);
            let theirs = qemu(dir, &["check", "-f", "qcow2", "q.qcow2"]);
            assert!(
                badness(&ours) <= badness(&theirs),
                "seed {seed}, -r {word}: {}",
                String::from_utf8_lossy(&ours.stderr)
            );
        }
    }
}

#[test]
fn snapshots_by_turns() {
    if !have_oracle() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for seed in 0..16 {
        let mut rng = Rng(1000 + seed);
        let cluster: u64 = pick(&mut rng, &["512", "4096", "65536"]).parse().unwrap();
        let bits = pick(&mut rng, &["8", "16", "64"]);
        let extended = cluster >= 16384 && rng.below(3) == 0;
        let mut options = format!("cluster_size={cluster},refcount_bits={bits}");
        if extended {
            options.push_str(",extended_l2=on");
        }
        let mut size = cluster * 200;
        must(dir, &["create", "-q", "-f", "qcow2", "-o", &options, "a.qcow2", &size.to_string()]);
        let mut taken: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for step in 0..9 {
            let own = rng.below(3) != 0;
            let now = content(dir, "a.qcow2", None);
            let some = taken.keys().nth(usize::try_from(rng.below(3)).unwrap()).cloned();
            match (rng.below(8), some) {
                (0..3, _) => io(dir, &random_writes(&mut rng, cluster, size), "a.qcow2"),
                (3..5, _) => {
                    let name = format!("s{step}");
                    snapshot(dir, own, "-c", &name);
                    taken.insert(name, now.clone());
                    assert!(content(dir, "a.qcow2", None) == now, "seed {seed} step {step}");
                }
                (5, Some(name)) => {
                    snapshot(dir, own, "-d", &name);
                    taken.remove(&name);
                    assert!(content(dir, "a.qcow2", None) == now, "seed {seed} step {step}");
                }
                (6, Some(name)) => {
                    snapshot(dir, own, "-a", &name);
                    let seen = content(dir, "a.qcow2", None);
                    assert!(seen == taken[&name], "seed {seed} step {step}");
                    size = seen.len() as u64;
                }
                (7, _) => {
                    size = (size / 1024 + rng.below(size / 512)) * 512;
                    let node = open(dir, "a.qcow2", "qcow2", Access::Write).unwrap();
                    node.resize(size, Preallocation::Off).unwrap();
                    node.close().unwrap();
                }
                _ => {}
            }
            assert_checks_clean(dir, "a.qcow2", "qcow2");
            let (report, lines) = check(dir, "a.qcow2", Repair::Nothing).unwrap();
            let report = report.unwrap();
            assert_eq!((report.corruptions, report.leaks), (0, 0), "seed {seed}: {lines:?}");
        }
        for name in taken.keys() {
            let (theirs, ours) =
                (content(dir, "a.qcow2", Some(name)), own_content(dir, "a.qcow2", Some(name)));
            assert!(theirs == ours, "seed {seed}: {name}");
        }
    }
}

fn snapshot(dir: &Path, own: bool, what: &str, name: &str) {
    if !own {
        must(dir, &["snapshot", what, name, "a.qcow2"]);
        return;
    }
    let node = open(dir, "a.qcow2", "qcow2", Access::Write).unwrap();
    let store = node.image().snapshots().unwrap();
    match what {
        "-c" => store.create(name, SystemTime::now()),
        "-d" => store.delete(name),
        _ => store.apply(name),
    }
    .unwrap();
    node.close().unwrap();
}

#[test]
fn refused_snapshot_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    common::create(dir, "a.qcow2", "qcow2", 1 << 20, &[("refcount_bits", "1")], None).unwrap();
    let node = open(dir, "a.qcow2", "qcow2", Access::Write).unwrap();
    node.write(0, &[5; 100_000]).unwrap();
    node.flush().unwrap();
    let before = std::fs::read(dir.join("a.qcow2")).unwrap();
    let store = node.image().snapshots().unwrap();
    let e = store.create("s", SystemTime::now()).unwrap_err();
    assert_eq!(e.raw_errno(), Some(22));
    assert_eq!(store.delete("s").unwrap_err().message(), "Can't find the snapshot");
    node.close().unwrap();
    assert!(std::fs::read(dir.join("a.qcow2")).unwrap() == before);
    assert_checks_clean(dir, "a.qcow2", "qcow2");
}

/// Dirty ranges as qemu-nbd exports them.
fn nbd_ranges(dir: &Path, bitmap: &str) -> Option<Vec<(u64, u64)>> {
    std::fs::copy(dir.join("a.qcow2"), dir.join("n.qcow2")).unwrap();
    must(dir, &["bitmap", "--disable", "n.qcow2", bitmap]);
    let socket = dir.join("socket");
    let _ = std::fs::remove_file(&socket);
    let mut server = Command::new("qemu-nbd")
        .current_dir(dir)
        .args(["-r", "-f", "qcow2", "-B", bitmap, "-k"])
        .arg(&socket)
        .arg("n.qcow2")
        .spawn()
        .ok()?;
    for _ in 0..500 {
        if socket.exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let image = format!(
        "driver=nbd,server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}",
        socket.display()
    );
    let out = qemu(dir, &["map", "--output=json", "--image-opts", &image]);
    let _ = server.kill();
    let _ = server.wait();
    let list: Vec<serde_json::Value> = serde_json::from_slice(&out.stdout).unwrap();
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for e in list.iter().filter(|e| e["data"] == false) {
        let (start, len) = (e["start"].as_u64().unwrap(), e["length"].as_u64().unwrap());
        match ranges.last_mut() {
            Some((at, n)) if *at + *n == start => *n += len,
            _ => ranges.push((start, len)),
        }
    }
    Some(ranges)
}

#[test]
fn bitmaps_by_turns() {
    if !have_oracle() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for seed in 0..12 {
        let mut rng = Rng(2000 + seed);
        let cluster = pick(&mut rng, &["512", "4096", "65536"]);
        let granularity = pick(&mut rng, &["512", "4096", "65536"]);
        let mut size = 512 * (1000 + rng.below(4000));
        let options = format!("cluster_size={cluster}");
        must(dir, &["create", "-q", "-f", "qcow2", "-o", &options, "a.qcow2", &size.to_string()]);
        let mut names = vec!["b".to_owned()];
        must(dir, &["bitmap", "--add", "-g", granularity, "a.qcow2", "b"]);
        for step in 0..8 {
            let own = rng.below(2) == 0;
            let name = names[usize::try_from(rng.below(names.len() as u64)).unwrap()].clone();
            let at = rng.below(size / 512) * 512;
            let len = (512 * (1 + rng.below(60))).min(size - at);
            let new = format!("b{step}");
            let what = rng.below(6);
            if own {
                let node = open(dir, "a.qcow2", "qcow2", Access::Write).unwrap();
                let store = node.image().bitmaps().unwrap();
                match what {
                    0..2 => node.write(at, &vec![9; usize::try_from(len).unwrap()]).unwrap(),
                    2 => store.add(&new, granularity.parse().unwrap()).unwrap(),
                    3 => store.mark(&name, &[(at, len)]).unwrap(),
                    4 => store.set_enabled(&name, rng.below(3) != 0).unwrap(),
                    _ => {
                        size = (size / 1024 + rng.below(size / 512)) * 512;
                        node.resize(size, Preallocation::Off).unwrap();
                    }
                }
                node.close().unwrap();
            } else {
                match what {
                    0..2 => io(dir, &[format!("write {at} {len}")], "a.qcow2"),
                    2 => drop(must(dir, &["bitmap", "--add", "-g", granularity, "a.qcow2", &new])),
                    3 => drop(must(dir, &["bitmap", "--clear", "a.qcow2", &name])),
                    4 => drop(must(dir, &["bitmap", "--enable", "a.qcow2", &name])),
                    _ => {
                        size = (size / 1024 + rng.below(size / 512)) * 512;
                        let size = size.to_string();
                        must(dir, &["resize", "-q", "--shrink", "-f", "qcow2", "a.qcow2", &size]);
                    }
                }
            }
            if what == 2 {
                names.push(new);
            }
            assert_checks_clean(dir, "a.qcow2", "qcow2");
        }
        for name in &names {
            let node = open(dir, "a.qcow2", "qcow2", Access::Read).unwrap();
            let ours = node.image().bitmaps().unwrap().dirty_ranges(name).unwrap();
            if let Some(theirs) = nbd_ranges(dir, name) {
                assert_eq!(ours, theirs, "seed {seed}: {name}");
            }
        }
    }
}

#[test]
fn amending_by_turns() {
    if !have_oracle() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let driver = format::driver("qcow2").unwrap();
    for seed in 0..16 {
        let mut rng = Rng(3000 + seed);
        let cluster: u64 = pick(&mut rng, &["512", "4096", "65536"]).parse().unwrap();
        let size = 1 << 20;
        let options = format!("cluster_size={cluster}");
        must(dir, &["create", "-q", "-f", "qcow2", "-o", &options, "a.qcow2", &size.to_string()]);
        for _ in 0..5 {
            io(dir, &random_writes(&mut rng, cluster, size), "a.qcow2");
            let change = pick(
                &mut rng,
                &[
                    "compat=0.10",
                    "compat=1.1",
                    "refcount_bits=1",
                    "refcount_bits=64",
                    "refcount_bits=16",
                    "lazy_refcounts=on",
                    "lazy_refcounts=off",
                    "backing_file=x",
                    "compat=9",
                    "refcount_bits=3",
                    "data_file=x",
                    "data_file_raw=on",
                ],
            );
            std::fs::copy(dir.join("a.qcow2"), dir.join("q.qcow2")).unwrap();
            let before = content(dir, "a.qcow2", None);
            let theirs = qemu(dir, &["amend", "-o", change, "q.qcow2"]);
            let (name, value) = change.split_once('=').unwrap();
            let wishes = CreateOptions::parse(
                driver.amend_options(),
                &[(name.to_owned(), value.to_owned())],
            )
            .unwrap();
            let node = open(dir, "a.qcow2", "qcow2", Access::Write).unwrap();
            let secret = |_: &str| Err(imgcore::Error::errno(libc::ENOKEY));
            let request = Amendment { options: &wishes, force: false, secret: &secret };
            let ours = node.image().amend(&request, &Unwatched);
            node.close().unwrap();
            assert_eq!(ours.is_ok(), theirs.status.success(), "seed {seed}: {change}: {ours:?}");
            if let Err(e) = &ours {
                let said = String::from_utf8_lossy(&theirs.stderr);
                assert!(said.contains(e.message()), "{change}: {said} | {}", e.message());
            }
            let info = |name: &str| {
                let out = must(dir, &["info", "--output=json", name]);
                let all: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
                all["format-specific"].clone()
            };
            assert_eq!(info("a.qcow2"), info("q.qcow2"), "seed {seed}: {change}");
            assert!(content(dir, "a.qcow2", None) == before, "seed {seed}: {change}");
            assert_checks_clean(dir, "a.qcow2", "qcow2");
        }
    }
}
