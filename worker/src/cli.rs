//! The worker's command line, shared by `llink-worker` and `llink-coord worker`.

use std::io::Read;
use std::time::Duration;

use crate::agent::{self, AgentOptions};

/// How a worker is started.
#[derive(Debug, Clone, clap::Args)]
pub struct WorkerArgs {
    /// The coordinator's URL, such as http://coordinator:7070.
    #[arg(long, env = "LLINK_COORDINATOR", value_name = "URL")]
    pub coordinator: String,
    /// What people call this worker; by default its host's name.
    #[arg(long, env = "LLINK_WORKER_NAME")]
    pub name: Option<String>,
    /// Threads to compute with; by default one for each core.
    #[arg(long, env = "LLINK_THREADS", value_name = "N")]
    pub threads: Option<usize>,
    /// Seconds to go on trying when the coordinator cannot be reached; 0 tries for ever.
    #[arg(long, env = "LLINK_CONNECT_TIMEOUT_S", value_name = "SECONDS", default_value_t = 0)]
    pub connect_timeout: u64,
    /// End when standard input closes: the process that started this one is gone.
    #[arg(long, hide = true)]
    pub exit_with_parent: bool,
}

/// Works until SIGTERM or Ctrl-C; then gives its leases back.
///
/// # Errors
/// When the URL is wrong, the coordinator refuses this worker, or cannot be reached for the time given.
pub async fn run(args: WorkerArgs) -> anyhow::Result<()> {
    let threads = args
        .threads
        .filter(|n| *n > 0)
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    // Refused only when a pool exists already, which then has its own idea of how many.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    let options = AgentOptions {
        coordinator: args.coordinator,
        name: args.name.unwrap_or_else(agent::host_name),
        threads,
        connect_timeout: (args.connect_timeout > 0).then(|| Duration::from_secs(args.connect_timeout)),
    };
    let stop = stop_signal(args.exit_with_parent);
    agent::run(options, stop).await
}

/// Resolves on SIGTERM, Ctrl-C, or (if asked) when standard input closes.
async fn stop_signal(with_parent: bool) {
    let (closed, parent_gone) = tokio::sync::oneshot::channel::<()>();
    if with_parent {
        std::thread::spawn(move || {
            // Nothing is ever written to it: it ends, or fails, when the parent is gone.
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            let _ = closed.send(());
        });
    } else {
        std::mem::forget(closed);
    }
    let terminated = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(e) => {
                tracing::warn!("SIGTERM cannot be handled: {e}");
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
        _ = parent_gone => {}
    }
}
