use super::*;
use crate::format::Unwatched;
use crate::graph::open::Policy;
use crate::opts::secret::Secrets;

fn images(a: &[u8], b: &[u8]) -> (tempfile::TempDir, CompareOptions) {
    let dir = tempfile::tempdir().unwrap();
    let arg = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let mut arg = ImageArg::file(path.to_string_lossy());
        arg.request.driver = Some("raw".into());
        arg
    };
    let options =
        CompareOptions { first: arg("a", a), second: arg("b", b), strictness: Strictness::Content };
    (dir, options)
}

fn run(options: &CompareOptions) -> CompareReport {
    compare(
        options,
        &Job { policy: &Policy::folder(), watcher: &Unwatched, secrets: &Secrets::default() },
    )
    .unwrap()
}

#[test]
fn finds_the_first_different_sector() {
    let mut a = vec![5u8; 3 << 20];
    let b = a.clone();
    assert_eq!(run(&images(&a, &b).1).outcome, CompareOutcome::Identical);
    for at in [2_900_000usize, 1_500_000, 1_000_000, 700] {
        a[at] = 6;
        let offset = len_u64(at / 512 * 512);
        let got = run(&images(&a, &b).1).outcome;
        assert_eq!(got, CompareOutcome::ContentMismatch { offset });
    }
}

#[test]
fn sizes() {
    let (_dir, options) = images(&[1; 1024], &[&[1u8; 1024][..], &[0; 1024]].concat());
    let report = run(&options);
    assert_eq!(lines(&report), ["Warning: Image size mismatch!", "Images are identical."]);
    let strict = CompareOptions { strictness: Strictness::Strict, ..options };
    assert_eq!(lines(&run(&strict)), ["Strict mode: Image size mismatch!"]);
    let (_dir, options) = images(&[1; 1024], &[1; 2048]);
    assert_eq!(
        lines(&run(&options)),
        ["Warning: Image size mismatch!", "Content mismatch at offset 1024!"]
    );
}

/// What is shown, in order.
fn lines(report: &CompareReport) -> Vec<String> {
    let warning = report.warning().map(str::to_owned);
    warning.into_iter().chain([report.outcome.line()]).collect()
}
