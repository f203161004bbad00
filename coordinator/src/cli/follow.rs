//! Follows a job to its end.

use llink_proto::{Job, JobState, WatchRequest};
use tonic::Status;

use super::client::{Client, is_of_the_connection, job_failed};
use super::{Exit, Failed};
use crate::ui::{self, Style, View};

/// Shows the job while it runs, and calls `seen` at each change. `left` says what becomes of the job when the
/// connection breaks, and how to follow it again.
pub(super) async fn follow(
    client: &mut Client,
    id: &str,
    style: Style,
    left: &str,
    mut seen: impl FnMut(&Job) -> Result<(), Failed>,
) -> Result<Job, Failed> {
    let request = WatchRequest { job_id: id.into() };
    let mut updates = client.watch(request).await.map_err(|s| ended_by(s, left))?.into_inner();
    let mut view = View::new(style);
    let mut last = None;
    let broke = loop {
        match updates.message().await {
            Ok(Some(update)) => {
                let Some(job) = update.job else { continue };
                view.show(&job, &update.events);
                seen(&job)?;
                last = Some(job);
            }
            Ok(None) => break None,
            Err(status) => break Some(status),
        }
    };
    view.close();
    match (last, broke) {
        (Some(job), _) if job.state() != JobState::Running => Ok(job),
        (_, Some(status)) => Err(ended_by(status, left)),
        (_, None) => Err(Exit::Unavailable.because(format!("the coordinator stopped before the job ended. {left}"))),
    }
}

/// Returns the failure of a call. If the connection broke, it ends with `left`, which says how to go on.
pub(super) fn ended_by(status: Status, left: &str) -> Failed {
    let is_broken = is_of_the_connection(&status);
    let failed = Failed::from(status);
    match is_broken {
        true => failed.exit.because(format!("{}. {left}", failed.text)),
        false => failed,
    }
}

pub(super) fn goes_on(id: &str, options: &str) -> String {
    format!("The job goes on where its coordinator runs: `llink-coord watch {id}{options}` follows it")
}

/// Prints the report of a job that succeeded, or returns the failure.
pub(super) fn conclude(job: &Job, style: Style) -> Result<(), Failed> {
    match job.state() {
        JobState::Succeeded => {
            ui::report(job, style);
            Ok(())
        }
        JobState::Cancelled => Err(Exit::Cancelled
            .because(format!("job {} was cancelled. Finished work is kept: submit it again to continue", job.id))),
        _ => Err(match &job.failure {
            Some(failure) => job_failed(failure),
            None => Exit::Internal.because(format!("job {} failed: {}", job.id, job.reason)),
        }),
    }
}
