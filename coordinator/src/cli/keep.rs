//! `backup`, `restore` and `health`: what an operator does to a coordinator.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::{Exit, Failed, say};
use crate::state::{StateError, StateStore};

#[derive(Debug, clap::Args)]
pub(super) struct Backup {
    /// The file to write; it must not exist.
    file: PathBuf,
    /// Directory of the state store.
    #[arg(long, env = "LLINK_STATE", value_name = "DIR", default_value = ".llink")]
    state: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(super) struct Restore {
    /// What `backup` wrote.
    file: PathBuf,
    /// Directory of the state store; it must hold none.
    #[arg(long, env = "LLINK_STATE", value_name = "DIR", default_value = ".llink")]
    state: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(super) struct Health {
    /// Where the health service listens, such as http://127.0.0.1:7071.
    url: String,
    /// `ready`, or nothing for the process itself.
    #[arg(long, default_value = "")]
    service: String,
}

fn of_state(error: &StateError) -> Failed {
    Failed::new(Exit::Storage, error.to_string())
}

impl Backup {
    /// Copies the state, beside a coordinator that may be at work, and rereads the copy.
    pub(super) fn run(&self) -> Result<(), Failed> {
        if self.file.exists() {
            return Err(Failed::new(
                Exit::Usage,
                format!("{} exists: name a new file", self.file.display()),
            ));
        }
        let store = StateStore::open_read_only(&self.state).map_err(|e| of_state(&e))?;
        store.backup(&self.file).map_err(|e| of_state(&e))?;
        let jobs = checked(&self.file)?;
        say(&format!("{}: {jobs} jobs", self.file.display()));
        Ok(())
    }
}

impl Restore {
    /// Puts a backup where there is no state yet.
    pub(super) fn run(&self) -> Result<(), Failed> {
        let jobs = checked(&self.file)?;
        let database = self.state.join("state.db");
        if database.exists() {
            return Err(Failed::new(
                Exit::Usage,
                format!(
                    "{} exists: stop the coordinator and move it away first",
                    database.display()
                ),
            ));
        }
        let failed = |e: std::io::Error| Failed::new(Exit::Storage, format!("{}: {e}", database.display()));
        std::fs::create_dir_all(&self.state).map_err(failed)?;
        let beside = self.state.join("state.db.restoring");
        std::fs::copy(&self.file, &beside).map_err(failed)?;
        std::fs::File::open(&beside)
            .and_then(|f| f.sync_all())
            .map_err(failed)?;
        std::fs::rename(&beside, &database).map_err(failed)?;
        say(&format!("{}: {jobs} jobs", database.display()));
        Ok(())
    }
}

/// How many jobs the file remembers, once all of it was read.
fn checked(file: &Path) -> Result<usize, Failed> {
    let store = StateStore::open_file(file).map_err(|e| of_state(&e))?;
    store.check().map_err(|e| of_state(&e))?;
    store.load().map(|(jobs, _)| jobs.len()).map_err(|e| of_state(&e))
}

impl Health {
    /// Asks a health service; what is not serving is a failure.
    pub(super) async fn run(self) -> Result<(), Failed> {
        let unavailable = |text: String| Failed::new(Exit::Unavailable, format!("{}: {text}", self.url));
        let endpoint = Endpoint::from_shared(self.url.clone())
            .map_err(|e| {
                Failed::new(
                    Exit::Usage,
                    format!("{}: not a URL such as http://127.0.0.1:7071 ({e})", self.url),
                )
            })?
            .connect_timeout(Duration::from_secs(2))
            .timeout(Duration::from_secs(2));
        let channel = endpoint
            .connect()
            .await
            .map_err(|e| unavailable(llink_proto::reach::with_causes(&e)))?;
        let request = HealthCheckRequest {
            service: self.service.clone(),
        };
        let answer = HealthClient::new(channel)
            .check(request)
            .await
            .map_err(|s| unavailable(s.to_string()))?;
        match answer.into_inner().status() {
            ServingStatus::Serving => {
                say("serving");
                Ok(())
            }
            other => Err(unavailable(format!("{other:?}"))),
        }
    }
}
