//! People submit jobs until they are done. Meanwhile processes die, clocks jump and files vanish.

use std::sync::Arc;

use futures::{FutureExt, TryStreamExt};
use llink_proto::job_service_server::JobService;
use llink_proto::{CancelRequest, GetRequest, Job, JobState, SubmitRequest};
use object_store::{ObjectStore, ObjectStoreExt};
use tonic::{Code, Status};

use super::network::{Answer, request};
use super::process::Server;
use super::world::OUTSIDE;
use super::{Fault, PLACE, Sim, locked};
use crate::plan::manifest_path;

pub(super) const SOURCES: [&str; 3] = ["a.tsv", "b.tsv", "c.tsv"];
pub(super) const JOBS: usize = 4;

/// Returns a job file. The jobs have some of their stages in common.
fn job_file(job: usize) -> String {
    let sources = &SOURCES[..if job == 2 { 3 } else { 2 }];
    let sources: Vec<String> = sources.iter().map(|name| format!("\"memory://{PLACE}/in/{name}\"")).collect();
    let metric = if job == 3 { "whitened" } else { "cosine" };
    format!(
        "name = \"job{job}\"\noutput = \"memory://{PLACE}/out\"\n[corpus]\nsource = [{}]\n\
         [models]\nencoder = \"random\"\ndecoder = \"random\"\n\
         [align]\nlearning_rate = 0.00{}\nmetric = \"{metric}\"\nmax_ranks = {}\n\
         [workers]\npriority = {}\nat_most = {}\n",
        sources.join(", "),
        1 + job % 2,
        [2, 3, 0, 1][job],
        i64::from(job == 2),
        [0, 3, 0, 0][job],
    )
}

/// Submits a job until it has succeeded after the last fault.
pub(super) async fn person(sim: Arc<Sim>, job: usize, place: usize) {
    sim.world.sleep(sim.world.between(0, 20_000)).await;
    loop {
        let calm = !sim.in_trouble();
        let Some(id) = submit(&sim, job, place).await else {
            continue;
        };
        let state = wait(&sim, &id, place).await;
        if state == JobState::Succeeded && calm && note(&sim, &id, job, place).await {
            return;
        }
        sim.world.sleep(sim.world.between(100, 5_000)).await;
    }
}

async fn submit(sim: &Arc<Sim>, job: usize, place: usize) -> Option<String> {
    let submit = move |server: Arc<Server>| -> Answer<_> {
        let submit = SubmitRequest {
            job_toml: job_file(job),
            file_name: "job.toml".into(),
            base_dir: "/".into(),
            ..SubmitRequest::default()
        };
        Box::pin(async move { Ok(server.jobs.submit(request(submit, "")).await?.into_inner()) })
    };
    match sim.call(usize::MAX, place, submit).await {
        Ok(answer) => {
            let id = answer.job?.id;
            sim.ledger().submitted.insert((place, id.clone()));
            Some(id)
        }
        Err(_) => {
            sim.world.sleep(sim.world.between(100, 5_000)).await;
            None
        }
    }
}

/// Waits until a job ends. The coordinator must not forget an acknowledged job.
async fn wait(sim: &Arc<Sim>, id: &str, place: usize) -> JobState {
    loop {
        sim.world.sleep(2_000).await;
        let job_id = id.to_owned();
        let cancels = sim.may(Fault::Cancels, 20);
        let look = move |server: Arc<Server>| -> Answer<Job> {
            let job_id = job_id.clone();
            Box::pin(async move {
                let job = match cancels {
                    true => server.jobs.cancel(request(CancelRequest { job_id }, "")).await?,
                    false => server.jobs.get(request(GetRequest { job_id }, "")).await?,
                };
                Ok(job.into_inner())
            })
        };
        match sim.call(usize::MAX, place, look).await {
            Ok(job) if job.state() == JobState::Running => {}
            Ok(job) => return job.state(),
            Err(e) => assert_ne!(e.code(), Code::NotFound, "job {id} was acknowledged and is lost"),
        }
    }
}

/// Notes the manifests of a job. Returns false if they are not known now.
async fn note(sim: &Arc<Sim>, id: &str, job: usize, place: usize) -> bool {
    let id = id.to_owned();
    let look = move |server: Arc<Server>| -> Answer<_> {
        let id = id.clone();
        Box::pin(async move {
            let stages = server.engine.call(move |engine| engine.cluster.jobs[&id].stages.clone()).await;
            stages.map_err(|e| Status::unavailable(e.0))
        })
    };
    let Ok(stages) = sim.call(usize::MAX, place, look).await else {
        return false;
    };
    // Another person may have submitted the same job again.
    if stages.iter().any(|stage| !stage.is_complete()) {
        return false;
    }
    let keys = stages.iter().map(|stage| manifest_path(stage.name, &stage.key));
    sim.ledger().made.insert(job, keys.collect());
    true
}

/// Kills and halts processes, cuts workers off, sets clocks and removes files.
pub(super) async fn trouble(sim: Arc<Sim>) {
    while sim.in_trouble() {
        sim.world.sleep(sim.world.between(100, 5_000)).await;
        let (number, place) = (sim.pick(sim.plan.workers), sim.pick(sim.plan.places));
        let worker = locked(&sim.workers)[number];
        let nodes = sim.plan.nodes();
        let coordinator = locked(&sim.coordinators)[&nodes[sim.pick(nodes.len())]];
        if sim.may(Fault::WorkerDies, 4) && worker != OUTSIDE {
            sim.tell(|| format!("worker {number} dies"));
            sim.world.kill(worker);
        }
        if sim.may(Fault::WorkerHalts, 6) && worker != OUTSIDE {
            sim.tell(|| format!("worker {number} halts"));
            sim.world.halt(worker, sim.world.between(500, 40_000));
        }
        if sim.may(Fault::CoordinatorDies, 10) {
            sim.tell(|| format!("coordinator process {coordinator} dies"));
            sim.world.kill(coordinator);
        }
        if sim.may(Fault::CoordinatorHalts, 10) {
            sim.tell(|| format!("coordinator process {coordinator} halts"));
            sim.world.halt(coordinator, sim.world.between(500, 70_000));
        }
        if sim.may(Fault::CoordinatorStops, 10)
            && let Some(server) = sim.server(place)
        {
            sim.tell(|| format!("coordinator process {} is told to stop", server.host));
            let engine = server.engine.clone();
            sim.world.spawn(server.host, async move { drop(engine.call(|engine| engine.stop()).await) });
        }
        if sim.may(Fault::Cuts, 4) {
            let until = sim.world.now() + sim.world.between(500, 40_000);
            sim.tell(|| format!("worker {number} is cut off until {until}"));
            locked(&sim.cuts).insert(number, until);
        }
        if sim.may(Fault::Clock, 10) {
            // Claims of other machines are read by the clock, which must not be wrong by as much as they last.
            let most = if sim.plan.places == 1 && sim.plan.one_machine { 7_200_000 } else { 25_000 };
            let wrong = sim.world.between(-most, most);
            sim.tell(|| format!("the clock of {place} is wrong by {wrong}"));
            locked(&sim.clocks)[place] = wrong;
        }
        if sim.may(Fault::Vanishes, 8) {
            remove_something(&sim);
        }
    }
}

fn remove_something(sim: &Sim) {
    let listed = sim.inside.list(Some(&"out".into())).try_collect::<Vec<_>>();
    let listed = listed.now_or_never().unwrap().unwrap();
    if !listed.is_empty() {
        let path = &listed[sim.pick(listed.len())].location;
        sim.tell(|| format!("{path} vanishes"));
        sim.inside.delete(path).now_or_never().unwrap().unwrap();
    }
}
