//! The command line: parses the arguments, runs a command, and returns the exit code.

mod audit;
mod certs;
mod client;
mod follow;
#[cfg(feature = "embedded")]
mod generate;
#[cfg(feature = "embedded")]
mod inspect;
mod keep;
#[cfg(feature = "embedded")]
mod local;
#[cfg(feature = "embedded")]
mod local_gpus;
mod look;
mod reach;
mod serve;
#[cfg(feature = "embedded")]
mod serve_bundle;
mod submit;
#[cfg(feature = "embedded")]
mod verify;

use std::path::Path;
#[cfg(feature = "quickstart")]
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
#[cfg(feature = "embedded")]
use llink_datasets::built_in::BuiltIn;
use llink_telemetry::Telemetry;

use crate::serve::ServeError;
use crate::state::StateError;
use crate::ui::output::{self, say};
use reach::Reach;

/// The name of this program in traces.
const SERVICE: &str = "llink-coord";

/// What jobs without data ask for.
#[cfg(feature = "quickstart")]
const BUILT_IN: Option<&dyn BuiltIn> = Some(&llink_quickstart::Quickstart);
#[cfg(all(feature = "embedded", not(feature = "quickstart")))]
const BUILT_IN: Option<&dyn BuiltIn> = None;

/// A command that failed: what to print, and the exit code that tells programs why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// The fault, its place, and what to do.
    pub text: String,
    /// The exit code, see [`Exit`].
    pub exit: Exit,
}

/// Exit codes. `docs/running.md` documents them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::FromRepr)]
#[repr(u8)]
pub enum Exit {
    /// A fault in llink occurred, or something unforeseen.
    Internal = 1,
    /// The command line or the job file is wrong; nothing was started.
    Usage = 2,
    /// A corpus or a model is missing or wrong.
    Input = 3,
    /// The disk or the object store refused, for example because it is full or permissions are missing.
    Storage = 4,
    /// Memory is exhausted, or the device does not exist.
    Resources = 5,
    /// The coordinator cannot be reached, the port is taken, or the state directory is in use.
    Unavailable = 6,
    /// The job was cancelled.
    Cancelled = 7,
    /// The coordinator refuses this caller: no valid certificate or token, or a role without the permission.
    Denied = 8,
    /// A worker was told to stop while a job runs: another one has to take its place.
    WorkLeft = 75,
    /// Ctrl-C ended the command.
    Interrupted = 130,
}

impl Exit {
    fn because(self, text: impl Into<String>) -> Failed {
        Failed { text: text.into(), exit: self }
    }

    /// Returns the exit code of a worker or of an error of a store.
    #[cfg(feature = "embedded")]
    fn of(code: u8) -> Self {
        Self::from_repr(code).unwrap_or(Self::Internal)
    }
}

/// The fault of a file that cannot be read or written.
fn of_file(file: &Path, error: &std::io::Error) -> Failed {
    Exit::Storage.because(format!("{}: {error}", file.display()))
}

impl From<StateError> for Failed {
    fn from(error: StateError) -> Self {
        Exit::Storage.because(error.to_string())
    }
}

#[cfg(feature = "embedded")]
impl From<llink_datasets::Error> for Failed {
    fn from(error: llink_datasets::Error) -> Self {
        Exit::of(error.exit_code()).because(error.to_string())
    }
}

/// The error of a bundle, its models or its store.
#[cfg(feature = "embedded")]
impl From<llink_worker::Error> for Failed {
    fn from(error: llink_worker::Error) -> Self {
        use llink_worker::Error;

        let exit = match error {
            Error::Datasets(error) => return error.into(),
            Error::Model { .. } | Error::Input(_) => Exit::Input,
            Error::Io { .. } => Exit::Storage,
            _ => Exit::Internal,
        };
        exit.because(error.to_string())
    }
}

impl From<ServeError> for Failed {
    fn from(error: ServeError) -> Self {
        let exit = match &error {
            ServeError::Listen { .. } | ServeError::InUse { .. } => Exit::Unavailable,
            ServeError::State(_) | ServeError::Lock { .. } | ServeError::Audit(_) => Exit::Storage,
            ServeError::Exposed(_) | ServeError::File(_) => Exit::Usage,
            ServeError::Transport(_) | ServeError::Random(_) => Exit::Internal,
        };
        exit.because(error.to_string())
    }
}

/// Trains a frozen decoder to read a language through a frozen multilingual encoder.
#[derive(Debug, Parser)]
#[command(name = "llink-coord", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 fault, 2 wrong command or job file, 3 corpus or model missing or wrong, \
4 disk or object store refused, 5 out of memory or no device, 6 coordinator not reachable or port taken, \
7 job cancelled, 8 not allowed, 75 a worker that was told to stop while a job runs, 130 interrupted.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a job, follow it, and print its report. Without --coordinator, it runs its own coordinator and workers.
    Submit(submit::Submit),
    /// Run a coordinator until it is stopped.
    Serve(serve::Serve),
    /// List jobs.
    List(look::List),
    /// Show one job: its stages, why it waits, its report.
    Get(look::Get),
    /// Follow a job until it ends.
    Watch(look::Watch),
    /// Print the events of a job: leases, failures, retries.
    Logs(look::OfJob),
    /// Stop a job; finished work is kept.
    Cancel(look::OfJob),
    /// Start a failed or cancelled job again from where it stopped.
    Resume(look::OfJob),
    /// Ask a bundle about sentences: one, a dialogue, or a whole file.
    #[cfg(feature = "embedded")]
    Generate(Box<generate::Generate>),
    /// Answer with a bundle over HTTP, by OpenAI's API for chat completions, until it is stopped.
    #[cfg(feature = "embedded")]
    ServeBundle(Box<serve_bundle::ServeBundle>),
    /// Read again everything that jobs wrote below a URL, and name each fault.
    #[cfg(feature = "embedded")]
    Verify(verify::Verify),
    /// Show shards (schema, rows, lengths, samples, norms, SQL), or count a corpus's tokens.
    #[cfg(feature = "embedded")]
    Inspect(inspect::Inspect),
    /// Write a sample corpus: English–Khmer pairs and instructions from a grammar.
    #[cfg(feature = "quickstart")]
    Sample {
        /// Folder for `pairs.tsv` and `instructions.jsonl`.
        dir: PathBuf,
        /// Number of pairs.
        #[arg(long, default_value_t = 140_000)]
        pairs: u64,
        /// Number of instructions.
        #[arg(long, default_value_t = 42_000)]
        instructions: u64,
        /// The seed; the same seed writes the same bytes.
        #[arg(long, default_value_t = 7)]
        seed: u64,
    },
    /// Run a worker, like `llink-worker`.
    #[cfg(feature = "embedded")]
    Worker(llink_worker::cli::WorkerArgs),
    /// Copy the state into a file, even while a coordinator uses it.
    Backup(keep::Backup),
    /// Put a backup into a state directory.
    Restore(keep::Restore),
    /// Make a private certificate authority for trials, with certificates for the coordinator, the workers and people.
    Certs(certs::Certs),
    /// Make a token: its hash is added to the file, and the token is printed once.
    Token(certs::MakeToken),
    /// Show who did what.
    Audit(audit::Audit),
    /// Ask a health service, as probes do.
    Health(keep::Health),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Parses the arguments, runs the command, and prints the error of a failed one.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            complain(&format!("cannot start: {e}"));
            return ExitCode::from(Exit::Internal as u8);
        }
    };
    let telemetry = {
        let _within = runtime.enter();
        set_up_telemetry(&cli.command)
    };
    let ended = runtime.block_on(run(cli.command));
    telemetry.shut_down();
    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            complain(&failed.text);
            ExitCode::from(failed.exit as u8)
        }
    }
}

fn complain(text: &str) {
    output::tell(&format!("llink-coord: {text}"));
}

fn set_up_telemetry(command: &Command) -> Telemetry {
    // Commands print to the terminal themselves; servers and workers log.
    let (service, level) = match command {
        Command::Serve(_) => (SERVICE, "info"),
        #[cfg(feature = "embedded")]
        Command::Generate(_) => (SERVICE, "warn"),
        #[cfg(feature = "embedded")]
        Command::ServeBundle(_) => (SERVICE, "info"),
        #[cfg(feature = "embedded")]
        Command::Worker(_) => (llink_worker::cli::SERVICE, "info"),
        _ => (SERVICE, "off"),
    };
    let telemetry = llink_telemetry::set_up(service, level);
    if let Some(fault) = &telemetry.fault {
        complain(fault);
    }
    telemetry
}

async fn run(command: Command) -> Result<(), Failed> {
    match command {
        Command::Submit(submit) => submit.run().await,
        Command::Serve(serve) => serve.run().await,
        Command::List(list) => list.run().await,
        Command::Get(get) => get.run().await,
        Command::Watch(watch) => watch.run().await,
        Command::Logs(of) => of.logs().await,
        Command::Cancel(of) => of.cancel().await,
        Command::Resume(of) => of.resume().await,
        #[cfg(feature = "embedded")]
        Command::Generate(generate) => generate.run().await,
        #[cfg(feature = "embedded")]
        Command::ServeBundle(serve) => serve.run().await,
        #[cfg(feature = "embedded")]
        Command::Verify(verify) => verify.run().await,
        #[cfg(feature = "embedded")]
        Command::Inspect(inspect) => inspect.run().await,
        #[cfg(feature = "quickstart")]
        Command::Sample { dir, pairs, instructions, seed } => local::write_sample(&dir, pairs, instructions, seed),
        #[cfg(feature = "embedded")]
        Command::Worker(args) => llink_worker::cli::run(args, BUILT_IN)
            .await
            .map_err(|e| Exit::of(llink_worker::cli::exit_code(&e)).because(format!("{e:#}"))),
        Command::Backup(backup) => backup.run(),
        Command::Restore(restore) => restore.run(),
        Command::Certs(certs) => certs.run(),
        Command::Token(token) => token.run(),
        Command::Audit(audit) => audit.run(),
        Command::Health(health) => health.run().await,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "llink-coord", &mut std::io::stdout());
            Ok(())
        }
    }
}

/// Waits for Ctrl-C or SIGTERM.
async fn interrupted() {
    let Ok(mut terminate) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) else {
        // Without a handler, only Ctrl-C has an effect.
        let _ = tokio::signal::ctrl_c().await;
        return;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
