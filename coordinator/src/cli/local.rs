//! The local part of `submit`: worker processes of the same binary, and the sample corpus.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use llink_datasets::environment::own_variables;
use llink_proto::reach::{Secret, TOKEN_VARIABLE};
use llink_proto::{Job, StageState};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::local_gpus::{LocalGpu, gpu_of, gpus};
use super::{Exit, Failed, of_file, say};
use crate::job::{Compute, JobFile};
use crate::state::private;

/// After this many deaths in a row, a worker is not started again: a restart does not help.
const MAX_RESTARTS: u32 = 10;
/// A worker that lived this long did not die at its start.
const LIVED: Duration = Duration::from_secs(30);
/// The time that a worker has to save its work before it is killed.
const SAVE_PATIENCE: Duration = Duration::from_secs(30);
/// The time that an idle worker has to end.
const IDLE_PATIENCE: Duration = Duration::from_secs(2);

/// llink's own variables that are meant for local workers too: where to compute and what to log. All others configure a
/// worker of a cluster, or this command.
const FOR_WORKERS: [&str; 4] = ["LLINK_COMPUTE", "LLINK_DEVICE", "LLINK_LOG", "LLINK_ONEDNN"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    NotYet,
    /// The job succeeded, and nothing is left to save.
    Idle,
    /// Workers may still save their work.
    Busy,
}

/// Worker processes on this machine. They start when there is work, and start again when they die.
pub(super) struct LocalWorkers {
    url: String,
    /// The token of the workers, because this coordinator serves its own user only.
    token: Option<Secret>,
    count: u32,
    compute: Compute,
    logs: PathBuf,
    hidden: Vec<OsString>,
    stop: watch::Sender<Stop>,
    /// The reason why a worker is no longer started again.
    given_up: watch::Sender<Option<String>>,
    keepers: Vec<tokio::task::JoinHandle<()>>,
}

impl LocalWorkers {
    /// Prepares workers for `job`, which may read the variables that it names.
    pub(super) fn new(url: &str, token: Option<Secret>, count: u32, state: &Path, job: &JobFile) -> Self {
        let named: Vec<&str> = job.endpoints().into_iter().map(|[_, (_, variable)]| variable).collect();
        let meant = |name: &OsString| named.iter().chain(&FOR_WORKERS).any(|known| *name == **known);
        let mut hidden = own_variables();
        hidden.retain(|name| !meant(name));
        Self {
            hidden,
            url: url.into(),
            token,
            count,
            compute: job.workers.compute,
            logs: state.join("logs"),
            stop: watch::Sender::new(Stop::NotYet),
            given_up: watch::Sender::new(None),
            keepers: Vec::new(),
        }
    }

    /// Starts the workers once a stage of the job has tasks. A job whose stages are all cached needs none.
    pub(super) fn start_if_needed(&mut self, job: &Job) -> Result<(), Failed> {
        let has_work = |s: &llink_proto::Stage| s.state() == StageState::Running && s.tasks_total > 0;
        if !self.keepers.is_empty() || !job.stages.iter().any(has_work) {
            return Ok(());
        }
        let binary = std::env::current_exe()
            .map_err(|e| Exit::Internal.because(format!("cannot find this program's own file: {e}")))?;
        private::directory(&self.logs).map_err(|e| of_file(&self.logs, &e))?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (cores / self.count as usize).max(1);
        let gpus = gpus();
        for index in 0..self.count {
            let log = self.logs.join(format!("worker-{index}.log"));
            let template = Template {
                binary: binary.clone(),
                url: self.url.clone(),
                token: self.token.clone(),
                name: format!("local-{index}"),
                threads,
                compute: self.compute,
                gpu: gpu_of(index as usize, self.count as usize, gpus),
                log,
                hidden: self.hidden.clone(),
            };
            let given_up = self.given_up.clone();
            self.keepers.push(tokio::spawn(keep(template, self.stop.subscribe(), given_up)));
        }
        Ok(())
    }

    /// Resolves when a worker dies at each start, with advice.
    pub(super) fn given_up(&self) -> impl Future<Output = String> + use<> {
        let mut given_up = self.given_up.subscribe();
        async move {
            match given_up.wait_for(Option::is_some).await {
                Ok(why) => why.clone().unwrap_or_default(),
                Err(_) => std::future::pending().await,
            }
        }
    }

    pub(super) async fn stop(self, how: Stop) {
        self.stop.send_replace(how);
        for keeper in self.keepers {
            // If a keeper panicked, `kill_on_drop` ends its child.
            let _ = keeper.await;
        }
    }
}

struct Template {
    binary: PathBuf,
    url: String,
    token: Option<Secret>,
    name: String,
    threads: usize,
    compute: Compute,
    gpu: Option<LocalGpu>,
    log: PathBuf,
    hidden: Vec<OsString>,
}

impl Template {
    fn spawn(&self) -> std::io::Result<Child> {
        let log = private::file(&self.log)?;
        let mut command = Command::new(&self.binary);
        for name in &self.hidden {
            command.env_remove(name);
        }
        command
            .args(["worker", "--coordinator", &self.url, "--name", &self.name, "--exit-with-parent"])
            .args(["--threads", &self.threads.to_string()])
            // `auto` leaves it to LLINK_COMPUTE, where that is set.
            .args((self.compute != Compute::Auto).then_some(["--compute", self.compute.into()]).into_iter().flatten())
            .args(self.gpu.iter().flat_map(|gpu| ["--device", &gpu.device]))
            .envs(self.gpu.iter().filter_map(|gpu| Some(("NCCL_HOSTID", gpu.host.as_deref()?))))
            // The token is not an argument, because every user of the machine can see arguments.
            .envs(self.token.iter().map(|token| (TOKEN_VARIABLE, token.text())))
            // The worker's end of this pipe closes when this process ends for any reason.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C goes to this process only, which then stops the workers.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }
}

async fn keep(template: Template, mut stop: watch::Receiver<Stop>, given_up: watch::Sender<Option<String>>) {
    let mut restarts = 0;
    loop {
        let started = Instant::now();
        let mut child = match template.spawn() {
            Ok(child) => child,
            Err(e) => {
                given_up.send_replace(Some(format!("cannot start {}: {e}", template.binary.display())));
                return;
            }
        };
        // `wait` would close standard input, so it is taken out.
        let leash = child.stdin.take();
        tokio::select! {
            ended = child.wait() => {
                restarts = if started.elapsed() > LIVED { 1 } else { restarts + 1 };
                tracing::warn!(worker = template.name, ?ended, "worker ended");
                if restarts > MAX_RESTARTS {
                    let how = ended.map_or_else(|e| e.to_string(), |status| status.to_string());
                    let (name, log) = (&template.name, template.log.display());
                    let why = format!("worker {name} ended {restarts} times in a row ({how}): {log} says why");
                    given_up.send_replace(Some(why));
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100 * u64::from(restarts.min(20)))).await;
            }
            how = told(&mut stop) => {
                drop(leash);
                let patience = if how == Stop::Busy { SAVE_PATIENCE } else { IDLE_PATIENCE };
                if tokio::time::timeout(patience, child.wait()).await.is_err() {
                    // The process may have ended in between.
                    let _ = child.kill().await;
                }
                return;
            }
        }
        if *stop.borrow() != Stop::NotYet {
            return;
        }
    }
}

/// Waits until the workers must stop; a dropped sender also means that.
async fn told(stop: &mut watch::Receiver<Stop>) -> Stop {
    let told = stop.wait_for(|how| *how != Stop::NotYet).await;
    told.map_or(Stop::Idle, |how| *how)
}

#[cfg(feature = "quickstart")]
pub(super) fn write_sample(dir: &Path, pairs: u64, instructions: u64, seed: u64) -> Result<(), Failed> {
    llink_quickstart::sample::write(dir, pairs, instructions, seed).map_err(|e| {
        let exit = match &e {
            llink_datasets::Error::Store { .. } => Exit::Storage,
            _ => Exit::Usage,
        };
        exit.because(e.to_string())
    })?;
    say(&format!("{}/pairs.tsv: {pairs} pairs, English TAB Khmer", dir.display()));
    say(&format!("{}/instructions.jsonl: {instructions} instructions", dir.display()));
    Ok(())
}
