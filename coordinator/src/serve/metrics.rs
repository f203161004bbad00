//! Metrics for Prometheus, which are off unless an address is given. They show the state of the cluster at each scrape,
//! and count calls. `k8s/RUNBOOK.md` explains each of them.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use llink_proto::{JobState, StageState};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::ServeError;
use super::engine::EngineHandle;
use super::pages::FewPages;
use crate::schedule::Cluster;

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    call: String,
    outcome: String,
}

/// The counts of calls by their name and outcome.
#[derive(Debug, Clone, Default)]
pub(super) struct Calls(Family<CallLabels, Counter>);

impl Calls {
    pub(super) fn count(&self, call: &str, outcome: &str) {
        // All unknown calls share one series, or a scanner would create thousands.
        let known = ["JobService/", "WorkerService/", "Page/"].iter().any(|of| call.starts_with(of));
        let call = if known && outcome != "Unimplemented" { call } else { "unknown" };
        self.0.get_or_create(&CallLabels { call: call.into(), outcome: outcome.into() }).inc();
    }
}

/// The time that the state store takes to save a step, in seconds.
#[derive(Debug, Clone)]
pub(super) struct Saves(pub(super) Histogram);

impl Default for Saves {
    fn default() -> Self {
        Self(Histogram::new([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0]))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

/// A state and the number of objects in it.
type ByState = (&'static str, i64);

/// The state of the cluster at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Snapshot {
    jobs: [(&'static str, i64); 4],
    tasks: [(&'static str, i64); 4],
    workers: [(&'static str, i64); 2],
    stages_waiting_for_workers: i64,
    wanted_workers: i64,
    failures: u64,
    losses: u64,
}

impl Snapshot {
    pub(super) fn of(cluster: &Cluster) -> Self {
        let jobs = |state: JobState| cluster.jobs.values().filter(|j| j.state == state).count() as i64;
        let tasks = cluster.tasks.counts();
        let busy = cluster.workers.values().filter(|w| !w.seats.is_empty()).count() as i64;
        let running = |s: &&crate::schedule::Stage| s.state == StageState::Running;
        let waits = |j: &crate::schedule::Job| {
            j.state == JobState::Running && j.stages.iter().any(|s| running(&s)) && busy == 0
        };
        Self {
            jobs: [
                ("running", jobs(JobState::Running)),
                ("succeeded", jobs(JobState::Succeeded)),
                ("failed", jobs(JobState::Failed)),
                ("cancelled", jobs(JobState::Cancelled)),
            ],
            tasks: [
                ("waiting", tasks.waiting as i64),
                ("leased", tasks.leased as i64),
                ("done", tasks.done as i64),
                ("failed", tasks.failed as i64),
            ],
            workers: [("busy", busy), ("idle", cluster.workers.len() as i64 - busy)],
            stages_waiting_for_workers: cluster.jobs.values().filter(|j| waits(j)).count() as i64,
            // A running job counts as one between its tasks too. 0 means that every worker may go.
            wanted_workers: (cluster.tasks.wanted_workers(cluster.workers.len()) as i64)
                .max(jobs(JobState::Running).min(1)),
            failures: tasks.failures,
            losses: tasks.losses,
        }
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let families: [(&str, &str, &[ByState]); 3] = [
            ("llink_jobs", "Jobs by their state", &self.jobs),
            ("llink_tasks", "Tasks of the jobs that are kept, by their state", &self.tasks),
            ("llink_workers", "Workers that are registered now", &self.workers),
        ];
        for (name, help, values) in families {
            let first = ConstGauge::new(0_i64);
            let mut family = encoder.encode_descriptor(name, help, None, first.metric_type())?;
            for (state, value) in values {
                ConstGauge::new(*value).encode(family.encode_family(&StateLabel { state })?)?;
            }
        }
        let single = [
            ("llink_jobs_without_worker", "Running jobs while no worker is busy", self.stages_waiting_for_workers),
            (
                "llink_wanted_workers",
                "Workers that have something to do, including those that hold a lease",
                self.wanted_workers,
            ),
            ("llink_task_failures", "Failed attempts of the tasks that are kept", self.failures as i64),
            ("llink_task_losses", "Attempts that were lost with their worker", self.losses as i64),
        ];
        for (name, help, value) in single {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

pub(super) async fn serve(
    address: SocketAddr,
    engine: EngineHandle,
    calls: Calls,
    saves: Saves,
    stopped: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let listener = TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })?;
    let shared = Arc::new((engine, calls, saves));
    let app = Router::new().route(
        "/metrics",
        get(move || {
            let shared = shared.clone();
            async move {
                let (engine, calls, saves) = &*shared;
                let snapshot = engine.call(|e| Snapshot::of(&e.cluster)).await;
                let text = snapshot.map_err(|e| e.to_string()).and_then(|s| text(s, calls, saves));
                match text {
                    Ok(text) => (axum::http::StatusCode::OK, [("content-type", CONTENT_TYPE)], text),
                    Err(e) => (axum::http::StatusCode::SERVICE_UNAVAILABLE, [("content-type", "text/plain")], e),
                }
            }
        }),
    );
    tokio::spawn(async move {
        if let Err(e) = axum::serve(FewPages::new(listener), app).with_graceful_shutdown(super::wait_for(stopped)).await
        {
            tracing::warn!("metrics: {e}");
        }
    });
    Ok(())
}

fn text(snapshot: Snapshot, calls: &Calls, saves: &Saves) -> Result<String, String> {
    let mut registry = Registry::default();
    registry.register("llink_calls", "Calls by their outcome", calls.0.clone());
    registry.register_with_unit(
        "llink_state_save",
        "Time to save a step to the state store",
        Unit::Seconds,
        saves.0.clone(),
    );
    registry.register_collector(Box::new(snapshot));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).map_err(|e| e.to_string())?;
    Ok(text)
}
