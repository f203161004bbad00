//! Metrics for Prometheus, which are off unless an address is given. They show the state of the cluster at each scrape,
//! and count calls. `k8s/RUNBOOK.md` explains each of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use llink_proto::{JobState, StageState};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::watch;

use super::ServeError;
use super::accept::{self, Protection, Spoken};
use super::connections::Limits;
use super::engine::EngineHandle;
use crate::schedule::{Cluster, Job};
use crate::ui::job_word;

/// The time after which a connection is closed. A scraper opens another one.
const LASTS: Duration = Duration::from_secs(5);
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

fn snapshot(cluster: &Cluster) -> Registry {
    let mut registry = Registry::default();
    let mut by_state = |name: &str, help: &str, counts: &[(&'static str, usize)]| {
        let family = Family::<StateLabel, Gauge>::default();
        for (state, count) in counts {
            family.get_or_create(&StateLabel { state }).set(*count as i64);
        }
        registry.register(name, help, family);
    };
    let mut states = [JobState::Running, JobState::Succeeded, JobState::Failed, JobState::Cancelled].map(|s| (s, 0));
    for job in cluster.jobs.values() {
        states.iter_mut().filter(|(state, _)| *state == job.state).for_each(|(_, count)| *count += 1);
    }
    let running = states[0].1;
    by_state("llink_jobs", "Jobs by their state", &states.map(|(state, count)| (job_word(state), count)));
    let tasks = cluster.tasks.counts();
    let open = [("waiting", tasks.waiting), ("leased", tasks.leased), ("done", tasks.done), ("failed", tasks.failed)];
    by_state("llink_tasks", "Tasks of the jobs that are kept, by their state", &open);
    let workers = cluster.workers.len();
    let busy = cluster.workers.values().filter(|w| !w.seats.is_empty()).count();
    by_state("llink_workers", "Workers that are registered now", &[("busy", busy), ("idle", workers - busy)]);
    let waits = |job: &&Job| job.stages.iter().any(|stage| stage.state == StageState::Running) && busy == 0;
    let waiting = cluster.jobs.values().filter(|job| job.state == JobState::Running).filter(waits).count();
    // A running job counts as one between its tasks too. 0 means that every worker may go.
    let wanted = cluster.tasks.wanted_workers(workers).max(running.min(1));
    let mut single = |name: &str, help: &str, value: i64| {
        let gauge: Gauge = Gauge::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    single("llink_jobs_without_worker", "Running jobs while no worker is busy", waiting as i64);
    let help = "Workers that have something to do, including those that hold a lease";
    single("llink_wanted_workers", help, wanted as i64);
    single("llink_task_failures", "Failed attempts of the tasks that are kept", tasks.failures as i64);
    single("llink_task_losses", "Attempts that were lost with their worker", tasks.losses as i64);
    registry
}

pub(super) async fn serve(
    address: SocketAddr,
    engine: EngineHandle,
    calls: Calls,
    saves: Saves,
    stopped: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let (listener, _) = accept::bind(address).await?;
    let shared = Arc::new((engine, calls, saves));
    let scrape = move || {
        let shared = shared.clone();
        async move {
            let (engine, calls, saves) = &*shared;
            let registry = engine.call(|e| snapshot(&e.cluster)).await;
            let text = registry.map_err(|e| e.to_string()).and_then(|registry| text(registry, calls, saves));
            match text {
                Ok(text) => (StatusCode::OK, [("content-type", CONTENT_TYPE)], text),
                Err(e) => (StatusCode::SERVICE_UNAVAILABLE, [("content-type", "text/plain")], e),
            }
        }
    };
    let app = Router::new().route("/metrics", get(scrape));
    let incoming = accept::incoming(listener, Protection::Plain, Spoken::Http1, Limits::FEW);
    tokio::spawn(async move {
        tokio::select! {
            () = accept::serve_http1(incoming, app, LASTS) => {}
            () = super::wait_for(stopped) => {}
        }
    });
    Ok(())
}

fn text(mut registry: Registry, calls: &Calls, saves: &Saves) -> Result<String, String> {
    registry.register("llink_calls", "Calls by their outcome", calls.0.clone());
    let help = "Time to save a step to the state store";
    registry.register_with_unit("llink_state_save", help, Unit::Seconds, saves.0.clone());
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).map_err(|e| e.to_string())?;
    Ok(text)
}
