//! What a check says.

use serde::Serialize;

use super::table::Check;

/// How it stands, from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Pass,
    /// Has no bearing on this host or on what is wanted of it.
    Skipped,
    /// A fact worth knowing.
    Info,
    /// Could not be found out; never means fine.
    Unknown,
    /// Slow or risky.
    Warning,
    /// A wanted feature does not work.
    Error,
    /// No KVM guest runs.
    Fatal,
}

impl Status {
    /// The word shown to people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pass => "ok",
            Self::Skipped => "skip",
            Self::Info => "info",
            Self::Unknown => "????",
            Self::Warning => "WARN",
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
        }
    }

    /// The exit code that belongs to a report whose worst status this is.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Pass | Self::Skipped | Self::Info | Self::Unknown => 0,
            Self::Warning => 1,
            Self::Error | Self::Fatal => 2,
        }
    }
}

/// What was read, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// File, system call or register.
    pub source: String,
    /// What it said.
    pub value: String,
}

/// What must happen after a remedy before it counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Needs {
    /// Nothing more.
    #[default]
    Nothing,
    /// A new login session.
    NewLogin,
    /// A restart of the host.
    Reboot,
    /// A cold start: power off, then on.
    PowerCycle,
}

/// What to do about it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Remedy {
    /// In words.
    pub text: String,
    /// Commands to type, in order.
    pub commands: Vec<String>,
    /// The file to write, when there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// What must follow.
    pub needs: Needs,
}

impl Remedy {
    /// In words only.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// A command.
    pub fn command(text: impl Into<String>, command: impl Into<String>) -> Self {
        Self { text: text.into(), commands: vec![command.into()], ..Self::default() }
    }

    /// One more command.
    #[must_use]
    pub fn then(mut self, command: impl Into<String>) -> Self {
        self.commands.push(command.into());
        self
    }

    /// Names the file concerned.
    #[must_use]
    pub fn file(mut self, path: impl Into<String>) -> Self {
        self.file = Some(path.into());
        self
    }

    /// Says what must follow.
    #[must_use]
    pub fn needs(mut self, needs: Needs) -> Self {
        self.needs = needs;
        self
    }
}

/// The answer of a check's function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// How it stands.
    pub status: Status,
    /// One line.
    pub summary: String,
    /// What was read.
    pub read: Vec<Evidence>,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<Remedy>,
}

impl Outcome {
    /// With any status.
    pub fn new(status: Status, summary: impl Into<String>) -> Self {
        Self { status, summary: summary.into(), read: Vec::new(), remedy: None }
    }

    /// As it should be.
    pub fn pass(summary: impl Into<String>) -> Self {
        Self::new(Status::Pass, summary)
    }

    /// A fact.
    pub fn info(summary: impl Into<String>) -> Self {
        Self::new(Status::Info, summary)
    }

    /// Slow or risky.
    pub fn warning(summary: impl Into<String>) -> Self {
        Self::new(Status::Warning, summary)
    }

    /// A feature does not work.
    pub fn error(summary: impl Into<String>) -> Self {
        Self::new(Status::Error, summary)
    }

    /// No guest runs.
    pub fn fatal(summary: impl Into<String>) -> Self {
        Self::new(Status::Fatal, summary)
    }

    /// Not found out.
    pub fn unknown(summary: impl Into<String>) -> Self {
        Self::new(Status::Unknown, summary)
    }

    /// No bearing here.
    pub fn skipped(summary: impl Into<String>) -> Self {
        Self::new(Status::Skipped, summary)
    }

    /// Adds evidence.
    #[must_use]
    pub fn read(mut self, source: impl Into<String>, value: impl Into<String>) -> Self {
        self.read.push(Evidence { source: source.into(), value: value.into() });
        self
    }

    /// Adds evidence when there is some, and says so when there is none.
    #[must_use]
    pub fn read_opt(self, source: impl Into<String>, value: Option<impl Into<String>>) -> Self {
        let value = value.map_or_else(|| "(not there)".to_owned(), Into::into);
        self.read(source, value)
    }

    /// Adds the remedy.
    #[must_use]
    pub fn remedy(mut self, remedy: Remedy) -> Self {
        self.remedy = Some(remedy);
        self
    }
}

/// A check with its outcome: a line of the report.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// Stable name.
    pub id: &'static str,
    /// Stable number.
    pub number: u32,
    /// What is checked.
    pub title: &'static str,
    /// Why it matters.
    pub why: &'static str,
    /// The answer.
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl Finding {
    /// Joins a check with its answer.
    pub fn new(check: &Check, outcome: Outcome) -> Self {
        Self { id: check.id, number: check.number, title: check.title, why: check.why, outcome }
    }
}
