//! The `backup`, `restore` and `health` commands, for the operator of a coordinator.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::{Exit, Failed, of_file, say};
use crate::serve;
use crate::state::{StateError, StateStore, private, replica};

#[derive(Debug, clap::Args)]
pub(super) struct Backup {
    /// The file to write, which must not exist; `-` is standard output.
    file: PathBuf,
    /// Directory of the state store.
    #[arg(long, env = "LLINK_STATE", value_name = "DIR", default_value = ".llink")]
    state: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(super) struct Restore {
    /// The file that `backup` wrote; `-` is standard input.
    file: PathBuf,
    /// Directory of the state store. No coordinator may be using it.
    #[arg(long, env = "LLINK_STATE", value_name = "DIR", default_value = ".llink")]
    state: PathBuf,
    /// Keep an existing state as state.db.replaced and restore in its place.
    #[arg(long)]
    replace: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Health {
    /// The URL of the health service, such as http://127.0.0.1:7071.
    url: String,
    /// The service to ask for: `ready`; without it, the process itself.
    #[arg(long, default_value = "", hide_default_value = true)]
    service: String,
}

fn of_backup(error: StateError) -> Failed {
    match error {
        StateError::Damaged { path, reason } => {
            Exit::Storage.because(format!("{}: it is damaged ({reason}): use an older backup", path.display()))
        }
        other => other.into(),
    }
}

impl Backup {
    /// Copies the state, even while a coordinator uses it, and reads the copy again.
    pub(super) fn run(&self) -> Result<(), Failed> {
        if is_standard(&self.file) {
            let folder = scratch()?;
            let copy = folder.path().join("state.db");
            let jobs = self.copy_to(&copy)?;
            let mut from = File::open(&copy).map_err(|e| of_file(&copy, &e))?;
            let mut out = std::io::stdout().lock();
            std::io::copy(&mut from, &mut out)
                .and_then(|_| out.flush())
                .map_err(|e| of_file(Path::new("standard output"), &e))?;
            // Standard output is the backup, so this goes to the log.
            tracing::info!(jobs, "the whole state was written");
            return Ok(());
        }
        if self.file.exists() {
            return Err(Exit::Usage.because(format!("{} exists: name a new file", self.file.display())));
        }
        let jobs = self.copy_to(&self.file)?;
        say(&format!("{}: {jobs} jobs", self.file.display()));
        Ok(())
    }

    fn copy_to(&self, file: &Path) -> Result<usize, Failed> {
        if !self.state.join("state.db").exists() {
            let text = format!("there is no state in {}: name its directory with --state DIR", self.state.display());
            return Err(Exit::Usage.because(text));
        }
        let store = StateStore::open_read_only(&self.state)?;
        store.backup(file)?;
        checked(file)
    }
}

impl Restore {
    pub(super) fn run(&self) -> Result<(), Failed> {
        if !is_standard(&self.file) {
            return self.put(&self.file);
        }
        let folder = scratch()?;
        let file = folder.path().join("standard input");
        File::create(&file)
            .and_then(|mut to| std::io::copy(&mut std::io::stdin().lock(), &mut to))
            .map_err(|e| of_file(&file, &e))?;
        self.put(&file)
    }

    fn put(&self, file: &Path) -> Result<(), Failed> {
        File::open(file).map_err(|e| of_file(file, &e))?;
        let jobs = checked(file)?;
        let _held = serve::lock(&self.state)?;
        let database = self.state.join("state.db");
        if database.exists() && !self.replace {
            return Err(Exit::Usage.because(format!("{} exists: --replace puts it aside", database.display())));
        }
        let failed = |e: std::io::Error| of_file(&database, &e);
        let beside = self.state.join("state.db.restoring");
        std::fs::copy(file, &beside).map_err(failed)?;
        private::file(&beside).map_err(failed)?;
        File::open(&beside).and_then(|f| f.sync_all()).map_err(failed)?;
        replica::put_in_place(&self.state, &beside).map_err(failed)?;
        replica::forget(&self.state);
        say(&format!("{}: {jobs} jobs", database.display()));
        Ok(())
    }
}

fn is_standard(file: &Path) -> bool {
    file == Path::new("-")
}

fn scratch() -> Result<tempfile::TempDir, Failed> {
    tempfile::tempdir().map_err(|e| of_file(&std::env::temp_dir(), &e))
}

/// Reads the whole file and returns the number of jobs in it.
fn checked(file: &Path) -> Result<usize, Failed> {
    let store = StateStore::open_file(file).map_err(of_backup)?;
    store.check().map_err(of_backup)?;
    store.load().map(|(jobs, _)| jobs.len()).map_err(of_backup)
}

impl Health {
    /// Asks a health service. A service that is not serving is a failure.
    pub(super) async fn run(self) -> Result<(), Failed> {
        let unavailable = |text: String| Exit::Unavailable.because(format!("{}: {text}", self.url));
        let endpoint = Endpoint::from_shared(self.url.clone())
            .map_err(|e| Exit::Usage.because(format!("{}: not a URL such as http://127.0.0.1:7071 ({e})", self.url)))?
            .connect_timeout(Duration::from_secs(2))
            .timeout(Duration::from_secs(2));
        let channel = endpoint.connect().await.map_err(|e| unavailable(llink_proto::reach::with_causes(&e)))?;
        let request = HealthCheckRequest { service: self.service.clone() };
        let answer = HealthClient::new(channel).check(request).await.map_err(|s| unavailable(s.to_string()))?;
        match answer.into_inner().status() {
            ServingStatus::Serving => {
                say("serving");
                Ok(())
            }
            other => Err(unavailable(format!("{other:?}"))),
        }
    }
}
