//! The worker's command line, shared by `llink-worker` and `llink-coord worker`.

use std::io::Read;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use llink_datasets::built_in::BuiltIn;
use llink_datasets::roots::Roots;
use llink_proto::reach::{Credentials, ReachError, Secret, TOKEN_VARIABLE};
use tonic::{Code, Status};

use crate::Error;
use crate::agent::{self, AgentOptions, NotFree, OutOfReach, WorkLeft};
use crate::device::{Arithmetic, Compute, DeviceChoice};

/// The name of a worker in traces.
pub const SERVICE: &str = "llink-worker";

/// The options of a worker.
#[derive(Debug, Clone, clap::Args)]
pub struct WorkerArgs {
    /// The coordinator's URL, such as http://coordinator:7070.
    #[arg(long, env = "LLINK_COORDINATOR", value_name = "URL")]
    pub coordinator: String,
    /// The worker's name for people; by default the name of its host.
    #[arg(long, env = "LLINK_WORKER_NAME")]
    pub name: Option<String>,
    /// Number of computing threads; by default one for each core.
    #[arg(long, env = "LLINK_THREADS", value_name = "N")]
    pub threads: Option<usize>,
    /// The device: `auto` (a GPU if one can be used), `cpu`, `cuda` or `cuda:N`.
    #[arg(long, env = "LLINK_DEVICE", value_name = "DEVICE", default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,
    /// The number format of products with frozen weights: `f32`, `bf16`, or the faster of the two on this machine (`auto`).
    #[arg(long, env = "LLINK_COMPUTE", value_name = "FORMAT", default_value_t = Arithmetic::Auto)]
    pub compute: Arithmetic,
    /// Seconds without the coordinator before giving up; 0 never gives up.
    #[arg(long, env = "LLINK_CONNECT_TIMEOUT_S", value_name = "SECONDS", default_value_t = 0)]
    pub connect_timeout: u64,
    /// The certificate authority that signed the coordinator's certificate, for https:// URLs.
    #[arg(long, env = "LLINK_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// This worker's certificate, which is read again at every connection.
    #[arg(long, env = "LLINK_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// The private key of the certificate.
    #[arg(long, env = "LLINK_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// The name in the coordinator's certificate, if it differs from the host in the URL.
    #[arg(long, env = "LLINK_TLS_SERVER_NAME", value_name = "NAME")]
    pub tls_server_name: Option<String>,
    /// A file with a join token. A process that starts workers can pass the token itself as LLINK_TOKEN.
    #[arg(long, env = "LLINK_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// A URL or absolute path below which tasks may read and write; may be given several times. Without it, everything
    /// is allowed.
    #[arg(long, env = "LLINK_ALLOW_ROOT", value_name = "URL", value_delimiter = ',')]
    pub allow_root: Vec<String>,
    /// Seconds that tasks have to save their state after this worker is told to stop. The platform must not kill it
    /// sooner.
    #[arg(long, env = "LLINK_GRACE_S", value_name = "SECONDS", default_value_t = 25)]
    pub grace: u64,
    /// End after this many seconds without a running job; 0 waits forever.
    #[arg(long, env = "LLINK_IDLE_EXIT_S", value_name = "SECONDS", default_value_t = 0)]
    pub idle_exit: u64,
    /// Address of gRPC's health service for probes, in plain text.
    #[arg(long, env = "LLINK_HEALTH", value_name = "ADDR:PORT")]
    pub health: Option<SocketAddr>,
    /// End when standard input closes, which means that the parent process has ended.
    #[arg(long, hide = true)]
    pub exit_with_parent: bool,
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Returns the exit code of a worker, with the meaning that it has for `llink-coord`: 2 a wrong option, 5 no such
/// device, 6 no coordinator or a taken port, 8 refused by it, 75 (`EX_TEMPFAIL`) stopped while a job runs,
/// 1 anything else.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<ReachError>() || error.is::<WrongRoots>() {
        return 2;
    }
    if error.is::<OutOfReach>() || error.is::<NotFree>() {
        return 6;
    }
    if error.is::<WorkLeft>() {
        return 75;
    }
    let denied = |s: &Status| matches!(s.code(), Code::PermissionDenied | Code::Unauthenticated);
    match (error.downcast_ref::<Error>(), error.downcast_ref::<Status>()) {
        (Some(Error::Device(_) | Error::OutOfMemory(_)), _) => 5,
        (_, Some(status)) if denied(status) => 8,
        _ => 1,
    }
}

/// A value of `--allow-root` is not a root.
#[derive(Debug, thiserror::Error)]
#[error("--allow-root: {0}")]
struct WrongRoots(String);

/// Runs tasks until SIGTERM or Ctrl-C, then returns the leases. Jobs may ask for what is `built_in`.
///
/// # Errors
/// When the URL is wrong, the coordinator refuses this worker, cannot be reached for the time given, or a job runs as it is told to stop.
pub async fn run(args: WorkerArgs, built_in: Option<&'static dyn BuiltIn>) -> anyhow::Result<()> {
    let threads = args.threads.filter(|n| *n > 0).unwrap_or_else(cores);
    // This fails only if a thread pool exists already, which then keeps its own size.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    let options = AgentOptions {
        coordinator: args.coordinator,
        name: args.name.unwrap_or_else(agent::host_name),
        threads,
        compute: Compute::open(args.device, args.compute)?,
        connect_timeout: (args.connect_timeout > 0).then(|| Duration::from_secs(args.connect_timeout)),
        credentials: Credentials {
            authority: args.tls_ca,
            certificate: args.tls_cert,
            key: args.tls_key,
            token: args.token_file,
            secret: std::env::var(TOKEN_VARIABLE).ok().filter(|text| !text.is_empty()).map(Secret::new),
            server_name: args.tls_server_name,
        },
        grace: Duration::from_secs(args.grace),
        idle_exit: (args.idle_exit > 0).then(|| Duration::from_secs(args.idle_exit)),
        roots: match args.allow_root.is_empty() {
            true => Roots::Any,
            false => Roots::of(&args.allow_root).map_err(WrongRoots)?,
        },
        built_in,
        health: args.health,
    };
    let stop = stop_signal(args.exit_with_parent);
    agent::run(options, stop).await
}

/// Resolves on SIGTERM, Ctrl-C, or (if asked) when standard input closes.
async fn stop_signal(with_parent: bool) {
    let (closed, parent_gone) = tokio::sync::oneshot::channel::<()>();
    if with_parent {
        std::thread::spawn(move || {
            // Nothing is ever written to standard input. It ends or fails when the parent process has ended.
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
