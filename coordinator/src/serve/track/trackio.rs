//! Trackio's HTTP API. A job is a run of the same name. Trackio ignores an entry that it has already.

use std::collections::BTreeMap;

use llink_proto::Job;
use reqwest::Method;
use reqwest::header::{AUTHORIZATION, HeaderName};
use serde_json::{Value, json};

use super::Point;
use super::http::{Fault, Http};
use crate::job::JobFile;

/// The header for the write token of a server that is no Space.
const WRITE_TOKEN: HeaderName = HeaderName::from_static("x-trackio-write-token");

pub(super) struct Trackio {
    http: Http,
    url: String,
    project: String,
    job: String,
    submitted_at: i64,
    /// The job file, until the run has it.
    config: Option<Value>,
}

impl Trackio {
    pub(super) fn new(
        url: &str,
        token: Option<String>,
        project: String,
        file: &JobFile,
        job: &Job,
    ) -> Result<Self, String> {
        let header = |token: String| match token.starts_with("hf_") {
            true => (AUTHORIZATION, token),
            false => (WRITE_TOKEN, token),
        };
        Ok(Self {
            http: Http::new(token.map(header))?,
            url: format!("{}/api/bulk_log", url.trim_end_matches('/')),
            project,
            job: job.id.clone(),
            submitted_at: job.submitted_at,
            config: Some(serde_json::to_value(file).expect("a job file is plain data")),
        })
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
        let entry = |((at, step), metrics): (&(i64, u64), &BTreeMap<&str, f64>)| {
            json!({
                "project": self.project, "run": self.job, "run_id": self.job, "metrics": metrics, "step": step,
                "config": self.config, "log_id": format!("{}/{}/{at}/{step}", self.job, self.submitted_at),
            })
        };
        let logs: Vec<Value> = steps.iter().map(entry).collect();
        let body = json!({"logs": logs, "hf_token": null});
        self.http.json(Method::POST, &self.url, Some(&body)).await?;
        self.config = None;
        Ok(())
    }
}
