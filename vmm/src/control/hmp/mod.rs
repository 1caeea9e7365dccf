//! The human monitor: QEMU's commands on QEMU's prompt, so that what people know and scripts expect works.
//!
//! * [`session`]: one client: banner, prompt, editing, completion.
//! * [`edit`]: the line that is being typed.
//! * [`line`]: a line taken apart by the table, and carried out.
//! * [`expr`]: numbers, registers, arithmetic.
//! * [`dump`]: `x`, `xp` and `print` with their formats.
//! * [`disassemble`]: instructions, for `x/i`; [`registers`]: registers by name, `info registers`.
//! * [`help`]: `help`, `info` and completion.

pub mod disassemble;
pub mod dump;
pub mod edit;
pub mod expr;
pub mod help;
pub mod line;
pub mod registers;
pub mod session;

pub use line::execute;
pub use session::Session;
