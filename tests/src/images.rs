//! After a scenario: the files both sides left, compared through the reference tool's eyes.
//!
//! The same names must be there. A file that both sides see as an image must agree in what `info`,
//! `check` and `map` say (less random identifiers, host offsets, file sizes) and in guest content; a raw
//! file byte for byte.

use crate::content;
use crate::deliberate;
use crate::normal::merge_entries;
use crate::process::{End, Invocation, Outcome};
use crate::run::diff;
use crate::tools::Reference;
use serde_json::Value;
use std::path::Path;

/// Beyond this guest size only the header is compared: the reference tool walks every table entry.
const WALKED: u64 = 1 << 40;

/// What came of the comparison.
#[derive(Debug, Clone, Default)]
pub struct Compared {
    /// Files looked at.
    pub files: usize,
    /// Files that agree.
    pub agreed: usize,
    /// What does not, ready to be printed.
    pub complaints: Vec<String>,
}

/// Compares all files below two directories, left by `scenario`.
#[must_use]
pub fn compare(reference: &Reference, scenario: &str, theirs: &Path, ours: &Path) -> Compared {
    let mut result = Compared::default();
    let (left, right) = (names(theirs), names(ours));
    let mut all: Vec<&String> = left.iter().chain(&right).collect();
    all.sort();
    all.dedup();
    for name in all {
        result.files += 1;
        let found = match (left.contains(name), right.contains(name)) {
            (true, false) => vec!["ours is missing".to_owned()],
            (false, _) => vec!["only ours left it".to_owned()],
            (true, true) => Pair { reference, theirs, ours, name }.differences(),
        };
        let complaints = deliberate::without_allowed(scenario, name, found);
        if complaints.is_empty() {
            result.agreed += 1;
        }
        let lines = complaints.into_iter().map(|c| format!("file {name}: {c}"));
        result.complaints.extend(lines);
    }
    result
}

/// Regular files below `dir`, relative, sorted.
fn names(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(next) = todo.pop() {
        for entry in std::fs::read_dir(&next).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => todo.push(entry.path()),
                Ok(kind) if kind.is_file() => {
                    if let Ok(relative) = entry.path().strip_prefix(dir) {
                        found.push(relative.to_string_lossy().into_owned());
                    }
                }
                _ => {}
            }
        }
    }
    found.sort();
    found
}

/// One name on both sides.
struct Pair<'a> {
    reference: &'a Reference,
    theirs: &'a Path,
    ours: &'a Path,
    name: &'a str,
}

impl Pair<'_> {
    fn differences(&self) -> Vec<String> {
        let (left, right) = self.both(&["info", "-U", "--output=json"]);
        let (left_info, right_info) = match (json(&left), json(&right)) {
            (Some(left), Some(right)) => (left, right),
            (None, None) => return Vec::new(),
            (Some(_), None) => return vec![format!("ours does not open: {}", right.err().trim())],
            (None, Some(_)) => return vec![format!("only ours opens: {}", left.err().trim())],
        };
        let format = left_info["format"].as_str().unwrap_or_default();
        let mut found = Vec::new();
        differ("info", &clean_info(left_info.clone()), &clean_info(right_info), &mut found);
        if !found.is_empty() {
            return found;
        }
        if format == "raw" {
            return self.raw_content();
        }
        if left_info["virtual-size"].as_u64().is_none_or(|size| size > WALKED) {
            return found;
        }
        let (left, right) = self.both(&["check", "-U", "--output=json", "-f", format]);
        if left.end != right.end {
            found.push(format!("check: {} / {}: {}", left.end, right.end, right.err().trim()));
        } else if let (Some(left), Some(right)) = (json(&left), json(&right)) {
            differ("check", &clean_check(left), &clean_check(right), &mut found);
        }
        let (left, right) = self.both(&["map", "-U", "--output=json", "-f", format]);
        if left.end != right.end {
            found.push(format!("map: {} / {}: {}", left.end, right.end, right.err().trim()));
        } else if let (Some(Value::Array(left)), Some(Value::Array(right))) =
            (json(&left), json(&right))
        {
            differ("map", &merge_entries(left).into(), &merge_entries(right).into(), &mut found);
        }
        found.extend(self.guest_content(format));
        found
    }

    fn raw_content(&self) -> Vec<String> {
        match content::first_difference(&self.theirs.join(self.name), &self.ours.join(self.name)) {
            Ok(None) => Vec::new(),
            Ok(Some(at)) => vec![format!("bytes differ from offset {at}")],
            Err(error) => vec![error.to_string()],
        }
    }

    /// Guest content, where the reference's own file can be read at all (a missing backing file or a
    /// secret not at hand makes it unreadable on both sides).
    fn guest_content(&self, format: &str) -> Vec<String> {
        let compare = |left: &Path, right: &Path| {
            let call = Invocation::new(&self.reference.img, "/")
                .args(["compare", "-U", "-f", format, "-F", format])
                .args([left.join(self.name), right.join(self.name)]);
            call.run().map(|outcome| (outcome.end, outcome.out() + &outcome.err()))
        };
        match compare(self.theirs, self.ours) {
            Ok((End::Exit(0), _)) => Vec::new(),
            Ok((_, said)) => match compare(self.theirs, self.theirs) {
                Ok((End::Exit(0), _)) => vec![format!("guest content: {}", said.trim())],
                _ => Vec::new(),
            },
            Err(error) => vec![error.to_string()],
        }
    }

    fn both(&self, args: &[&str]) -> (Outcome, Outcome) {
        let run = |dir: &Path| {
            let call = Invocation::new(&self.reference.img, dir).args(args.iter().copied());
            call.args([self.name]).run().unwrap_or_else(|error| Outcome {
                end: End::Exit(-1),
                stdout: Vec::new(),
                stderr: error.to_string().into_bytes(),
                cost: Default::default(),
            })
        };
        (run(self.theirs), run(self.ours))
    }
}

fn json(outcome: &Outcome) -> Option<Value> {
    serde_json::from_slice(&outcome.stdout).ok()
}

fn differ(what: &str, left: &Value, right: &Value, found: &mut Vec<String>) {
    if left != right {
        let pretty = |v: &Value| serde_json::to_string_pretty(v).unwrap_or_default();
        found.push(format!("{what}:\n{}", diff(&pretty(left), &pretty(right))));
    }
}

/// Less what is random or depends on placement.
fn clean_info(mut info: Value) -> Value {
    if let Some(top) = info.as_object_mut() {
        for key in ["actual-size", "children", "full-backing-filename"] {
            top.remove(key);
        }
    }
    for snapshot in info["snapshots"].as_array_mut().into_iter().flatten() {
        if let Some(snapshot) = snapshot.as_object_mut() {
            snapshot.remove("date-sec");
            snapshot.remove("date-nsec");
        }
    }
    if let Some(data) = info["format-specific"]["data"].as_object_mut() {
        data.remove("cid");
        if data.get("parent-cid").is_some_and(|cid| cid.as_u64() != Some(u64::from(u32::MAX))) {
            data.remove("parent-cid");
        }
        clean_encryption(data);
    }
    info
}

/// LUKS: identifiers, and iteration counts timed on the machine.
fn clean_encryption(data: &mut serde_json::Map<String, Value>) {
    let luks = data.contains_key("cipher-alg");
    let encrypt = if luks { Some(data) } else { encrypt_of(data) };
    let Some(encrypt) = encrypt else { return };
    encrypt.remove("uuid");
    encrypt.remove("master-key-iters");
    for slot in encrypt.get_mut("slots").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(slot) = slot.as_object_mut() {
            slot.remove("iters");
        }
    }
}

/// The header inside a qcow2 image.
fn encrypt_of(
    data: &mut serde_json::Map<String, Value>,
) -> Option<&mut serde_json::Map<String, Value>> {
    data.get_mut("encrypt").and_then(Value::as_object_mut)
}

fn clean_check(mut check: Value) -> Value {
    if let Some(top) = check.as_object_mut() {
        top.remove("image-end-offset");
        top.remove("fragmented-clusters");
    }
    check
}
