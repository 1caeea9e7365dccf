//! Running scenarios: the same lines for both programs, each in its own directory, and a verdict on
//! every line.
//!
//! Lines run under `/bin/sh` as `exec qemu-img …`, so that quoting is the shell's and the exit code the
//! program's. The reference runs first, once; nothing is remembered between scenarios.

use crate::deliberate::{self, LineDifference};
use crate::images;
use crate::normal::{Normal, normal, without_offsets};
use crate::process::{End, Invocation, Outcome};
use crate::scenario::{Action, Images, Line, Relaxed, Scenario};
use crate::tools::{self, Reference};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The programs of one run of the suite.
#[derive(Debug, Clone)]
pub struct Bench {
    /// Directory in which the program under test is called `qemu-img`.
    pub ours: PathBuf,
    /// Directory in which the reference is called `qemu-img`.
    pub theirs: PathBuf,
    /// The reference tools.
    pub reference: Reference,
    /// Scenario directories are made below this one.
    pub base: PathBuf,
}

/// What came of one scenario.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// Its name.
    pub name: String,
    /// Command lines compared.
    pub lines: usize,
    /// Of these, the ones that agree.
    pub agreed: usize,
    /// The subcommand of each line, and whether it agrees.
    pub commands: Vec<(String, bool)>,
    /// Files compared afterwards.
    pub files: usize,
    /// Of these, the ones that agree.
    pub files_agreed: usize,
    /// What does not agree, ready to be printed.
    pub complaints: Vec<String>,
    /// How long all of it took.
    pub took: Duration,
}

/// Runs all scenarios on `threads` threads; the verdicts come in the order of the scenarios.
#[must_use]
pub fn run_all(bench: &Bench, scenarios: &[Scenario], threads: usize) -> Vec<Verdict> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Verdict)>> = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some((index, scenario)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    scenarios.get(index).map(|scenario| (index, scenario))
                } {
                    let start = Instant::now();
                    let mut verdict = run_one(bench, index, scenario);
                    verdict.took = start.elapsed();
                    if let Ok(mut done) = done.lock() {
                        done.push((index, verdict));
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, verdict)| verdict).collect()
}

fn run_one(bench: &Bench, index: usize, scenario: &Scenario) -> Verdict {
    let mut verdict = Verdict { name: scenario.name.clone(), ..Verdict::default() };
    let dir = bench.base.join(format!("s{index:03}"));
    let (theirs, ours) = (dir.join("theirs"), dir.join("ours"));
    for side in [&theirs, &ours] {
        if let Err(error) = std::fs::create_dir_all(side) {
            verdict.complaints.push(format!("{}: {error}", side.display()));
            return verdict;
        }
    }
    let reference = Side { bench, home: &bench.theirs, dir: &theirs };
    let tested = Side { bench, home: &bench.ours, dir: &ours };
    match (reference.run(scenario), tested.run(scenario)) {
        (Ok(left), Ok(right)) => judge(scenario, [(&left, &theirs), (&right, &ours)], &mut verdict),
        (Err(why), _) | (_, Err(why)) => verdict.complaints.push(why),
    }
    if scenario.images == Images::Compared {
        let compared = images::compare(&bench.reference, &scenario.name, &theirs, &ours);
        verdict.files = compared.files;
        verdict.files_agreed = compared.agreed;
        verdict.complaints.extend(compared.complaints);
    }
    if std::env::var_os("SUITE_KEEP").is_none() {
        let _ = std::fs::remove_dir_all(&dir);
    } else if !verdict.complaints.is_empty() {
        verdict.complaints.push(format!("kept in {}", dir.display()));
    }
    verdict
}

/// One of the two sides of a scenario.
struct Side<'a> {
    bench: &'a Bench,
    home: &'a Path,
    dir: &'a Path,
}

impl Side<'_> {
    /// Runs every line; what each printed comes back.
    fn run(&self, scenario: &Scenario) -> Result<Vec<Option<Outcome>>, String> {
        let mut holders: Vec<Holder> = Vec::new();
        let mut outcomes = Vec::new();
        for line in &scenario.lines {
            let at = |why: String| format!("line {} ({}): {why}", line.number, line.text);
            let outcome = match &line.action {
                Action::Image(_) => Some(self.shell("exec qemu-img ", &line.text).map_err(at)?),
                Action::Reference => Some(self.shell("exec \"$REF\" ", &line.text).map_err(at)?),
                Action::Io => Some(self.shell("exec \"$IO\" ", &line.text).map_err(at)?),
                Action::Shell => Some(self.shell("", &line.text).map_err(at)?),
                Action::Hold => {
                    holders.push(Holder::start(self, &line.text).map_err(at)?);
                    None
                }
                Action::Release => {
                    holders.clear();
                    None
                }
                Action::Poke { file, offset, bytes } => {
                    poke(&self.dir.join(file), *offset, bytes).map_err(|e| at(e.to_string()))?;
                    None
                }
            };
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    fn shell(&self, prefix: &str, text: &str) -> Result<Outcome, String> {
        // Found through the path, so that both programs have the same first argument.
        let mut path = self.home.as_os_str().to_owned();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        Invocation::new("/bin/sh", self.dir)
            .args(["-c".to_owned(), format!("{prefix}{text}")])
            .env("PATH", path)
            .env("REF", &self.bench.reference.img)
            .env("IO", &self.bench.reference.io)
            .env("TESTDATA", tools::workspace().join("testdata"))
            .run()
            .map_err(|e| e.to_string())
    }
}

fn poke(path: &Path, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    file.write_all(bytes)
}

/// `qemu-io` sitting on an image until dropped.
struct Holder(Child);

impl Holder {
    fn start(side: &Side<'_>, text: &str) -> Result<Self, String> {
        let mut child = Command::new("/bin/sh")
            .args(["-c", &format!("exec \"$IO\" {text}")])
            .current_dir(side.dir)
            .env("IO", &side.bench.reference.io)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| e.to_string())?;
        // The prompt says that the image is open, and so locked.
        let mut prompt = [0; 1];
        let got = child.stdout.as_mut().map(|out| out.read(&mut prompt));
        match got {
            Some(Ok(1)) => Ok(Self(child)),
            _ => {
                drop(Self(child));
                Err("qemu-io did not open the image to hold".to_owned())
            }
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn judge(scenario: &Scenario, sides: [(&[Option<Outcome>], &Path); 2], verdict: &mut Verdict) {
    let [(left, left_dir), (right, right_dir)] = sides;
    for ((line, theirs), ours) in scenario.lines.iter().zip(left).zip(right) {
        let (Some(theirs), Some(ours)) = (theirs, ours) else { continue };
        let complaints = match &line.action {
            Action::Image(relaxed) => {
                verdict.lines += 1;
                let allowed = deliberate::line(&scenario.name, &line.text);
                differences((*relaxed, allowed), (theirs, left_dir), (ours, right_dir))
            }
            // A helper that fails on one side only (a pattern that does not verify) is a finding too.
            _ if theirs.end != ours.end => {
                vec![format!("helper: {} / {}: {}{}", theirs.end, ours.end, ours.out(), ours.err())]
            }
            _ if theirs.end != End::Exit(0) => {
                vec![format!(
                    "the table is wrong: {}: {}{}",
                    theirs.end,
                    theirs.out(),
                    theirs.err()
                )]
            }
            _ => Vec::new(),
        };
        if matches!(line.action, Action::Image(_)) {
            let word = line.text.split_whitespace().next().unwrap_or("(none)");
            verdict.commands.push((word.to_owned(), complaints.is_empty()));
            verdict.agreed += usize::from(complaints.is_empty());
        }
        if !complaints.is_empty() {
            verdict.complaints.push(format!("{}: {}", line.number, command(line)));
            verdict.complaints.extend(complaints.iter().map(|c| indent(c)));
        }
    }
}

/// How many lines of each subcommand agree: `create 12 of 13`, in the order of names.
#[must_use]
pub fn by_command(verdicts: &[Verdict]) -> Vec<String> {
    let mut counts = std::collections::BTreeMap::<&str, (usize, usize)>::new();
    for (word, agrees) in verdicts.iter().flat_map(|verdict| &verdict.commands) {
        let word = if word.starts_with('-') { "(options)" } else { word };
        let count = counts.entry(word).or_default();
        count.0 += usize::from(*agrees);
        count.1 += 1;
    }
    counts.iter().map(|(word, (agreed, all))| format!("{word} {agreed} of {all}")).collect()
}

fn command(line: &Line) -> String {
    let word = match line.action {
        Action::Image(_) => "img ",
        Action::Io => "io ",
        Action::Reference => "ref ",
        _ => "",
    };
    format!("{word}{}", line.text)
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

/// What does not agree between two runs of one command line.
fn differences(
    (relaxed, allowed): (Relaxed, Option<&LineDifference>),
    (theirs, their_dir): (&Outcome, &Path),
    (ours, our_dir): (&Outcome, &Path),
) -> Vec<String> {
    let mut found = Vec::new();
    let mut used = false;
    match allowed.and_then(|a| a.exit) {
        Some(code) if ours.end == End::Exit(code) => used |= theirs.end != ours.end,
        None if theirs.end == ours.end => {}
        _ => found.push(format!("ends: reference {}, ours {}", theirs.end, ours.end)),
    }
    if matches!(ours.end, End::Signal(_) | End::TimedOut | End::Exit(101)) {
        found.push(format!("ours died: {}", ours.end));
    }
    let streams = [
        ("stdout", relaxed.stdout, allowed.and_then(|a| a.stdout), theirs.out(), ours.out()),
        ("stderr", relaxed.stderr, allowed.and_then(|a| a.stderr), theirs.err(), ours.err()),
    ];
    for (name, loosely, wanted, theirs, ours) in streams {
        let mut left = normal(&theirs, &their_dir.display().to_string());
        let mut right = normal(&ours, &our_dir.display().to_string());
        if let Some(wanted) = wanted {
            if deliberate::is_all(wanted, &right.text) {
                used |= left.text != right.text || too_far(&left, &right).is_some();
            } else {
                found.push(format!("{name} is not /{wanted}/\n{}", diff(&left.text, &right.text)));
            }
            continue;
        }
        if loosely {
            if left.text.is_empty() != right.text.is_empty() {
                found.push(format!("{name}: one is empty\n{}", diff(&left.text, &right.text)));
            }
            continue;
        }
        if relaxed.offsets {
            left.text = without_offsets(&left.text);
            right.text = without_offsets(&right.text);
        }
        if left.text != right.text {
            found.push(format!("{name}:\n{}", diff(&left.text, &right.text)));
        } else if let Some(far) = too_far(&left, &right) {
            found.push(format!("{name}: {far}"));
        }
    }
    if allowed.is_some() && !used && found.is_empty() {
        found.push("the deliberate table allows a difference that is no more".to_owned());
    }
    found
}

fn too_far(left: &Normal, right: &Normal) -> Option<String> {
    let far = left.loose.iter().zip(&right.loose).find(|(l, r)| !l.close(r))?;
    Some(format!("{}: reference {} bytes, ours {}", far.0.what, far.0.bytes, far.1.bytes))
}

/// The lines that differ, at most eight of each side: `-` the reference, `+` ours.
#[must_use]
pub fn diff(left: &str, right: &str) -> String {
    let (left, right): (Vec<_>, Vec<_>) = (left.lines().collect(), right.lines().collect());
    let head = left.iter().zip(&right).take_while(|(l, r)| l == r).count();
    let rest = left.len().min(right.len()) - head;
    let pairs = left.iter().rev().zip(right.iter().rev());
    let tail = pairs.take(rest).take_while(|(l, r)| l == r).count();
    let mut out = Vec::new();
    for (sign, lines) in [('-', &left), ('+', &right)] {
        let changed = &lines[head..lines.len() - tail];
        out.extend(changed.iter().take(8).map(|line| format!("{sign}{}", visible(line))));
        if changed.len() > 8 {
            out.push(format!("{sign}… {} more lines", changed.len() - 8));
        }
    }
    if out.is_empty() { "(line ends differ)".to_owned() } else { out.join("\n") }
}

/// Control characters escaped, everything else as it is.
fn visible(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    for c in line.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_shows_only_what_differs() {
        assert_eq!(diff("a\nb\nc\n", "a\nx\nc\n"), "-b\n+x");
        assert_eq!(diff("a\na\n", "a\n"), "-a");
        assert_eq!(diff("a", "a\n"), "(line ends differ)");
    }
}
