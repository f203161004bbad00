//! `llink-worker`: takes tasks from a coordinator and runs them.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use llink_datasets::built_in::BuiltIn;
use llink_proto::shown;
use llink_worker::cli::{self, WorkerArgs};

/// What jobs without data ask for.
#[cfg(feature = "quickstart")]
const BUILT_IN: Option<&dyn BuiltIn> = Some(&llink_quickstart::Quickstart);
#[cfg(not(feature = "quickstart"))]
const BUILT_IN: Option<&dyn BuiltIn> = None;

/// Takes tasks from a coordinator and runs them.
#[derive(Debug, Parser)]
#[command(name = "llink-worker", version, about)]
struct Cli {
    #[command(flatten)]
    args: WorkerArgs,
}

fn main() -> ExitCode {
    // SAFETY: no thread has been started yet.
    unsafe {
        llink_datasets::environment::unset_empty();
    }
    let Cli { args } = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return failed(&format!("cannot start: {e}")),
    };
    let telemetry = {
        let _within = runtime.enter();
        llink_telemetry::set_up(cli::SERVICE, "info")
    };
    if let Some(fault) = &telemetry.fault {
        tell(fault);
    }
    let ended = runtime.block_on(cli::run(args, BUILT_IN));
    telemetry.shut_down();
    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            failed(&format!("{e:#}"));
            ExitCode::from(cli::exit_code(&e))
        }
    }
}

fn failed(text: &str) -> ExitCode {
    tell(text);
    ExitCode::FAILURE
}

fn tell(text: &str) {
    // An error in writing to standard error is ignored.
    let _ = writeln!(std::io::stderr(), "llink-worker: {}", shown::text(text));
}
