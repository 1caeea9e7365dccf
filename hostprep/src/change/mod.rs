//! Changing the host: actions, a plan of them, a journal, and undoing.
//!
//! Invariants:
//! * What is there before an action is written to the journal, and the journal is on disk, before the action
//!   begins. So whoever is killed leaves a journal from which [`undo`] restores the host byte for byte.
//! * Undoing an action restores what was before, whether the action ran, ran in part, or not at all; undoing
//!   twice does no harm.
//! * A plan holds only what is not so already: a second `apply` has nothing to do.
//! * One change at a time: a lock is held by whoever changes something, and by the programs it starts. So `undo`
//!   after a kill looks at the host only when nothing works on it any more.
//! * An action that fails makes [`apply`] undo what it did so far.

mod action;
mod boot;
mod diff;
mod effects;
mod files;
mod journal;
mod kernel;
mod persist;
mod plan;
mod program;
mod run;
mod swap;
mod wishes;

pub use action::{Action, Before, Compaction, FileState};
pub use effects::{Effects, System, TreeEffects};
pub use journal::{Journal, JournalState, Lock, Record, STATE_FOLDER};
pub use plan::{Plan, describe};
pub use program::Programs;
pub use run::{Applied, Force, Progress, apply, list, undo};
pub(crate) use run::{again, locked, readable};
pub use wishes::{HugepageWish, IsolateBy, Wishes, plan};
