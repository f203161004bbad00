//! Trackio's HTTP API. A job is a run of the same name. Trackio ignores an entry that it has already.

use std::collections::BTreeMap;

use reqwest::Method;
use reqwest::header::{AUTHORIZATION, HeaderName};
use serde_json::{Value, json};

use super::http::{Fault, Http};
use super::{Point, Run};

/// The header for the write token of a server that is no Space.
const WRITE_TOKEN: HeaderName = HeaderName::from_static("x-trackio-write-token");

pub(super) struct Trackio {
    http: Http,
    url: String,
    /// Without the job file, once the run has it.
    of: Run,
}

impl Trackio {
    pub(super) fn new(url: &str, token: Option<String>, of: Run) -> Result<Self, String> {
        let header = |token: String| match token.starts_with("hf_") {
            true => (AUTHORIZATION, token),
            false => (WRITE_TOKEN, token),
        };
        let http = Http::new(token.map(header))?;
        Ok(Self { http, url: format!("{}/api/bulk_log", url.trim_end_matches('/')), of })
    }

    pub(super) async fn tell(&mut self, points: &[Point]) -> Result<(), Fault> {
        if points.is_empty() {
            return Ok(());
        }
        let mut steps: BTreeMap<(i64, u64), BTreeMap<&str, f64>> = BTreeMap::new();
        for point in points {
            let step = steps.entry((point.at, point.step)).or_default();
            step.insert(&point.name, point.value);
        }
        let of = &self.of;
        let entry = |((at, step), metrics): (&(i64, u64), &BTreeMap<&str, f64>)| {
            json!({
                "project": of.experiment, "run": of.job, "run_id": of.job, "metrics": metrics, "step": step,
                "config": of.config, "log_id": format!("{}/{}/{at}/{step}", of.job, of.submitted_at),
            })
        };
        let logs: Vec<Value> = steps.iter().map(entry).collect();
        let body = json!({"logs": logs, "hf_token": null});
        self.http.json(Method::POST, &self.url, Some(&body)).await?;
        self.of.config.take();
        Ok(())
    }
}
