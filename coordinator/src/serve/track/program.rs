//! The programs that a job names in `[track]`.

use std::fmt;

use llink_datasets::shown::ShownUrl;
use llink_proto::Job;

use super::http::{Fault, Http};
use super::mlflow::MlFlow;
use super::trackio::Trackio;
use super::webhook::Webhook;
use super::{Point, Run, secret};
use crate::job::{JobFile, TrackSection};

pub(super) struct Program {
    name: String,
    kind: Kind,
}

enum Kind {
    MlFlow(MlFlow),
    Trackio(Trackio),
    Webhook(Webhook),
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Program {
    /// Returns the programs of a job with their keys in the job file, or why they can't be told.
    pub(super) fn all_of(file: &JobFile, job: &Job) -> Vec<(&'static str, Result<Self, String>)> {
        let track = file.track.clone().unwrap_or_default();
        let TrackSection {
            mlflow,
            mlflow_token_env,
            trackio,
            trackio_token_env,
            experiment,
            webhook,
            webhook_secret_env,
        } = track;
        let run = || Run {
            experiment: experiment.clone().unwrap_or_else(|| file.name.clone()),
            job: job.id.clone(),
            submitted_at: job.submitted_at,
            config: serde_json::to_value(file).expect("a job file is plain data"),
        };
        let mlflow = mlflow.map(|url| {
            let of = |token| Ok(Kind::MlFlow(MlFlow::new(&url, token, run())?));
            ("track.mlflow", Self::new("MLflow", &url, mlflow_token_env, of))
        });
        let trackio = trackio.map(|url| {
            let of = |token| Ok(Kind::Trackio(Trackio::new(&url, token, run())?));
            ("track.trackio", Self::new("Trackio", &url, trackio_token_env, of))
        });
        let webhook = webhook.map(|url| {
            let of =
                |secret: Option<String>| Ok(Kind::Webhook(Webhook::new(Http::new(None)?, &url, secret.as_deref())?));
            let program = Self::new("the webhook", &url, webhook_secret_env, of);
            ("track.webhook", program)
        });
        [mlflow, trackio, webhook].into_iter().flatten().collect()
    }

    fn new(
        name: &str,
        url: &str,
        secret_env: Option<String>,
        of: impl FnOnce(Option<String>) -> Result<Kind, String>,
    ) -> Result<Self, String> {
        let name = format!("{name} at {}", ShownUrl::of(url));
        let read = secret_env.as_deref().map(secret).transpose();
        match read.and_then(of) {
            Ok(kind) => Ok(Self { name, kind }),
            Err(e) => Err(format!("{name} is not told of this job: {e}")),
        }
    }

    /// Tells the program figures, and the job's end once it has ended. A second call with the same figures does no harm.
    pub(super) async fn tell(&mut self, points: &[Point], ended: Option<&Job>) -> Result<(), Fault> {
        match &mut self.kind {
            Kind::MlFlow(mlflow) => mlflow.tell(points, ended).await,
            Kind::Trackio(trackio) => trackio.tell(points).await,
            Kind::Webhook(webhook) => match ended {
                Some(job) => webhook.tell(job).await,
                None => Ok(()),
            },
        }
    }
}
