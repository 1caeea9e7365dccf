//! `throttling.*` of a `-drive`, and the names that these parameters had before.

use super::options::Options;
use crate::Result;
use crate::block::config::Throttling;
use crate::block::throttle::{Limit, Limits};

/// Present name, old name; in the order of [`Limits`].
const RATES: [[(&str, &str); 3]; 2] = [
    [("bps-total", "bps"), ("bps-read", "bps_rd"), ("bps-write", "bps_wr")],
    [("iops-total", "iops"), ("iops-read", "iops_rd"), ("iops-write", "iops_wr")],
];

/// Takes the limits of a disk called `id` out of its parameters.
pub fn take(o: &mut Options, id: &str) -> Result<Option<Throttling>> {
    let mut limits = Limits::default();
    let places = limits.bytes.iter_mut().chain(&mut limits.requests);
    for (limit, (new, old)) in places.zip(RATES.iter().flatten()) {
        let mut one = |end_new: &str, end_old: &str| {
            either(o, &format!("throttling.{new}{end_new}"), &format!("{old}{end_old}"))
        };
        *limit = Limit {
            average: one("", "")?.unwrap_or(0),
            burst: one("-max", "_max")?.unwrap_or(0),
            burst_length: one("-max-length", "_max_length")?.unwrap_or(1),
        };
        if limit.burst_length == 0 {
            return Err(crate::Error::invalid("the burst length cannot be 0"));
        }
    }
    limits.request_size = either(o, "throttling.iops-size", "iops_size")?.unwrap_or(0);
    let group = o.take("throttling.group").or(o.take("group"));
    limits.check()?;
    if !limits.any() && group.is_none() {
        return Ok(None);
    }
    // Without a name a disk is a group of its own.
    Ok(Some(Throttling { group: group.unwrap_or_else(|| format!("#{id}")), limits }))
}

fn either(o: &mut Options, new: &str, old: &str) -> Result<Option<u64>> {
    let (a, b) = (o.take_number(new)?, o.take_number(old)?);
    Ok(a.or(b))
}
