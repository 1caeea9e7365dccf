//! Every check against a passing and a failing tree.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cases;
mod shapes;

use std::collections::BTreeSet;

use hostprep::check::{self, CHECKS, Status};
use hostprep::wanted::{Profile, Wanted};

use Status::Warning;
use cases::{all, guests};
use shapes::{Shape, amd, big, intel};

#[test]
fn every_case() {
    let wrong: Vec<String> = all().iter().filter_map(|case| case.run().err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_check_has_two_different_trees() {
    let cases = all();
    for check in CHECKS {
        let seen: BTreeSet<Status> =
            cases.iter().filter(|case| case.id == check.id).map(|case| case.expected).collect();
        let texts: BTreeSet<&str> =
            cases.iter().filter(|case| case.id == check.id).map(|case| case.says).collect();
        // net.manager only ever informs: there different texts count.
        assert!(
            seen.len() > 1 || (check.id == "net.manager" && texts.len() > 1),
            "{} has {seen:?}",
            check.id
        );
    }
}

#[test]
fn table_is_stable() {
    assert_eq!(CHECKS.len(), 64);
    let ids: BTreeSet<&str> = CHECKS.iter().map(|check| check.id).collect();
    assert_eq!(ids.len(), 64);
    for (index, check) in CHECKS.iter().enumerate() {
        assert_eq!(check.number as usize, index + 1);
    }
}

#[test]
fn good_hosts_have_nothing_worse_than_facts() {
    for shape in [intel(), amd(), big()] {
        let fake = shape.build();
        let findings = check::run(&fake.host, &Wanted::default(), &[]).unwrap();
        for finding in &findings {
            assert!(
                finding.outcome.status < Warning,
                "{}: {}",
                finding.id,
                finding.outcome.summary
            );
        }
    }
}

#[test]
fn empty_and_hostile_trees_only_cost_findings() {
    let empty = Shape::default().build();
    check::run(&empty.host, &Wanted::default(), &[]).unwrap();

    let mut hostile = big();
    let paths: Vec<String> = hostile.0.files.keys().cloned().collect();
    let junk: [&[u8]; 5] = [
        b"\xff\xfe\0\0",
        b"-1",
        b"99999999999999999999999",
        b"0-4294967295",
        b"Node 0, zone , : - - x",
    ];
    for (index, path) in paths.iter().enumerate() {
        hostile.bytes(path, junk[index % junk.len()]);
    }
    // Links out of the root, in a circle, and to an endless file.
    hostile.remove("/proc/meminfo").link("/proc/meminfo", "/dev/zero");
    hostile.remove("/proc/swaps").link("/proc/swaps", "/proc/swaps");
    hostile.remove("/etc/group").link("/etc/group", "/../../../../../../../../etc/group");
    let fake = hostile.build();
    let mut wanted = Wanted { guests: guests("9x1Gx3"), ..Wanted::default() };
    for profile in [Profile::General, Profile::Server, Profile::Latency, Profile::Passthrough] {
        wanted.profile = profile;
        check::run(&fake.host, &wanted, &[]).unwrap();
    }
    assert!(fake.host.read("/etc/group").is_err(), "a link led out of the root");
}

#[test]
fn sixty_four_cpus() {
    // How long that takes is measured by `cargo bench -p hostprep`.
    let fake = big().build();
    let findings = check::run(&fake.host, &Wanted::default(), &[]).unwrap();
    assert_eq!(findings.len(), 64);
    assert_eq!(fake.host.topology().online().len(), 64);
}

/// Facts come from files and system calls: nothing that checks or reads starts a program.
#[test]
fn facts_start_no_program() {
    let sources = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut looked = 0;
    for folder in ["check", "host", "report", "cpu"] {
        for entry in std::fs::read_dir(sources.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            for word in ["process::Command", "Command::new", "Programs", "libc::system", "execv"] {
                assert!(!text.contains(word), "{} has {word}", path.display());
            }
            looked += 1;
        }
    }
    assert!(looked > 25, "only {looked} files");
}

#[test]
fn unknown_names_are_refused_with_a_hint() {
    let fake = intel().build();
    let error = check::run(&fake.host, &Wanted::default(), &["kvm.ru".into()]).unwrap_err();
    assert!(error.remedy_text().unwrap().contains("kvm.run"));
    assert_eq!(check::run(&fake.host, &Wanted::default(), &["mem".into()]).unwrap().len(), 13);
    assert_eq!(
        check::run(&fake.host, &Wanted::default(), &["1".into(), "64".into()]).unwrap().len(),
        2
    );
}
