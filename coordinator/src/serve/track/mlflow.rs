//! MLflow's REST API (2.0). A job is a run with the tag `llink.job`, which a coordinator finds again after a restart.

use llink_proto::{Job, JobState};
use reqwest::header::AUTHORIZATION;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use url::Url;

use super::http::{Fault, Http};
use super::{Point, Run};
use crate::ui::state_word;

/// The limits of MLflow on one request and on a value.
const METRICS_AT_ONCE: usize = 1000;
const PARAMS_AT_ONCE: usize = 100;
const PARAM_CHARS: usize = 500;

pub(super) struct MlFlow {
    http: Http,
    url: String,
    of: Run,
    run: Option<String>,
}

impl MlFlow {
    pub(super) fn new(url: &str, token: Option<String>, of: Run) -> Result<Self, String> {
        let http = Http::new(token.map(|token| (AUTHORIZATION, token)))?;
        Ok(Self { http, url: format!("{}/api/2.0/mlflow", url.trim_end_matches('/')), of, run: None })
    }

    pub(super) async fn tell(&mut self, points: &[Point], ended: Option<&Job>) -> Result<(), Fault> {
        let run = match &self.run {
            Some(run) => run.clone(),
            None => self.open().await?,
        };
        self.run = Some(run.clone());
        for points in points.chunks(METRICS_AT_ONCE) {
            let metric = |p: &Point| json!({"key": p.name, "value": p.value, "timestamp": p.at, "step": p.step});
            let metrics: Vec<Value> = points.iter().map(metric).collect();
            self.post("runs/log-batch", &json!({"run_id": run, "metrics": metrics})).await?;
        }
        let Some(job) = ended else { return Ok(()) };
        let status = match job.state() {
            JobState::Succeeded => "FINISHED",
            JobState::Cancelled => "KILLED",
            _ => "FAILED",
        };
        let tags = [
            tag("llink.state", state_word(job)),
            tag("llink.reason", &job.reason),
            tag("llink.output", &job.output_url),
        ];
        self.post("runs/log-batch", &json!({"run_id": run, "tags": tags})).await?;
        let end = json!({"run_id": run, "status": status, "end_time": job.ended_at});
        self.post("runs/update", &end).await.map(|_| ())
    }

    /// Returns the run of the job: the one from before, or a new one.
    async fn open(&self) -> Result<String, Fault> {
        let experiment = self.experiment().await?;
        let filter = format!("tags.`llink.job` = '{}'", self.of.job);
        let search = json!({"experiment_ids": [experiment], "filter": filter, "max_results": 1});
        let found = self.post("runs/search", &search).await?;
        if let Some(run) = found.pointer("/runs/0/info/run_id").and_then(Value::as_str) {
            let again = json!({"run_id": run, "status": "RUNNING"});
            self.post("runs/update", &again).await?;
            return Ok(run.to_owned());
        }
        let new = json!({
            "experiment_id": experiment, "run_name": self.of.job, "start_time": self.of.submitted_at,
            "tags": [tag("llink.job", &self.of.job), tag("mlflow.source.name", "llink")],
        });
        let run = text(&self.post("runs/create", &new).await?, "/run/info/run_id")?;
        let mut params = Vec::new();
        flatten(String::new(), &self.of.config, &mut params);
        for params in params.chunks(PARAMS_AT_ONCE) {
            self.post("runs/log-batch", &json!({"run_id": run, "params": params})).await?;
        }
        Ok(run)
    }

    async fn experiment(&self) -> Result<String, Fault> {
        let address = format!("{}/experiments/get-by-name", self.url);
        let name = [("experiment_name", &self.of.experiment)];
        let url = Url::parse_with_params(&address, name).map_err(|e| lasting(e.to_string()))?;
        match self.http.json(Method::GET, url.as_str(), None).await {
            Ok(found) => text(&found, "/experiment/experiment_id"),
            Err(fault) if fault.status == Some(StatusCode::NOT_FOUND) => {
                let new = json!({"name": self.of.experiment});
                text(&self.post("experiments/create", &new).await?, "/experiment_id")
            }
            Err(fault) => Err(fault),
        }
    }

    async fn post(&self, call: &str, body: &Value) -> Result<Value, Fault> {
        let url = format!("{}/{call}", self.url);
        self.http.json(Method::POST, &url, Some(body)).await
    }
}

fn tag(key: &str, value: &str) -> Value {
    json!({"key": key, "value": value})
}

fn text(answer: &Value, pointer: &str) -> Result<String, Fault> {
    let found = answer.pointer(pointer).and_then(Value::as_str);
    found.map(str::to_owned).ok_or_else(|| lasting(format!("it does not answer as MLflow does: there is no {pointer}")))
}

fn lasting(text: String) -> Fault {
    Fault { text, passes: false, wait: None, status: None }
}

/// Adds each value below `value` as a parameter with its dotted key.
fn flatten(key: String, value: &Value, params: &mut Vec<Value>) {
    let shown = match value {
        Value::Object(table) => {
            for (name, value) in table {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                flatten(key, value, params);
            }
            return;
        }
        Value::String(text) => text.clone(),
        value => value.to_string(),
    };
    params.push(tag(&key, &shown.chars().take(PARAM_CHARS).collect::<String>()));
}
