//! The `submit` command runs a job here or on a coordinator, follows it, and prints its report.

use std::path::{Path, PathBuf};

use llink_proto::{Job, SubmitRequest};
use llink_telemetry::{self as telemetry, SPANS};
use tonic::Request;
use tracing::Instrument;
use tracing::field::Empty;

use super::client::{self, Client};
#[cfg(feature = "embedded")]
use super::complain;
use super::follow;
use super::{Exit, Failed, Reach, say};
use crate::job;
use crate::ui::{self, Style};

#[derive(Debug, clap::Args)]
pub(super) struct Submit {
    /// The job file to run.
    #[arg(value_name = "FILE")]
    job: PathBuf,
    #[command(flatten)]
    reach: Reach,
    /// Number of local worker processes (overrides `[workers] local`). Of the LLINK_… variables they see LLINK_COMPUTE,
    /// LLINK_DEVICE, LLINK_LOG and LLINK_ONEDNN.
    #[arg(long, value_name = "N")]
    workers: Option<u32>,
    /// Print the plan and what is cached, and start nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object on each line, for programs.
    #[arg(long)]
    json: bool,
    /// Return once the job is accepted (needs --coordinator).
    #[arg(long, requires = "coordinator")]
    detach: bool,
}

impl Submit {
    /// Runs the job in a trace: the one that `TRACEPARENT` names, as build systems set it, or a new one.
    pub(super) async fn run(self) -> Result<(), Failed> {
        let given = telemetry::trace_in(|name| std::env::var(name.to_ascii_uppercase()).ok());
        let span = tracing::info_span!(target: SPANS, parent: None, "submit", job = Empty);
        telemetry::continue_trace(&span, &given);
        let trace = telemetry::trace_with(&span, &given);
        let ended = self.run_traced(trace).instrument(span.clone()).await;
        if let Err(failed) = &ended {
            telemetry::failed(&span, &failed.text);
        }
        ended
    }

    async fn run_traced(self, trace: String) -> Result<(), Failed> {
        let (request, file) = self.read(&trace)?;
        let style = Style::of(self.json);
        match &self.reach.coordinator {
            Some(url) => {
                let mut client = client::connect(url, &self.reach.credentials(url)).await?;
                let job = send(&mut client, request, &self.once_more()).await?;
                if self.dry_run {
                    ui::plan(&job, style);
                    return Ok(());
                }
                ui::warnings(&job, style);
                if self.detach {
                    say(&job.id);
                    return Ok(());
                }
                let goes_on = follow::goes_on(&job.id, &self.reach.options());
                let ended = tokio::select! {
                    ended = follow::follow(&mut client, &job.id, style, &goes_on, |_| Ok(())) => ended?,
                    () = super::interrupted() => return Err(left(url, &job.id)),
                };
                follow::conclude(&ended, style)
            }
            None => self.run_here(request, &file, style).await,
        }
    }

    /// Returns what to do when the coordinator may have the job or not. The same job is never started twice.
    fn once_more(&self) -> String {
        let command = format!("llink-coord submit {}{}", self.job.display(), self.reach.options());
        match self.dry_run {
            true => format!("`{command} --dry-run` asks again"),
            false => format!("`{command}` starts the job, or follows it if the coordinator has accepted it"),
        }
    }

    /// Builds the request. The file is checked here first, so a wrong file starts nothing.
    fn read(&self, trace: &str) -> Result<(Request<SubmitRequest>, job::JobFile), Failed> {
        let name = self.job.display().to_string();
        let text = std::fs::read_to_string(&self.job).map_err(|e| {
            Exit::Usage.because(format!("{name}: {e}. A job file is needed, such as the job.toml beside the README"))
        })?;
        let file = job::parse(&name, &text).map_err(|e| Exit::Usage.because(e.to_string()))?;
        let folder = self.job.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let base_dir =
            std::path::absolute(folder).map_err(|e| Exit::Usage.because(format!("{}: {e}", folder.display())))?;
        let mut request = Request::new(SubmitRequest {
            job_toml: text,
            file_name: name,
            base_dir: base_dir.to_string_lossy().into_owned(),
            dry_run: self.dry_run,
        });
        for (name, value) in telemetry::headers(trace) {
            let value = value.parse().expect("a trace is printable ASCII");
            request.metadata_mut().insert(name, value);
        }
        Ok((request, file))
    }

    #[cfg(feature = "embedded")]
    async fn run_here(&self, request: Request<SubmitRequest>, file: &job::JobFile, style: Style) -> Result<(), Failed> {
        use llink_proto::JobState;
        use llink_proto::reach::Credentials;

        use super::local::{LocalWorkers, Stop};
        use crate::serve::{self, ServeOptions, Unfinished};

        let local = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let count = self.workers.unwrap_or(file.workers.local).max(1);
        let running = serve::start_for_own_user(ServeOptions {
            unfinished: Unfinished::IsEnded,
            expected_workers: count as usize,
            page: (!self.dry_run).then_some(local),
            ..ServeOptions::new(local, self.reach.state.clone())
        })
        .await?;
        let credentials = Credentials { secret: running.token.clone(), ..Credentials::default() };
        let mut client = client::connect(&running.url, &credentials).await?;
        let mut workers = LocalWorkers::new(&running.url, credentials.secret, count, &self.reach.state, file);
        let again = format!("`llink-coord submit {}` goes on from what was finished", self.job.display());
        let sent = send(&mut client, request, &again).await;
        let outcome = match sent {
            Err(failed) => Err(failed),
            Ok(job) if self.dry_run => {
                ui::plan(&job, style);
                Ok(None)
            }
            Ok(job) => {
                ui::warnings(&job, style);
                if let Some(page) = &running.page {
                    ui::output::tell(&format!("watch it in a browser: {page}"));
                }
                let mut stopper = client.clone();
                let given_up = workers.given_up();
                let started = follow::follow(&mut client, &job.id, style, &again, |job| workers.start_if_needed(job));
                tokio::select! {
                    ended = started => ended.map(Some),
                    why = running.broken() => Err(Exit::Storage.because(why)),
                    why = given_up => {
                        stop(&mut stopper, &job.id, &self.job).await;
                        Err(Exit::Internal.because(why))
                    }
                    () = super::interrupted() => {
                        complain("stopping: workers save what they have (Ctrl-C again kills them)");
                        Err(stop(&mut stopper, &job.id, &self.job).await)
                    }
                }
            }
        };
        let in_hurry = outcome.as_ref().is_err_and(|failed| failed.exit == Exit::Interrupted);
        // A job that was cancelled or failed has workers that may still save their work.
        let is_over = match &outcome {
            Ok(job) => job.as_ref().is_none_or(|job| job.state() == JobState::Succeeded),
            Err(_) => false,
        };
        tokio::select! {
            () = workers.stop(if is_over { Stop::Idle } else { Stop::Busy }) => {}
            // A checkpoint counts only when it is complete, so a second interrupt does no harm.
            () = super::interrupted(), if in_hurry => complain("workers are killed"),
        }
        let stopped = running.stop().await;
        if let Some(ended) = outcome? {
            follow::conclude(&ended, style)?;
        }
        stopped.map_err(Failed::from)
    }

    #[cfg(not(feature = "embedded"))]
    async fn run_here(&self, _: Request<SubmitRequest>, _: &job::JobFile, _: Style) -> Result<(), Failed> {
        Err(Exit::Usage.because(
            "this llink-coord was built without its embedded worker: name a coordinator with --coordinator URL",
        ))
    }
}

/// Submits the job. `again` says what to do when the connection breaks before the answer is there.
async fn send(client: &mut Client, request: Request<SubmitRequest>, again: &str) -> Result<Job, Failed> {
    let answer = client.submit(request).await.map_err(|s| follow::ended_by(s, again))?.into_inner();
    let job = answer.job.ok_or_else(|| Exit::Internal.because("the coordinator answered without a job"))?;
    tracing::Span::current().record("job", &job.id);
    Ok(job)
}

fn left(url: &str, id: &str) -> Failed {
    Exit::Interrupted.because(format!(
        "left; the job goes on. `llink-coord watch {id} --coordinator {url}` follows it, \
             `llink-coord cancel {id} --coordinator {url}` stops it"
    ))
}

#[cfg(feature = "embedded")]
async fn stop(client: &mut Client, id: &str, job: &Path) -> Failed {
    let cancel = client.cancel(llink_proto::CancelRequest { job_id: id.into() });
    // The state on disk is complete in any case, and the next run continues from it.
    let _ = tokio::time::timeout(std::time::Duration::from_secs(2), cancel).await;
    Exit::Interrupted.because(format!(
        "stopped. What was finished is kept: `llink-coord submit {}` goes on from there",
        job.display()
    ))
}
