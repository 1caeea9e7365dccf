//! How long all checks take on a host with 64 CPUs (a fake tree) and on this machine: `cargo bench -p hostprep`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../tests/shapes/mod.rs"]
mod shapes;

use std::time::{Duration, Instant};

use hostprep::check;
use hostprep::host::Host;
use hostprep::wanted::Wanted;

/// Median and worst of many runs. A host is read anew for each: it keeps what it has read.
fn measure(name: &str, mut host: impl FnMut() -> Host) {
    let mut times: Vec<Duration> = (0..50)
        .map(|_| {
            let host = host();
            let start = Instant::now();
            let findings = check::run(&host, &Wanted::default(), &[]).unwrap();
            assert_eq!(findings.len(), 64);
            start.elapsed()
        })
        .collect();
    times.sort();
    println!("{name:<30} median {:>9.3?}   worst {:>9.3?}", times[times.len() / 2], times[49]);
}

fn main() {
    // `cargo test --benches` passes this.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let shape = shapes::big();
    let fake = shape.build();
    measure("64 CPUs, fake tree", || Host::below(fake.folder.path(), shape.0.facts.clone()));
    measure("this machine", Host::live);
}
