//! The report for programs. The schema is described in `hostprep/schema/check.schema.json`; fields are only
//! ever added, and a change of meaning raises [`SCHEMA_VERSION`].

use serde_json::json;

use crate::check::{Finding, worst};
use crate::error::{Error, Result};

/// Version of the schema.
pub const SCHEMA_VERSION: u32 = 1;

/// Writes the report, with a newline at its end.
pub fn json(findings: &[Finding]) -> Result<String> {
    let worst = worst(findings);
    let value = json!({
        "schema": SCHEMA_VERSION,
        "program": "rhostprep",
        "worst": worst,
        "exit-code": worst.exit_code(),
        "findings": findings,
    });
    serde_json::to_string_pretty(&value)
        .map(|text| text + "\n")
        .map_err(|error| Error::host(format!("the report cannot be written as JSON: {error}")))
}
