//! `bench`

use std::time::Duration;

use imgcore::graph::open::open;
use imgcore::ops::bench::{self, BenchKind, BenchOptions, BenchReport};
use imgcore::opts::size;
use imgcore::storage::CacheMode;
use serde_json::json;

use crate::args::getopt::Parser;
use crate::common::Common;
use crate::failure::Failure;
use crate::output::{self, Output};
use crate::session::Session;

const MAX_INT: u64 = 0x7fff_ffff;

/// Runs it.
pub fn run(session: &Session, mut parser: Parser) -> Result<u8, Failure> {
    let mut common = Common::new(session, parser.command);
    let mut options = BenchOptions::default();
    let mut cache = CacheMode::Writeback;
    let (mut write, mut native, mut drain) = (false, false, true);
    let (mut pattern, mut flush_interval) = (0, 0);
    while let Some(given) = parser.next_option()? {
        let number = |what: &str, min: u64| size::argument(what, &given.value, min, MAX_INT);
        match given.id {
            "cache" => {
                cache = CacheMode::parse(&given.value)
                    .ok_or_else(|| Failure::new("Invalid cache mode"))?;
            }
            "count" => options.count = number("request count", 1)?,
            "depth" => {
                options.depth = u32::try_from(number("queue depth", 1)?).unwrap_or(u32::MAX);
            }
            "offset" => options.offset = size::size_argument("offset", &given.value)?,
            "buffer-size" => options.buffer_size = number("buffer size", 1)?,
            "step-size" => options.step = number("step size", 0)?,
            "aio" => match given.value.as_str() {
                "threads" | "io_uring" => native = false,
                "native" => native = true,
                other => return Err(Failure::new(format!("Invalid aio option: {other}"))),
            },
            "native" => native = true,
            "write" => write = true,
            "pattern" => {
                let byte = size::argument("pattern byte", &given.value, 0, 255)?;
                pattern = u8::try_from(byte).unwrap_or(u8::MAX);
            }
            "flush-interval" => flush_interval = number("flush interval", 0)?,
            "no-drain" => drain = false,
            _ => common.take(given)?,
        }
    }
    let name = common.one_image(parser.positionals())?;
    if !write && flush_interval != 0 {
        return Err(Failure::new("--flush-interval is only available in write tests"));
    }
    if flush_interval != 0 && flush_interval < u64::from(options.depth) {
        return Err(Failure::new("Flush interval can't be smaller than depth"));
    }
    if write {
        common.changes_images();
    }
    options.image = common.image(&name, cache)?;
    if native && !cache.direct() {
        return Err(Failure::new(format!(
            "Could not open '{name}': aio=native was specified, but it requires cache.direct=on, \
             which was not specified."
        )));
    }
    if write {
        options.kind = BenchKind::Write { pattern, flush_interval, drain };
    }
    let reporter = common.reporter();
    let report = common.run(&reporter, |job| -> imgcore::Result<_> {
        // What will be done is announced before it is done, but not for an image that cannot be
        // opened.
        open(&options.image.request, &options.image.options(job))?;
        if common.output == Output::Human {
            output::print(&announcement(&options));
        }
        bench::bench(&options, job)
    })?;
    match common.output {
        Output::Human => output::print(&human(&report, session.as_qemu_img)),
        Output::Json => output::print(&output::json::pretty(&json(&report))),
    }
    Ok(0)
}

fn announcement(o: &BenchOptions) -> String {
    let (what, flush) = match o.kind {
        BenchKind::Read => ("read", 0),
        BenchKind::Write { flush_interval, .. } => ("write", flush_interval),
    };
    let step = if o.step == 0 { o.buffer_size } else { o.step };
    let mut text = format!(
        "Sending {} {what} requests, {} bytes each, {} in parallel (starting at offset {}, step \
         size {step})\n",
        o.count, o.buffer_size, o.depth, o.offset
    );
    if flush != 0 {
        text.push_str(&format!("Sending flush every {flush} requests\n"));
    }
    text
}

fn human(r: &BenchReport, as_qemu_img: bool) -> String {
    let mut text = format!("Run completed in {:.3} seconds.\n", r.elapsed.as_secs_f64());
    if !as_qemu_img {
        let [min, median, p99, max] = r.latency.map(|d| d.as_micros());
        text.push_str(&format!(
            "{} requests/s, {} MiB/s; latency in µs: min {min}, median {median}, 99 % {p99}, max \
             {max}\n",
            per_second(r.requests, r.elapsed),
            per_second(r.bytes, r.elapsed) >> 20,
        ));
    }
    text
}

fn per_second(n: u64, time: Duration) -> u128 {
    u128::from(n) * 1_000_000 / time.as_micros().max(1)
}

fn json(r: &BenchReport) -> serde_json::Value {
    let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
    let [min, median, p99, max] = r.latency.map(nanos);
    json!({
        "elapsed-ns": nanos(r.elapsed),
        "requests": r.requests,
        "bytes": r.bytes,
        "latency-ns": { "min": min, "median": median, "p99": p99, "max": max },
    })
}
