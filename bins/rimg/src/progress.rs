//! Progress, notes and cancelling: the caller's side of a long job.
//!
//! * `-p` on a terminal: a bar with rate and remaining time; elsewhere, and as qemu-img, percentages
//!   with carriage returns.
//! * `--progress=json`: one object a line, on stderr, so that stdout stays the result's: `phase` (`working`,
//!   `verifying`, `finishing`, `done`),
//!   `bytes` of `total`, `percent`, seconds `elapsed`, `rate` in bytes a second, `eta` in seconds.
//! * SIGUSR1: one line on stderr, whether or not `-p` was given.
//! * SIGINT, SIGTERM, SIGHUP: the job ends as soon as it can and removes its unfinished files. A
//!   second one kills.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use imgcore::format::Watcher;
use indicatif::{ProgressBar, ProgressStyle};

use crate::session::Session;
use crate::signals;

/// How progress is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Not at all.
    #[default]
    Off,
    /// A bar or percentages.
    On,
    /// JSON lines.
    Json,
}

/// Shortest time between two JSON lines.
const JSON_INTERVAL: Duration = Duration::from_millis(200);
/// Smallest step of the percentages, in hundredths of a percent.
const STEP: u64 = 100;
const ALL: u64 = 10_000;

/// Watches one job.
pub struct Reporter {
    program: String,
    view: View,
    cancel: Arc<AtomicBool>,
    signal: Arc<AtomicUsize>,
    asked: Arc<AtomicBool>,
    state: Mutex<State>,
    started: Instant,
}

enum View {
    Off,
    Percent,
    Bar(ProgressBar),
    Json,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All of it was done: shown as 100 %.
    Whole,
    /// Its answer was found before the end.
    Early,
    /// Without an answer.
    Failed,
}

/// How far a job is, in words.
#[derive(Clone, Copy)]
enum Phase {
    /// Going through the image; the pass has this name.
    Working(&'static str),
    /// All bytes were gone through; they are being brought to disk.
    Finishing,
    /// At its end, successfully.
    Done,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Phase::Working(name) => name,
            Phase::Finishing => "finishing",
            Phase::Done => "done",
        }
    }
}

struct State {
    phase: &'static str,
    done: u64,
    total: u64,
    /// What was shown last, in hundredths of a percent.
    shown: Option<u64>,
    last_line: Instant,
}

impl Reporter {
    /// For a job that is about to begin, which is shown as 0 %.
    pub fn new(session: &Session, mode: Mode) -> Self {
        let reporter = Self::silent_until_begun(session, mode);
        if matches!(reporter.view, View::Percent) {
            reporter.progress(0, 1);
        }
        reporter
    }

    /// For a job of which nothing is shown before it says itself how far it is.
    pub fn silent_until_begun(session: &Session, mode: Mode) -> Self {
        let cancel = Arc::new(AtomicBool::new(false));
        let asked = Arc::new(AtomicBool::new(false));
        let signal = Arc::new(AtomicUsize::new(0));
        signals::on_end(&cancel, &signal);
        signals::on_question(&asked);
        let view = match mode {
            Mode::Off => View::Off,
            Mode::Json => View::Json,
            Mode::On if session.as_qemu_img || !on_terminal() => View::Percent,
            Mode::On => View::Bar(bar()),
        };
        let program = session.program.clone();
        let now = Instant::now();
        let state = State { phase: "working", done: 0, total: 0, shown: None, last_line: now };
        Reporter { program, view, cancel, signal, asked, state: Mutex::new(state), started: now }
    }

    /// The job has come to its end.
    pub fn complete(&self, how: Ending) {
        match &self.view {
            View::Percent if how == Ending::Whole => write_percent(ALL),
            View::Bar(bar) if how == Ending::Whole => bar.finish(),
            View::Bar(bar) => bar.abandon(),
            View::Json if how != Ending::Failed => {
                let mut state = self.lock();
                state.done = state.total;
                self.json_line(&state, Phase::Done);
            }
            View::Off | View::Percent | View::Json => {}
        }
    }

    /// Shows the percentage again, on a line of its own.
    pub fn repeat(&self) {
        if matches!(self.view, View::Percent) {
            let state = self.lock();
            write_percent(hundredths(state.done, state.total));
        }
    }

    /// Nothing more will be shown: leaves the line of the percentages.
    pub fn end(&self) {
        if matches!(self.view, View::Percent) {
            crate::output::print("\n");
        }
    }

    /// The exit code of a run that a signal ended, as shells count.
    pub fn interrupt_code(&self) -> u8 {
        128 | u8::try_from(self.signal.load(Ordering::Relaxed)).unwrap_or(2)
    }

    /// Whether a signal ended the job.
    pub fn interrupted(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn json_line(&self, state: &State, phase: Phase) {
        let part = hundredths(state.done, state.total);
        let elapsed = self.started.elapsed();
        let ms = elapsed.as_millis().max(1);
        let rate = u128::from(state.done) * 1000 / ms;
        let left = u128::from(state.total.saturating_sub(state.done));
        let eta = match (left, rate) {
            (0, _) => "0".to_owned(),
            (_, 0) => "null".to_owned(),
            _ => left.div_ceil(rate).to_string(),
        };
        let phase = phase.name();
        let line = format!(
            "{{\"event\": \"progress\", \"phase\": \"{phase}\", \"bytes\": {}, \"total\": {}, \"percent\": {}.{:02}, \
             \"elapsed\": {}.{:03}, \"rate\": {rate}, \"eta\": {eta}}}\n",
            state.done,
            state.total,
            part / 100,
            part % 100,
            elapsed.as_secs(),
            elapsed.subsec_millis(),
        );
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    }
}

impl Watcher for Reporter {
    fn progress(&self, done: u64, total: u64) {
        let mut state = self.lock();
        // Threads report in any order; progress never goes back.
        if total != state.total {
            state.done = 0;
        }
        state.done = state.done.max(done.min(total));
        state.total = total;
        let part = hundredths(state.done, total);
        if self.asked.swap(false, Ordering::Relaxed) {
            eprintln!("    ({}.{:02}/100%)", part / 100, part % 100);
        }
        match &self.view {
            View::Off => {}
            View::Percent => {
                let due = state.shown.is_none_or(|s| part >= s + STEP);
                if due && part < ALL {
                    state.shown = Some(part);
                    write_percent(part);
                }
            }
            View::Bar(bar) => {
                bar.set_length(total);
                bar.set_position(state.done);
            }
            View::Json => {
                let working = Phase::Working(state.phase);
                let all = state.done == total && total > 0;
                let finishing = all && state.shown != Some(ALL);
                let due = state.shown.is_none() || state.last_line.elapsed() >= JSON_INTERVAL;
                if due || finishing {
                    state.shown = Some(part);
                    state.last_line = Instant::now();
                    self.json_line(&state, if all { Phase::Finishing } else { working });
                }
            }
        }
    }

    fn phase(&self, name: &'static str) {
        let mut state = self.lock();
        state.phase = name;
        state.done = 0;
        state.shown = None;
        if let View::Bar(bar) = &self.view {
            bar.set_position(0);
            bar.reset_eta();
            bar.set_message(format!("{name} "));
        }
    }

    fn note(&self, line: &str) {
        let line = if line.starts_with("warning: ") {
            format!("{}: {line}", self.program)
        } else if let Some(rest) = line.strip_prefix("error: ") {
            // Told like an error although the job goes on.
            format!("{}: {rest}", self.program)
        } else {
            line.to_owned()
        };
        match &self.view {
            View::Bar(bar) => bar.println(line),
            _ => eprintln!("{line}"),
        }
    }

    fn cancelled(&self) -> bool {
        self.interrupted()
    }
}

/// The bar is drawn on stderr, and replaces what would go to stdout.
fn on_terminal() -> bool {
    std::io::stdout().is_terminal() && std::io::stderr().is_terminal()
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(1);
    let template =
        "{msg}{percent:>3}% [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

fn hundredths(done: u64, total: u64) -> u64 {
    if total == 0 {
        return 0;
    }
    let part = u128::from(done.min(total)) * u128::from(ALL) / u128::from(total);
    u64::try_from(part).unwrap_or(ALL)
}

fn write_percent(part: u64) {
    crate::output::print(&format!("    ({}.{:02}/100%)\r", part / 100, part % 100));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts() {
        assert_eq!(hundredths(0, 0), 0);
        assert_eq!(hundredths(1, 3), 3333);
        assert_eq!(hundredths(u64::MAX, u64::MAX), ALL);
        assert_eq!(hundredths(5, 3), ALL);
    }
}
