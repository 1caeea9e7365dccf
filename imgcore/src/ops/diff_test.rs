#![allow(clippy::unwrap_used)]
use super::*;
use crate::format::Unwatched;
use crate::graph::open::Policy;
use crate::opts::secret::Secrets;

fn ranges(a: &[u8], b: &[u8], granularity: u64) -> (Vec<(u64, u64)>, DiffReport) {
    let dir = tempfile::tempdir().unwrap();
    let arg = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let mut arg = ImageArg::file(path.to_string_lossy());
        arg.request.driver = Some("raw".into());
        arg
    };
    let options = DiffOptions { first: arg("a", a), second: arg("b", b), granularity };
    let job = Job { policy: &Policy::folder(), watcher: &Unwatched, secrets: &Secrets::default() };
    let mut all = Vec::new();
    let report = diff(&options, &job, &mut |range| {
        all.push((range.start, range.length));
        Ok(())
    })
    .unwrap();
    assert_eq!(report.ranges, len_u64(all.len()));
    assert_eq!(report.bytes, all.iter().map(|r| r.1).sum::<u64>());
    (all, report)
}

#[test]
fn every_sector_that_differs_is_told_once_and_in_order() {
    let mut a = vec![5u8; 3 << 20];
    let mut b = a.clone();
    assert!(ranges(&a, &b, 512).0.is_empty());
    // Across the border of two pieces, at the beginning, and alone.
    b[(1 << 20) - 512..(1 << 20) + 100].fill(6);
    b[0] = 7;
    b[2_000_000] = 8;
    assert_eq!(
        ranges(&a, &b, 512).0,
        [(0, 512), ((1 << 20) - 512, 1024), (2_000_000 / 512 * 512, 512)]
    );
    assert_eq!(
        ranges(&a, &b, 65_536).0,
        [(0, 65_536), ((1 << 20) - 65_536, 131_072), (2_000_000 / 65_536 * 65_536, 65_536)]
    );
    // Neighbours are joined whatever pieces they come in.
    for (i, byte) in a.iter_mut().enumerate() {
        *byte = if i % 512 == 3 { 9 } else { *byte };
    }
    assert_eq!(ranges(&a, &b, 512).0, [(0, 3 << 20)]);
}

#[test]
fn what_only_the_longer_one_has_is_compared_with_zeroes() {
    let a = vec![5u8; 1 << 20];
    let mut b = a.clone();
    b.extend([0; 1_000_448]);
    assert!(ranges(&a, &b, 512).0.is_empty());
    b[1_500_100] = 1;
    let (found, report) = ranges(&b, &a, 512);
    assert_eq!(found, [(1_500_100 / 512 * 512, 512)]);
    assert_eq!(report.sizes, [(1 << 20) + 1_000_448, 1 << 20]);
    b.extend([3; 100]);
    let end = (1 << 20) + 1_000_448 + 512;
    assert_eq!(ranges(&a, &b, 4096).0.last().map(|r| r.0 + r.1), Some(end), "never past the end");
}
