//! Stop, go on, reset, power, quit.

use serde_json::{Value, json};

use crate::control::command::{Answer, Args, Failure};
use crate::control::steered::Steered;

/// What people see of a command that has nothing to say.
pub fn silent(_value: &Value) -> String {
    String::new()
}

fn done() -> Answer {
    Ok(json!({}))
}

/// `stop`.
pub fn stop(m: &mut dyn Steered, _args: &Args) -> Answer {
    m.stop()?;
    done()
}

/// `cont`.
pub fn cont(m: &mut dyn Steered, _args: &Args) -> Answer {
    if m.state().needs_reset() {
        return Err(Failure::generic("Resetting the Virtual Machine is required"));
    }
    m.resume()?;
    done()
}

/// `system_reset`.
pub fn reset(m: &mut dyn Steered, _args: &Args) -> Answer {
    m.system_reset()?;
    done()
}

/// `system_powerdown`.
pub fn power_down(m: &mut dyn Steered, _args: &Args) -> Answer {
    m.power_down()?;
    done()
}

/// `quit`.
pub fn quit(m: &mut dyn Steered, _args: &Args) -> Answer {
    m.quit();
    done()
}

/// `nmi`, `inject-nmi`.
pub fn nmi(m: &mut dyn Steered, _args: &Args) -> Answer {
    m.nmi()?;
    done()
}
