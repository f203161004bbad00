//! The commands `list`, `get`, `watch`, `logs`, `cancel` and `resume` show and control jobs.
//!
//! `list`, `get` and `logs` also work when no coordinator runs: they read the state store.

use llink_proto::{CancelRequest, Job, ListRequest, LogsRequest, ResumeRequest};

use super::client;
use super::{Exit, Failed, Reach, follow};
use crate::schedule::{Cluster, Timing};
use crate::state::StateStore;
use crate::ui::{self, Style};

#[derive(Debug, clap::Args)]
pub(super) struct List {
    #[command(flatten)]
    reach: Reach,
    /// Print JSON, for programs.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct OfJob {
    /// The job's id, or its first characters.
    job: String,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Debug, clap::Args)]
pub(super) struct Get {
    #[command(flatten)]
    of: OfJob,
    /// Print JSON, for programs.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Watch {
    #[command(flatten)]
    of: OfJob,
    /// Print one JSON object on each line, for programs.
    #[arg(long)]
    json: bool,
}

impl List {
    pub(super) async fn run(self) -> Result<(), Failed> {
        ui::list(&jobs(&self.reach).await?, Style::of(self.json));
        Ok(())
    }
}

impl Get {
    pub(super) async fn run(self) -> Result<(), Failed> {
        ui::job(&self.of.find().await?, Style::of(self.json));
        Ok(())
    }
}

impl Watch {
    pub(super) async fn run(self) -> Result<(), Failed> {
        let (style, reach) = (Style::of(self.json), &self.of.reach);
        let job = self.of.find().await?;
        if job.ended_at > 0 {
            return follow::conclude(&job, style);
        }
        let mut client = client::require(reach).await?;
        let goes_on = follow::goes_on(&job.id, &reach.options());
        let ended = tokio::select! {
            ended = follow::follow(&mut client, &job.id, style, &goes_on, |_| Ok(())) => ended?,
            () = super::interrupted() => {
                return Err(Exit::Interrupted.because(format!("left; job {} goes on", job.id)));
            }
        };
        follow::conclude(&ended, style)
    }
}

impl OfJob {
    async fn find(&self) -> Result<Job, Failed> {
        one(jobs(&self.reach).await?, &self.job)
    }

    pub(super) async fn logs(self) -> Result<(), Failed> {
        let job = self.find().await?;
        let mut client = client::find(&self.reach).await?;
        let store = match client {
            Some(_) => None,
            None => Some(open(&self.reach)?),
        };
        let mut after_sequence = 0;
        loop {
            let (events, more) = match (&mut client, &store) {
                (Some(client), _) => {
                    let request = LogsRequest { job_id: job.id.clone(), after_sequence, limit: 0 };
                    let page = client.logs(request).await?.into_inner();
                    (page.events, page.more)
                }
                (None, Some(store)) => {
                    let page = store.events(&job.id, after_sequence, 1000)?;
                    (page.events, page.more)
                }
                (None, None) => return Ok(()),
            };
            for event in &events {
                super::say(&ui::event_line(event));
            }
            match events.last() {
                Some(last) if more => after_sequence = last.sequence,
                _ => return Ok(()),
            }
        }
    }

    pub(super) async fn cancel(self) -> Result<(), Failed> {
        let job = self.find().await?;
        if job.ended_at > 0 {
            super::say(&format!("{} has ended already: {}", job.id, ui::state_word(&job)));
            return Ok(());
        }
        match client::find(&self.reach).await? {
            Some(mut client) => {
                let request = CancelRequest { job_id: job.id };
                let job = client.cancel(request).await?.into_inner();
                super::say(&format!("{}: {}", job.id, ui::state_word(&job)));
            }
            None => super::say(&format!("{} is not running: its coordinator has stopped", job.id)),
        }
        Ok(())
    }

    pub(super) async fn resume(self) -> Result<(), Failed> {
        let job = self.find().await?;
        let mut client = client::require(&self.reach).await.map_err(|f| {
            f.exit.because(format!("{}; or submit the job file again, which goes on from there", f.text))
        })?;
        let request = ResumeRequest { job_id: job.id };
        let job = client.resume(request).await?.into_inner();
        super::say(&format!("{}: {}", job.id, ui::state_word(&job)));
        Ok(())
    }
}

fn open(reach: &Reach) -> Result<StateStore, Failed> {
    if !reach.state.join("state.db").exists() {
        return Err(Exit::Unavailable.because(format!(
            "no coordinator is named and there is no state in {}: use --coordinator URL or --state DIR",
            reach.state.display()
        )));
    }
    Ok(StateStore::open_read_only(&reach.state)?)
}

/// Returns every job, from the coordinator or from the state store.
async fn jobs(reach: &Reach) -> Result<Vec<Job>, Failed> {
    if let Some(mut client) = client::find(reach).await? {
        let mut jobs: Vec<Job> = Vec::new();
        loop {
            let request =
                ListRequest { after_job_id: jobs.last().map(|job| job.id.clone()).unwrap_or_default(), limit: 0 };
            let page = client.list(request).await?.into_inner();
            let is_last = !page.more || page.jobs.is_empty();
            jobs.extend(page.jobs);
            if is_last {
                return Ok(jobs);
            }
        }
    }
    let (jobs, tasks) = open(reach)?.load()?;
    let ids: Vec<String> = jobs.iter().map(|j| j.id.clone()).collect();
    let cluster = Cluster::restore(Timing::default(), jobs, tasks, 0);
    Ok(ids.iter().filter_map(|id| cluster.view(id)).collect())
}

fn one(jobs: Vec<Job>, wanted: &str) -> Result<Job, Failed> {
    let known = jobs.iter().map(|j| j.id.clone()).collect::<Vec<_>>().join(", ");
    let mut matching: Vec<Job> = jobs.into_iter().filter(|j| j.id.starts_with(wanted)).collect();
    if let Some(exact) = matching.iter().position(|j| j.id == wanted) {
        return Ok(matching.swap_remove(exact));
    }
    match matching.len() {
        1 => Ok(matching.swap_remove(0)),
        0 if known.is_empty() => {
            Err(Exit::Usage.because(format!("there is no job {wanted:?}: none was submitted yet")))
        }
        0 => Err(Exit::Usage.because(format!("there is no job {wanted:?}; known: {known}"))),
        _ => Err(Exit::Usage.because(format!("{wanted:?} could be any of: {known}"))),
    }
}
