//! The result: ratios of ours to the reference, as a Markdown table or as JSON.

use super::measure::Round;
use crate::process::Cost;
use serde_json::{Value, json};

/// Less than this is the output on the terminal, not an image.
const LEAST_WRITTEN: f64 = 1_048_576.0;

/// Median; of an even number the mean of the middle two.
#[must_use]
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.retain(|value| value.is_finite());
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => values.get(middle).copied(),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// Medians of one job.
#[derive(Debug, Clone, Copy)]
pub struct Summary {
    /// Ours to the reference, the median of the rounds' ratios.
    pub wall: Option<f64>,
    /// The same for CPU time.
    pub cpu: Option<f64>,
    /// The same for peak memory.
    pub memory: Option<f64>,
    /// The same for bytes written; none where the reference wrote nothing.
    pub written: Option<f64>,
    /// The reference's seconds: wall, CPU.
    pub reference: (Option<f64>, Option<f64>),
    /// The plain copy to the reference: wall, CPU.
    pub limit: (Option<f64>, Option<f64>),
}

/// Sums up the rounds of a job.
#[must_use]
pub fn summary(rounds: &[Round]) -> Summary {
    let ratios = |of: fn(&Cost) -> Option<f64>| {
        let each = rounds.iter().filter_map(|r| Some(of(&r.ours)? / of(&r.theirs)?));
        median(each.collect())
    };
    let limits = |of: fn(&Cost) -> Option<f64>| {
        let each = rounds.iter().filter_map(|r| Some(of(r.limit.as_ref()?)? / of(&r.theirs)?));
        median(each.collect())
    };
    let theirs = |of: fn(&Cost) -> Option<f64>| {
        median(rounds.iter().filter_map(|r| of(&r.theirs)).collect())
    };
    Summary {
        wall: ratios(wall),
        cpu: ratios(cpu),
        memory: ratios(memory),
        written: ratios(written),
        reference: (theirs(wall), theirs(cpu)),
        limit: (limits(wall), limits(cpu)),
    }
}

// The options let an absent measurement and a zero, which divides badly, look alike.
fn wall(cost: &Cost) -> Option<f64> {
    Some(cost.wall.as_secs_f64()).filter(|s| *s > 0.0)
}

fn cpu(cost: &Cost) -> Option<f64> {
    Some(cost.cpu().as_secs_f64()).filter(|s| *s > 0.0)
}

#[allow(clippy::cast_precision_loss)] // a ratio of bytes needs no more than 52 bits
fn memory(cost: &Cost) -> Option<f64> {
    Some(cost.peak_rss as f64).filter(|b| *b > 0.0)
}

#[allow(clippy::cast_precision_loss)] // as above
fn written(cost: &Cost) -> Option<f64> {
    cost.written.map(|bytes| bytes as f64).filter(|b| *b >= LEAST_WRITTEN)
}

/// The head of the table.
#[must_use]
pub fn head() -> String {
    "| job | wall | CPU | peak memory | written | qemu-img wall, CPU (s) | cp: wall, CPU |\n\
     | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
        .to_owned()
}

/// One row of the table.
#[must_use]
pub fn row(name: &str, summary: &Summary) -> String {
    let ratio = |value: Option<f64>| value.map_or("–".to_owned(), |v| format!("{v:.2}"));
    let seconds = |value: Option<f64>| value.map_or("–".to_owned(), |v| format!("{v:.3}"));
    let limit = match summary.limit {
        (None, None) => "–".to_owned(),
        (wall, cpu) => format!("{}, {}", ratio(wall), ratio(cpu)),
    };
    format!(
        "| {name} | {} | {} | {} | {} | {}, {} | {limit} |",
        ratio(summary.wall),
        ratio(summary.cpu),
        ratio(summary.memory),
        ratio(summary.written),
        seconds(summary.reference.0),
        seconds(summary.reference.1),
    )
}

/// One job with every round, for programs.
#[must_use]
pub fn record(name: &str, line: &str, rounds: &[Round]) -> Value {
    let cost = |cost: &Cost| {
        json!({
            "wall": cost.wall.as_secs_f64(),
            "user": cost.user.as_secs_f64(),
            "system": cost.system.as_secs_f64(),
            "peak-rss": cost.peak_rss,
            "written": cost.written,
        })
    };
    let s = summary(rounds);
    json!({
        "job": name,
        "line": line,
        "ratio": {"wall": s.wall, "cpu": s.cpu, "peak-rss": s.memory, "written": s.written},
        "rounds": rounds.iter().map(|round| json!({
            "qemu-img": cost(&round.theirs),
            "rimg": cost(&round.ours),
            "cp": round.limit.as_ref().map(cost),
        })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![1.0, 2.0]), Some(1.5));
        assert_eq!(median(vec![f64::NAN]), None);
    }

    #[test]
    fn a_row_shows_ratios_within_rounds() {
        let cost = |millis, written: u64| Cost {
            wall: Duration::from_millis(millis),
            user: Duration::from_millis(millis),
            peak_rss: 1024,
            written: Some(written << 24),
            ..Cost::default()
        };
        let round =
            |ours, theirs| Round { ours: cost(ours, 5), theirs: cost(theirs, 0), limit: None };
        let rounds = [round(50, 100), round(500, 1000), round(900, 900)];
        let row = row("x", &summary(&rounds));
        assert_eq!(row, "| x | 0.50 | 0.50 | 1.00 | – | 0.900, 0.900 | – |");
    }
}
