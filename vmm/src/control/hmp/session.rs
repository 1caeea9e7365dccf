//! One client of the human monitor.

use super::edit::{Done, Editor};
use super::{help, line};
use crate::chardev::CharEvent;
use crate::control::command::Context;
use crate::control::port::{Ask, ask};
use crate::devices::Output;

/// Scripts wait for it.
pub const PROMPT: &str = "(qemu) ";

/// The monitor's side of one client.
#[derive(Debug, Default)]
pub struct Session {
    editor: Editor,
    context: Context,
    greeted: bool,
}

/// What clients see first. Scripts look for the words "monitor - type 'help'".
fn banner() -> String {
    format!("rkvm {} monitor - type 'help' for more information\r\n", env!("CARGO_PKG_VERSION"))
}

impl Session {
    /// For a client that has not come yet.
    pub fn new() -> Self {
        Session::default()
    }

    /// The client comes, goes, or looks here.
    pub fn event(&mut self, event: CharEvent, out: &mut dyn Output) {
        match event {
            CharEvent::Opened => {
                self.editor.clear();
                self.greeted = true;
                out.put(format!("{}{PROMPT}", banner()).as_bytes());
            }
            CharEvent::FocusIn => {
                let mut text = b"\r\n".to_vec();
                if !std::mem::replace(&mut self.greeted, true) {
                    text.extend_from_slice(banner().as_bytes());
                }
                text.extend_from_slice(PROMPT.as_bytes());
                self.editor.show(&mut text);
                out.put(&text);
            }
            CharEvent::FocusOut => out.put(b"\r\n"),
            CharEvent::Closed => {
                self.editor.clear();
                self.context = Context::default();
            }
            CharEvent::Break => {}
        }
    }

    /// The client has typed.
    pub fn input(&mut self, bytes: &[u8], machine: &dyn Ask, out: &mut dyn Output) {
        let mut shown = Vec::new();
        for byte in bytes {
            match self.editor.feed(*byte, &mut shown) {
                Done::Nothing => {}
                Done::Line(text) => {
                    out.put(&std::mem::take(&mut shown));
                    if !self.line(text, machine, out) {
                        return;
                    }
                }
                Done::Complete(text) => {
                    let found = ask(machine, move |m| help::complete(&text, m));
                    self.completed(&found.unwrap_or_default(), &mut shown);
                }
            }
        }
        if !shown.is_empty() {
            out.put(&shown);
        }
    }

    /// Carries a line out; false when the machine has ended.
    fn line(&mut self, text: String, machine: &dyn Ask, out: &mut dyn Output) -> bool {
        let mut context = self.context;
        let answer = ask(machine, move |m| {
            let answer = line::execute(&text, m, &mut context);
            (answer, context)
        });
        let Some((answer, context)) = answer else { return false };
        self.context = context;
        out.put(format!("{}{PROMPT}", answer.replace('\n', "\r\n")).as_bytes());
        true
    }

    fn completed(&mut self, found: &help::Completion, shown: &mut Vec<u8>) {
        self.editor.insert(found.insert.as_bytes(), shown);
        if found.choices.len() > 1 {
            let widest = found.choices.iter().map(String::len).max().unwrap_or(0).clamp(10, 78);
            let a_row = (80 / (widest + 2)).max(1);
            for row in found.choices.chunks(a_row) {
                shown.extend_from_slice(b"\r\n");
                for name in row {
                    shown.extend_from_slice(
                        format!("{name:<width$}", width = widest + 2).as_bytes(),
                    );
                }
            }
            shown.extend_from_slice(b"\r\n");
            shown.extend_from_slice(PROMPT.as_bytes());
            self.editor.show(shown);
        }
    }
}
