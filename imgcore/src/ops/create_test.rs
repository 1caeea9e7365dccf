use super::*;
use crate::format::Unwatched;
use crate::graph::open::Policy;
use crate::opts::secret::Secrets;

fn with_job<T>(f: impl FnOnce(&Job<'_>) -> T) -> T {
    f(&Job { policy: &Policy::folder(), watcher: &Unwatched, secrets: &Secrets::default() })
}

fn wish(dir: &tempfile::TempDir, size: Option<u64>) -> CreateImageOptions {
    CreateImageOptions {
        filename: dir.path().join("x").to_string_lossy().into_owned(),
        driver: "raw".into(),
        size,
        ..CreateImageOptions::default()
    }
}

#[test]
fn raw() {
    let dir = tempfile::tempdir().unwrap();
    with_job(|job| {
        let wish = wish(&dir, Some(1000));
        let name = wish.filename.clone();
        let plan = plan(wish, job).unwrap();
        assert_eq!(plan.line(), format!("Formatting '{name}', fmt=raw size=1000"));
        plan.run(job).unwrap();
        assert_eq!(std::fs::metadata(&name).unwrap().len(), 1024);
    });
}

#[test]
fn refusals() {
    let dir = tempfile::tempdir().unwrap();
    let refuse = |change: &dyn Fn(&mut CreateImageOptions)| {
        let mut wish = wish(&dir, Some(1 << 20));
        change(&mut wish);
        let name = wish.filename.clone();
        let e = with_job(|job| plan(wish, job).and_then(|p| p.run(job))).unwrap_err();
        e.report().strip_prefix(&format!("{name}: ")).unwrap().to_owned()
    };
    assert_eq!(refuse(&|w| w.driver = "foo".into()), "Unknown file format 'foo'");
    assert_eq!(refuse(&|w| w.size = None), "Image creation needs a size parameter");
    assert_eq!(
        refuse(&|w| w.options = vec![("size".into(), "1M".into())]),
        "The image size must be specified only once"
    );
    assert_eq!(
        refuse(&|w| w.backing = Some("b".into())),
        "Backing file not supported for file format 'raw'"
    );
    assert_eq!(
        refuse(&|w| w.options = vec![("foo".into(), "x".into())]),
        "Invalid parameter 'foo'"
    );
    assert_eq!(
        refuse(&|w| w.size = Some(7 << 60)),
        "The image size is too large for file format 'raw'"
    );
}
