//! `--object throttle-group,id=ID,x-bps-total=N,...`: limits that images share.
//!
//! Names are those of QEMU's `ThrottleLimits`, with `x-` or `limits.` before them.

use super::OptError;
use super::tree::Flat;

/// Most units of a bucket, so that sums do not wrap.
const MAX: u64 = 1_000_000_000_000_000;

/// One limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Units a second; 0: no limit.
    pub average: u64,
    /// Units a second in a burst; 0: no bursts.
    pub burst: u64,
    /// Longest burst in seconds.
    pub burst_seconds: u64,
}

/// What is counted, and for which requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes of all requests.
    BytesTotal,
    /// Bytes read.
    BytesRead,
    /// Bytes written.
    BytesWritten,
    /// Requests.
    OpsTotal,
    /// Reads.
    OpsRead,
    /// Writes.
    OpsWritten,
}

/// All kinds, as QEMU names them.
pub const KINDS: [(Kind, &str); 6] = [
    (Kind::BytesTotal, "bps-total"),
    (Kind::BytesRead, "bps-read"),
    (Kind::BytesWritten, "bps-write"),
    (Kind::OpsTotal, "iops-total"),
    (Kind::OpsRead, "iops-read"),
    (Kind::OpsWritten, "iops-write"),
];

/// A group, not yet in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThrottleDef {
    /// What images call it.
    pub id: String,
    /// In the order of [`KINDS`].
    pub limits: [Limit; 6],
    /// A request counts as one for each so many bytes; 0: always as one.
    pub iops_size: u64,
}

impl ThrottleDef {
    /// From the rest of an object's options; `id` was taken.
    pub fn take(id: String, flat: &mut Flat) -> Result<Self, OptError> {
        let mut number = |name: &str| -> Result<Option<u64>, OptError> {
            let given = [format!("x-{name}"), format!("limits.{name}")];
            let mut found = None;
            for key in &given {
                let Some(text) = flat.take_text(key) else { continue };
                if text.starts_with('-') {
                    return Err(OptError::new("Property values cannot be negative"));
                }
                let n: u64 = text
                    .parse()
                    .map_err(|_| OptError::new(format!("Parameter '{key}' expects integer")))?;
                found = Some(n);
            }
            Ok(found)
        };
        let mut limits = [Limit::default(); 6];
        for (limit, (_, name)) in limits.iter_mut().zip(KINDS) {
            limit.average = number(name)?.unwrap_or(0);
            limit.burst = number(&format!("{name}-max"))?.unwrap_or(0);
            let length = number(&format!("{name}-max-length"))?;
            if length == Some(0) {
                return Err(OptError::new(format!(
                    "{name}-max-length value must be in the range [1, 4294967295]"
                )));
            }
            limit.burst_seconds = length.unwrap_or(1);
        }
        let iops_size = number("iops-size")?.unwrap_or(0);
        let def = ThrottleDef { id, limits, iops_size };
        def.check()?;
        Ok(def)
    }

    fn check(&self) -> Result<(), OptError> {
        let fail = |text: &str| Err(OptError::new(text));
        for triple in self.limits.chunks(3) {
            let mixed = |f: fn(&Limit) -> u64| {
                f(&triple[0]) > 0 && (f(&triple[1]) > 0 || f(&triple[2]) > 0)
            };
            if mixed(|l| l.average) || mixed(|l| l.burst) {
                return fail(
                    "bps/iops/max total values and read/write values cannot be used at the same time",
                );
            }
        }
        let counted = [0, 1, 2].iter().any(|n| self.limits[3 + n].average > 0);
        if self.iops_size > 0 && !counted {
            return fail("iops size requires an iops value to be set");
        }
        for limit in &self.limits {
            if limit.average > MAX || limit.burst > MAX {
                return Err(OptError::new(format!(
                    "bps/iops/max values must be within [0, {MAX}]"
                )));
            }
            if limit.burst_seconds > 1 && limit.burst == 0 {
                return fail("burst length set without burst rate");
            }
            if limit.burst_seconds > 1 && limit.burst_seconds > MAX / limit.burst {
                return fail("burst length too high for this burst rate");
            }
            if limit.burst > 0 && limit.average == 0 {
                return fail("bps_max/iops_max require corresponding bps/iops values");
            }
            if limit.burst > 0 && limit.burst < limit.average {
                return fail("bps_max/iops_max cannot be lower than bps/iops");
            }
        }
        Ok(())
    }
}
