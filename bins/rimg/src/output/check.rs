//! The result of `check`.

use imgcore::format::CheckReport;
use imgcore::ops::check::CheckOutcome;
use serde_json::{Value, json};

/// For people.
pub fn human(report: &CheckReport) -> String {
    let mut text = String::new();
    let r = report;
    if r.leaks_fixed != 0 || r.corruptions_fixed != 0 {
        text.push_str(&format!(
            "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    \
             {} corruptions\n\nDouble checking the fixed image now...\n",
            r.leaks_fixed, r.corruptions_fixed
        ));
    }
    if r.corruptions == 0 && r.leaks == 0 && r.check_errors == 0 {
        text.push_str("No errors were found on the image.\n");
    }
    if r.corruptions != 0 {
        text.push_str(&format!(
            "\n{} errors were found on the image.\nData may be corrupted, or further writes to the \
             image may corrupt it.\n",
            r.corruptions
        ));
    }
    if r.leaks != 0 {
        text.push_str(&format!(
            "\n{} leaked clusters were found on the image.\nThis means waste of disk space, but no \
             harm to data.\n",
            r.leaks
        ));
    }
    if r.check_errors != 0 {
        text.push_str(&format!(
            "\n{} internal errors have occurred during the check.\n",
            r.check_errors
        ));
    }
    if let (Some(total @ 1..), Some(allocated @ 1..)) = (r.total_clusters, r.allocated_clusters) {
        text.push_str(&format!(
            "{allocated}/{total} = {}% allocated, {}% fragmented, {}% compressed clusters\n",
            percent(allocated, total),
            percent(r.fragmented_clusters.unwrap_or(0), allocated),
            percent(r.compressed_clusters.unwrap_or(0), allocated),
        ));
    }
    if let Some(end @ 1..) = r.image_end_offset {
        text.push_str(&format!("Image end offset: {end}\n"));
    }
    text
}

fn percent(part: u64, whole: u64) -> String {
    // Counts of clusters are far below 2^53.
    #[allow(clippy::cast_precision_loss)]
    let value = part as f64 * 100.0 / whole as f64;
    format!("{value:.2}")
}

/// In QEMU's field names (`ImageCheck` of `qapi/block-core.json`); zero counts are left out.
pub fn json(outcome: &CheckOutcome) -> Value {
    let r = &outcome.report;
    let mut value = json!({
        "filename": outcome.filename,
        "format": outcome.format,
        "check-errors": r.check_errors,
    });
    for (name, count) in [
        ("image-end-offset", r.image_end_offset),
        ("corruptions", Some(r.corruptions)),
        ("leaks", Some(r.leaks)),
        ("corruptions-fixed", Some(r.corruptions_fixed)),
        ("leaks-fixed", Some(r.leaks_fixed)),
        ("total-clusters", r.total_clusters),
        ("allocated-clusters", r.allocated_clusters),
        ("fragmented-clusters", r.fragmented_clusters),
        ("compressed-clusters", r.compressed_clusters),
    ] {
        if let Some(n @ 1..) = count {
            value[name] = n.into();
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clean() {
        let r = CheckReport {
            image_end_offset: Some(458_752),
            total_clusters: Some(640),
            allocated_clusters: Some(640),
            fragmented_clusters: Some(639),
            compressed_clusters: Some(639),
            ..CheckReport::default()
        };
        assert_eq!(
            human(&r),
            "No errors were found on the image.\n640/640 = 100.00% allocated, 99.84% fragmented, \
             99.84% compressed clusters\nImage end offset: 458752\n"
        );
    }

    #[test]
    fn leaks() {
        let r = CheckReport { leaks: 2, ..CheckReport::default() };
        assert_eq!(
            human(&r),
            "\n2 leaked clusters were found on the image.\nThis means waste of disk space, but no \
             harm to data.\n"
        );
        let o = CheckOutcome { report: r, ..CheckOutcome::default() };
        assert_eq!(json(&o)["leaks"], 2);
        assert!(json(&o).get("corruptions").is_none());
    }
}
