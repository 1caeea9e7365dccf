//! Clients that send whatever they like to a monitor: it must go on, and answer the next sane command.
//!
//! Only for tests and the fuzz target.

#![allow(clippy::unwrap_used)]

use super::fake::Shared;
use super::port::Port;
use super::{hmp, qmp};
use crate::chardev::CharEvent;
use crate::devices::Captured;

/// Sends `noise` to a human monitor and to a QMP monitor, as one piece and cut into pieces of 1 to 16 bytes.
///
/// # Panics
///
/// If a monitor does not answer the command after it, or differently.
pub fn drive(noise: &[u8]) {
    for piece in [noise.len().max(1), 1 + noise.len() % 16] {
        person(noise.chunks(piece));
        program(noise.chunks(piece));
    }
}

fn person<'a>(noise: impl Iterator<Item = &'a [u8]>) {
    let machine = Shared::default();
    let (mut session, mut out) = (hmp::Session::new(), Captured::default());
    session.event(CharEvent::Opened, &mut out);
    for part in noise {
        session.input(part, &machine, &mut out);
    }
    // Ends a line, drops what was typed, asks.
    session.input(b"\r\x03info kvm\r", &machine, &mut out);
    assert!(out.text().ends_with("kvm support: enabled\r\n(qemu) "), "the monitor does not answer");
}

fn program<'a>(noise: impl Iterator<Item = &'a [u8]>) {
    let (machine, port) = (Shared::default(), Port::default());
    let (mut session, mut out) = (qmp::Session::new(false), Captured::default());
    session.event(CharEvent::Opened, &mut out);
    session.input(b"{\"execute\": \"qmp_capabilities\"}", &machine, &port, &mut out);
    for part in noise {
        session.input(part, &machine, &port, &mut out);
    }
    // A byte that is no JSON ends whatever was begun.
    session.input(b"\xff\n{\"execute\": \"query-kvm\"}", &machine, &port, &mut out);
    assert!(
        out.text().ends_with("{\"return\": {\"enabled\": true, \"present\": true}}\r\n"),
        "QMP does not answer"
    );
}
