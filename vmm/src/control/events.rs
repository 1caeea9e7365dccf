//! What monitors for programs are told of without having asked (QAPI's run-state and balloon events).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::port::Port;

/// Who wanted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The guest powered off.
    GuestShutdown,
    /// The guest restarted.
    GuestReset,
    /// The guest panicked.
    GuestPanic,
    /// A command: quit.
    Quit,
    /// A command: system_reset.
    Reset,
    /// A signal to this process.
    Signal,
    /// This process could not go on.
    Failure,
}

impl Cause {
    fn name(self) -> &'static str {
        match self {
            Cause::GuestShutdown => "guest-shutdown",
            Cause::GuestReset => "guest-reset",
            Cause::GuestPanic => "guest-panic",
            Cause::Quit => "host-qmp-quit",
            Cause::Reset => "host-qmp-system-reset",
            Cause::Signal => "host-signal",
            Cause::Failure => "host-error",
        }
    }

    fn of_guest(self) -> bool {
        matches!(self, Cause::GuestShutdown | Cause::GuestReset | Cause::GuestPanic)
    }
}

/// What follows a panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanicAction {
    /// The machine stands still.
    Pause,
    /// The machine ends.
    PowerOff,
    /// The guest goes on.
    Run,
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// Guest code has stopped.
    Stop,
    /// Guest code runs again.
    Resume,
    /// The machine was reset.
    Reset(Cause),
    /// The machine has powered off, or is about to end.
    Shutdown(Cause),
    /// The power button was pressed.
    PowerDown,
    /// The guest has panicked.
    GuestPanicked(PanicAction),
    /// The guest's crash kernel takes over.
    GuestCrashloaded,
    /// The guest has so many bytes left.
    BalloonChange(u64),
    /// A disk reported an error.
    BlockIoError {
        /// Name of the drive.
        device: String,
        /// It was a write.
        write: bool,
        /// What the policy did: report, ignore, stop.
        action: &'static str,
        /// No space was left.
        no_space: bool,
        /// For people.
        reason: String,
    },
}

/// Names of all events, for `query-events` of old clients and for documentation.
pub const NAMES: &[&str] = &[
    "BALLOON_CHANGE",
    "BLOCK_IO_ERROR",
    "GUEST_CRASHLOADED",
    "GUEST_PANICKED",
    "POWERDOWN",
    "RESET",
    "RESUME",
    "SHUTDOWN",
    "STOP",
];

impl MachineEvent {
    /// As JSON, without its time.
    pub fn json(&self) -> Value {
        let with = |name: &str, data: Value| json!({"event": name, "data": data});
        match self {
            MachineEvent::Stop => json!({"event": "STOP"}),
            MachineEvent::Resume => json!({"event": "RESUME"}),
            MachineEvent::PowerDown => json!({"event": "POWERDOWN"}),
            MachineEvent::Reset(c) => {
                with("RESET", json!({"guest": c.of_guest(), "reason": c.name()}))
            }
            MachineEvent::Shutdown(c) => {
                with("SHUTDOWN", json!({"guest": c.of_guest(), "reason": c.name()}))
            }
            MachineEvent::GuestPanicked(action) => {
                let action = match action {
                    PanicAction::Pause => "pause",
                    PanicAction::PowerOff => "poweroff",
                    PanicAction::Run => "run",
                };
                with("GUEST_PANICKED", json!({ "action": action }))
            }
            MachineEvent::GuestCrashloaded => with("GUEST_CRASHLOADED", json!({"action": "run"})),
            MachineEvent::BalloonChange(actual) => {
                with("BALLOON_CHANGE", json!({ "actual": actual }))
            }
            MachineEvent::BlockIoError { device, write, action, no_space, reason } => with(
                "BLOCK_IO_ERROR",
                json!({
                    "device": device,
                    "node-name": device,
                    "operation": if *write { "write" } else { "read" },
                    "action": action,
                    "nospace": no_space,
                    "reason": reason,
                }),
            ),
        }
    }
}

/// Tells all monitors for programs. Can be cloned and used from any thread; never waits.
#[derive(Clone, Default)]
pub struct Broadcast(Arc<Mutex<Vec<Arc<Port>>>>);

impl std::fmt::Debug for Broadcast {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Broadcast")
    }
}

impl Broadcast {
    /// This monitor is told from now on.
    pub(super) fn join(&self, port: Arc<Port>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(port);
    }

    /// Tells them, with the present time.
    pub fn send(&self, event: &MachineEvent) {
        let ports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ports.is_empty() {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut value = event.json();
        value["timestamp"] = json!({"seconds": now.as_secs(), "microseconds": now.subsec_micros()});
        for port in ports.iter() {
            port.tell(value.clone());
        }
    }
}
