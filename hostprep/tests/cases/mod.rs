//! The table of trees: what each check says about them.

mod cpus;
mod devices;
mod kvm;

use hostprep::check::{self, Status};
use hostprep::host::VcpuRun;
use hostprep::wanted::{Guests, Wanted};

use crate::shapes::Shape;

use Status::Warning;

pub struct Case {
    pub id: &'static str,
    pub shape: Shape,
    pub wanted: Wanted,
    /// Register and value, on eight CPUs.
    pub msr: Option<(u64, u64)>,
    pub expected: Status,
    /// Text of the summary or the remedy.
    pub says: &'static str,
}

pub fn case(id: &'static str, shape: Shape, expected: Status, says: &'static str) -> Case {
    Case { id, shape, wanted: Wanted::default(), msr: None, expected, says }
}

pub fn with(mut shape: Shape, edit: impl FnOnce(&mut Shape)) -> Shape {
    edit(&mut shape);
    shape
}

impl Case {
    pub fn wants(mut self, edit: impl FnOnce(&mut Wanted)) -> Self {
        edit(&mut self.wanted);
        self
    }

    pub fn msr(mut self, register: u64, value: u64) -> Self {
        self.msr = Some((register, value));
        self
    }

    pub fn run(&self) -> Result<(), String> {
        let fake = self.shape.build();
        if let Some((register, value)) = self.msr {
            self.shape.build_msr(&fake, 8, register, value);
        }
        let only = [self.id.to_owned()];
        let findings = check::run(&fake.host, &self.wanted, &only).unwrap();
        let outcome = &findings[0].outcome;
        let mut text = outcome.summary.clone();
        if let Some(remedy) = &outcome.remedy {
            text.push_str(&remedy.text);
            text.push_str(&remedy.commands.join(" "));
        }
        if outcome.status != self.expected || !text.contains(self.says) {
            return Err(format!(
                "{}: expected {:?} with '{}', got {:?}: {text}",
                self.id, self.expected, self.says, outcome.status
            ));
        }
        assert!(!outcome.read.is_empty(), "{} shows no evidence ({text})", self.id);
        if outcome.status >= Warning {
            assert!(outcome.remedy.is_some(), "{} has no remedy ({text})", self.id);
        }
        Ok(())
    }
}

pub fn guests(text: &str) -> Vec<Guests> {
    vec![Guests::parse(text).unwrap()]
}

pub fn failed(step: &str, errno: i32) -> VcpuRun {
    VcpuRun::Failed { step: step.into(), errno, text: "seen".into() }
}

pub fn all() -> Vec<Case> {
    [
        kvm::kvm_cases(),
        kvm::parameter_cases(),
        cpus::cpu_cases(),
        cpus::memory_cases(),
        devices::security_cases(),
        devices::device_cases(),
        devices::network_cases(),
        devices::storage_cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
