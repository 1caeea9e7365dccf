//! The rules, one after the other.

use serde::Serialize;

use super::PolicyReport;
use super::document::{Demand, Policy};
use super::magic::{self, Kind, Magic};
use crate::format::SpecificInfo;
use crate::format::check_cancelled;
use crate::format::info::{Qcow2Info, VmdkInfo};
use crate::graph::Node;
use crate::ops::check::{CheckFailure, CheckOptions, check};
use crate::ops::source::Walk;
use crate::ops::{ImageArg, Job};
use crate::opts::human;
use crate::storage::Storage;
use crate::{Error, ErrorKind, Result};

/// Runs of data that are counted: 4 million steps take a second or two.
const MAX_RUNS: u64 = 4 << 20;

/// What came of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It holds.
    Pass,
    /// It does not, or that could not be found out.
    Fail,
    /// The policy does not ask, or it does not apply to the format.
    NotAsked,
}

/// A rule and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RuleResult {
    /// Its name, as in the policy.
    pub rule: &'static str,
    /// What came of it.
    pub result: Outcome,
    /// Why.
    pub message: String,
}

/// One examination.
pub(super) struct Look<'a> {
    policy: &'a Policy,
    report: PolicyReport,
}

impl<'a> Look<'a> {
    pub(super) fn new(
        policy: &'a Policy,
        file: &dyn Storage,
        given: Option<String>,
    ) -> Result<Self> {
        let report = PolicyReport {
            filename: String::new(),
            accepted: false,
            format_given: given.is_some(),
            format: given,
            file_size: file.len()?,
            virtual_size: None,
            data_size: None,
            magics: magic::scan(file)?,
            rules: Vec::new(),
        };
        Ok(Look { policy, report })
    }

    fn say(&mut self, rule: &'static str, good: bool, message: impl Into<String>) {
        let result = if good { Outcome::Pass } else { Outcome::Fail };
        self.report.rules.push(RuleResult { rule, result, message: message.into() });
    }

    fn pass_by(&mut self, rule: &'static str, message: &str) {
        let message = message.to_owned();
        self.report.rules.push(RuleResult { rule, result: Outcome::NotAsked, message });
    }

    pub(super) fn format_name(&self) -> Option<&str> {
        self.report.format.as_deref()
    }

    fn magics(&self, kind: Kind) -> Vec<&Magic> {
        self.report.magics.iter().filter(|m| m.kind == kind).collect()
    }

    /// Which format it is, and whether it is only that.
    pub(super) fn format(&mut self) {
        let size = self.report.file_size;
        let max = self.policy.max_file_size.0;
        let text = format!(
            "the file has {}, at most {} are accepted",
            human::size(size),
            human::size(max)
        );
        self.say("max-file-size", size <= max, text);
        let images: Vec<&'static str> = self.magics(Kind::Image).iter().map(|m| m.name).collect();
        let packed: Vec<&'static str> = self.magics(Kind::Packed).iter().map(|m| m.name).collect();
        if !self.report.format_given {
            self.report.format = match images.as_slice() {
                [] => Some("raw".to_owned()),
                [one] => Some((*one).to_owned()),
                [first, ..] => Some((*first).to_owned()),
            };
        }
        let format = self.report.format.clone().unwrap_or_default();
        let (given, asked) = (self.report.format_given, self.policy.explicit_format);
        match (given, asked) {
            (true, _) => {
                self.say("explicit-format", true, format!("the format was given: {format}"));
            }
            (false, true) => self.say("explicit-format", false, "the format was not given (-f)"),
            (false, false) => {
                self.pass_by("explicit-format", "the format was probed, which is accepted");
            }
        }
        let known = self.policy.formats.contains(&format);
        let text = if known {
            format!("{format} is accepted")
        } else {
            format!("{format} is not accepted")
        };
        self.say("formats", known, text);
        // What is called raw must not look like an image to the next program.
        let others: Vec<&str> =
            images.iter().chain(&packed).copied().filter(|name| *name != format).collect();
        let matches = format == "raw" || images.contains(&format.as_str());
        if !matches {
            self.say("format-matches", false, format!("the file has no magic number of {format}"));
            self.report.format = None;
        } else {
            self.say("format-matches", true, format!("the file is {format}"));
        }
        let disk: Vec<&str> = self.magics(Kind::Disk).iter().map(|m| m.name).collect();
        let content = if disk.is_empty() || format != "raw" {
            String::new()
        } else {
            format!(" (a disk with {})", disk.join(" and "))
        };
        match (self.policy.polyglots, others.is_empty()) {
            (Demand::Allow, _) => self.pass_by("polyglots", "not asked"),
            (_, true) => self.say("polyglots", true, format!("nothing else matches{content}")),
            (_, false) => {
                let list = others.join(", ");
                self.say(
                    "polyglots",
                    false,
                    format!("the file is also {list}: another program may take it for that"),
                );
            }
        }
    }

    /// The header could be read; everything else about the format.
    pub(super) fn opened(&mut self, node: &Node, image: &ImageArg, job: &Job<'_>) -> Result<()> {
        self.say("readable", true, "its header can be read");
        let size = node.virtual_size();
        self.report.virtual_size = Some(size);
        self.sizes(size);
        let info = node.image().info()?;
        let backing = node.image().backing();
        self.absent("backing-file", self.policy.backing_file, backing.map(|b| b.name));
        let (mut data_file, mut extents) = (None, None);
        match &info.specific {
            Some(SpecificInfo::Qcow2(qcow2)) => {
                data_file.clone_from(&qcow2.data_file);
                self.qcow2(qcow2);
            }
            Some(SpecificInfo::Vmdk(vmdk)) => {
                extents = self.vmdk(vmdk, node);
            }
            _ => {}
        }
        // A data file may be there without a name.
        if data_file.is_none() && extents.is_none() && node.image().storages().len() > 1 {
            data_file = Some("a second file".to_owned());
        }
        self.absent("data-file", self.policy.data_file, data_file);
        self.absent("external-extents", self.policy.external_extents, extents);
        self.encryption(info.encrypted);
        let snapshots = match node.image().snapshots() {
            Some(store) => store.list()?.len(),
            None => 0,
        };
        self.absent(
            "snapshots",
            self.policy.snapshots,
            (snapshots > 0).then(|| format!("{snapshots} internal snapshots")),
        );
        let corrupt =
            matches!(&info.specific, Some(SpecificInfo::Qcow2(q)) if q.corrupt == Some(true));
        let unclean = if corrupt {
            Some("marked as damaged".to_owned())
        } else {
            (info.dirty == Some(true)).then(|| "not closed by whoever wrote it last".to_owned())
        };
        self.absent("unclean", self.policy.unclean, unclean);
        if info.encrypted {
            self.pass_by("max-expansion", "what is encrypted cannot be counted");
        } else {
            self.expansion(node, job)?;
        }
        self.check(image, job)
    }

    /// It could not be opened: what depends on that has failed.
    pub(super) fn unreadable(&mut self, error: &Error) {
        if error.kind() == ErrorKind::Forbidden {
            let text = format!("it refers to another file: {}", error.report());
            self.say("external-extents", false, text);
        } else {
            self.say("readable", false, error.report());
        }
    }

    fn absent(&mut self, rule: &'static str, demand: Demand, found: Option<String>) {
        match (demand, found) {
            (Demand::Allow, _) => self.pass_by(rule, "not asked"),
            (_, None) => self.say(rule, true, "none"),
            (_, Some(what)) => {
                let what: String =
                    what.chars().take(200).map(|c| if c.is_control() { '?' } else { c }).collect();
                self.say(rule, false, format!("it has {what}"));
            }
        }
    }

    fn sizes(&mut self, size: u64) {
        let max = self.policy.max_virtual_size.0;
        let text = format!(
            "the disk has {}, at most {} are accepted",
            human::size(size),
            human::size(max)
        );
        self.say("max-virtual-size", size <= max, text);
        let (file, most) = (self.report.file_size.max(1), self.policy.max_sparseness);
        if most == 0 {
            self.pass_by("max-sparseness", "any is accepted");
        } else {
            let text = format!(
                "a byte of the file stands for {} bytes of disk, at most {most} are accepted",
                size / file
            );
            self.say("max-sparseness", size / file <= most, text);
        }
    }

    fn qcow2(&mut self, info: &Qcow2Info) {
        let mut used = Vec::new();
        let mut add = |on: bool, name: &'static str| used.extend(on.then_some(name));
        add(info.extended_l2 == Some(true), "extended-l2");
        add(info.lazy_refcounts == Some(true), "lazy-refcounts");
        add(info.compression_type == "zstd", "zstd");
        add(info.bitmaps.as_ref().is_some_and(|b| !b.is_empty()), "bitmaps");
        let bad: Vec<&str> = used
            .iter()
            .copied()
            .filter(|f| !self.policy.qcow2_features.iter().any(|a| a == f))
            .collect();
        let text = if bad.is_empty() {
            "only accepted ones".to_owned()
        } else {
            format!("not accepted: {}", bad.join(", "))
        };
        self.say("qcow2-features", bad.is_empty(), text);
    }

    fn vmdk(&mut self, info: &VmdkInfo, node: &Node) -> Option<String> {
        let good = self.policy.vmdk_subformats.contains(&info.create_type);
        let word = if good { "accepted" } else { "not accepted" };
        let kind: String = info.create_type.chars().filter(|c| !c.is_control()).take(40).collect();
        self.say("vmdk-subformats", good, format!("{kind} is {word}"));
        let count = info.extents.len();
        let outside = count > 1 || node.image().storages().len() > 1;
        outside.then(|| format!("{count} extents in other files"))
    }

    fn encryption(&mut self, encrypted: bool) {
        match (self.policy.encryption, encrypted) {
            (Demand::Allow, _) => self.pass_by("encryption", "not asked"),
            (Demand::Refuse, true) => self.say("encryption", false, "it is encrypted"),
            (Demand::Require, false) => self.say("encryption", false, "it is not encrypted"),
            (Demand::Refuse, false) => self.say("encryption", true, "it is not encrypted"),
            (Demand::Require, true) => self.say("encryption", true, "it is encrypted"),
        }
    }

    /// Counts the data that a copy would write.
    fn expansion(&mut self, node: &Node, job: &Job<'_>) -> Result<()> {
        let walk = Walk::first(node, 1);
        let (mut at, mut data, mut runs) = (0, 0u64, 0u64);
        let end = node.virtual_size();
        while at < end {
            runs += 1;
            if runs > MAX_RUNS {
                self.say(
                    "max-expansion",
                    false,
                    "it is in so many pieces that they were not counted",
                );
                return Ok(());
            }
            if runs.is_multiple_of(4096) {
                check_cancelled(job.watcher)?;
            }
            let run = match walk.run(at, end - at) {
                Ok(run) => run,
                Err(e) => {
                    self.say(
                        "max-expansion",
                        false,
                        format!("its data cannot be found: {}", e.report()),
                    );
                    return Ok(());
                }
            };
            if run.allocated && !run.is_zero() {
                data = data.saturating_add(run.len);
            }
            at = at.saturating_add(run.len.max(1));
        }
        self.report.data_size = Some(data);
        let (file, most) = (self.report.file_size.max(1), self.policy.max_expansion);
        // A few clusters of a tiny image say nothing.
        let ratio = data / file;
        let good = ratio <= most || data <= 1 << 20;
        let text = format!(
            "a byte of the file becomes {ratio} bytes of data, at most {most} are accepted"
        );
        self.say("max-expansion", good, text);
        Ok(())
    }

    fn check(&mut self, image: &ImageArg, job: &Job<'_>) -> Result<()> {
        if self.policy.check != Demand::Require {
            self.pass_by("check", "not asked");
            return Ok(());
        }
        let mut image = image.clone();
        image.request.driver.clone_from(&self.report.format);
        let policy = crate::graph::open::Policy::nothing();
        let job = Job { policy: &policy, ..*job };
        match check(&CheckOptions { image, ..CheckOptions::default() }, &job) {
            Ok(outcome) => {
                let report = &outcome.report;
                let text = format!("{} damages, {} leaks", report.corruptions, report.leaks);
                self.say("check", outcome.exit_code == 0, text);
            }
            Err(CheckFailure::NotSupported) => self.pass_by("check", "this format has no check"),
            Err(CheckFailure::NotRepairable(e) | CheckFailure::Failed(e)) => {
                if e.kind() == ErrorKind::Cancelled {
                    return Err(e);
                }
                self.say("check", false, e.report());
            }
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> PolicyReport {
        self.report.accepted = self.report.rules.iter().all(|r| r.result != Outcome::Fail);
        self.report
    }
}
