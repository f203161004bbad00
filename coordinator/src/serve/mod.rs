//! The server: the gRPC services, the engine behind them, and the access to the object store.

mod accept;
pub mod access;
mod bounds;
#[cfg(feature = "embedded")]
pub mod bundle;
mod claims;
mod connections;
mod dry_run;
mod endpoint;
mod engine;
pub mod exposure;
mod health;
mod inputs;
mod jobs;
mod keeper;
mod local_user;
mod metrics;
mod page;
mod stages;
mod tls;
mod track;
mod withheld;
mod workers;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::middleware::from_fn_with_state;
use llink_proto::job_service_server::JobServiceServer;
use llink_proto::reach::Secret;
use llink_proto::worker_service_server::WorkerServiceServer;
use tokio::sync::{oneshot, watch};
use tonic::service::Routes;
use tonic::transport::server::Router;

use crate::machine::{Machine, ThisMachine, unix_ms};
use crate::schedule::{Keep, Timing};
use crate::state::{StateError, StateStore, private, replica};

use accept::{Protection, Spoken};
use access::{Access, AuditError, AuditLog, Slowdown, gate};
use connections::Limits;
pub use endpoint::{Endpoint, endpoint_file};
pub use engine::EngineHandle;
pub use exposure::Security;
pub use health::READY;
pub use jobs::FAILURE_KIND_KEY;
use tls::{ClientCertificate, Tls};
pub use tls::{FileError, TlsFiles};

/// The most bytes of a message, which is enough for a stage of a hundred thousand artifacts.
pub(crate) const MAX_MESSAGE_BYTES: usize = 64 << 20;

#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// The address to listen on. Port 0 takes a free one.
    pub listen: SocketAddr,
    pub state_directory: PathBuf,
    pub timing: Timing,
    /// The treatment of jobs that were running when the last coordinator on this state ended.
    pub unfinished: Unfinished,
    /// The number of workers that will connect. The first gang waits for them.
    pub expected_workers: usize,
    pub keep: Keep,
    /// The most workers that the jobs of one person hold at the same time. 0 means no limit.
    pub at_most_per_person: usize,
    pub security: Security,
    pub health: Option<SocketAddr>,
    pub metrics: Option<SocketAddr>,
    pub page: Option<SocketAddr>,
    /// The folder or URL to which the state is copied before a step is acknowledged.
    pub replica: Option<String>,
}

impl ServeOptions {
    /// Returns options with the usual limits, without rules for callers and jobs, and without health, metrics, page and replica.
    pub fn new(listen: SocketAddr, state_directory: PathBuf) -> Self {
        Self {
            listen,
            state_directory,
            timing: Timing::default(),
            unfinished: Unfinished::GoesOn,
            expected_workers: 0,
            keep: Keep::default(),
            at_most_per_person: 0,
            security: Security::default(),
            health: None,
            metrics: None,
            page: None,
            replica: None,
        }
    }
}

/// The treatment of jobs that were running when the last coordinator on this state ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfinished {
    /// They continue, because this coordinator is a server.
    GoesOn,
    /// They are ended until they are submitted again, because this coordinator lives for one job.
    IsEnded,
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("{directory} is in use by {holder}: name it with --coordinator, or use another --state directory")]
    InUse { directory: PathBuf, holder: String },
    #[error(transparent)]
    State(#[from] StateError),
    #[error("{path}: {source}")]
    Lock { path: PathBuf, source: std::io::Error },
    #[error("{0}")]
    Exposed(String),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error("{0}")]
    Random(String),
    #[error("server: {0}")]
    Transport(#[from] tonic::transport::Error),
}

#[derive(Debug)]
pub struct Running {
    pub url: String,
    pub page: Option<String>,
    /// The token that callers show, where the coordinator serves only the user who started it.
    pub token: Option<Secret>,
    pub engine: EngineHandle,
    stop: watch::Sender<bool>,
    server: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
    page_ended: Option<tokio::task::JoinHandle<()>>,
    tracker: tokio::task::JoinHandle<()>,
    audit: Option<Arc<AuditLog>>,
    // The kernel releases the lock with the process, however the process ends.
    _lock: std::fs::File,
    endpoint_file: PathBuf,
}

pub async fn start(options: ServeOptions) -> Result<Running, ServeError> {
    start_for(options, None).await
}

/// Starts a coordinator for only the user who starts it. Callers show a token, which stands in the endpoint file that
/// no other user can read.
pub async fn start_for_own_user(options: ServeOptions) -> Result<Running, ServeError> {
    let token = access::fresh_secret().map_err(ServeError::Random)?;
    start_for(options, Some(Secret::new(token))).await
}

async fn start_for(options: ServeOptions, own_token: Option<Secret>) -> Result<Running, ServeError> {
    exposure::check(options.listen, &options.security).map_err(ServeError::Exposed)?;
    if let Some(page) = options.page {
        exposure::check_callers("--page", page, &options.security).map_err(ServeError::Exposed)?;
    }
    let lock = lock(&options.state_directory)?;
    let calls = metrics::Calls::default();
    let (access, tls) = access_of(&options, own_token.as_ref(), calls.clone())?;
    let (stop, stopped) = watch::channel(false);
    let (leads, led) = oneshot::channel();
    if let Some(address) = options.health {
        health::serve(address, led, stopped.clone()).await?;
    }
    let machine: Arc<dyn Machine> = Arc::new(ThisMachine::new());
    let store = open_state(&options, machine.clone()).await?;
    let (listener, address) = accept::bind(options.listen).await?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{address}");
    let saves = metrics::Saves::default();
    let engine = engine::start(store, &options, saves.clone(), machine)?;
    // Without a health service there is no receiver.
    let _ = leads.send(engine.clone());
    let endpoint = Endpoint { process: std::process::id(), url: url.clone(), token: own_token.clone() };
    // The file helps commands that name no coordinator. The lock alone decides who may run.
    if let Err(e) = endpoint.write(&options.state_directory) {
        tracing::warn!(state = %options.state_directory.display(), "cannot write the endpoint file: {e}");
    }
    let tracker = tokio::spawn(track::keep(engine.clone(), stopped.clone()));
    let plans = page::Plans::default();
    let router = router(&options, &engine, access.clone(), plans.clone(), tls.is_some(), stopped.clone())?;
    let audit = access.audit.clone();
    if let Some(audit) = audit.clone() {
        tokio::spawn(settle(audit, stopped.clone()));
    }
    if let Some(address) = options.metrics {
        metrics::serve(address, engine.clone(), calls, saves, stopped.clone()).await?;
    }
    let protection = match (tls, access.own_user) {
        (Some(tls), _) => Protection::Tls(tls),
        (None, Some(_)) => Protection::PlainOfUsers,
        (None, None) => Protection::Plain,
    };
    let page = match options.page {
        None => None,
        Some(address) => {
            let parts = page::Parts {
                engine: engine.clone(),
                access,
                protection: protection.clone(),
                plans,
                stopped: stopped.clone(),
            };
            Some(page::serve(address, parts).await?)
        }
    };
    // A browser shows no token where its user is known. A gRPC client always shows one.
    let protection = if own_token.is_some() { Protection::Plain } else { protection };
    let incoming = accept::incoming(listener, protection, Spoken::Http2, Limits::of_this_process());
    let server = tokio::spawn(router.serve_with_incoming_shutdown(incoming, wait_for(stopped)));
    tracing::info!(%url, state = %options.state_directory.display(), "coordinator listens");
    Ok(Running {
        url,
        page: page.as_ref().map(|page| page.url.clone()),
        token: own_token,
        engine,
        stop,
        server,
        page_ended: page.map(|page| page.ended),
        tracker,
        audit,
        _lock: lock,
        endpoint_file: endpoint_file(&options.state_directory),
    })
}

/// Opens what decides about callers: certificates, tokens, and the log of what callers did.
fn access_of(
    options: &ServeOptions,
    own_token: Option<&Secret>,
    calls: metrics::Calls,
) -> Result<(Arc<Access>, Option<watch::Receiver<Tls>>), ServeError> {
    let security = &options.security;
    let tokens = security.tokens.as_deref().map(tls::watch_tokens).transpose()?;
    let client = match tokens {
        Some(_) => ClientCertificate::Optional,
        None => ClientCertificate::Required,
    };
    let tls = security.tls.clone().map(|files| tls::watch_files(files, client)).transpose()?;
    let audit = security.audit.as_deref().map(AuditLog::open).transpose()?.map(Arc::new);
    let authority = tls.clone().filter(|tls| tls.borrow().authority.is_some());
    let open = authority.is_none() && tokens.is_none() && own_token.is_none();
    // On loopback other users of the machine are strangers too.
    let asks_nobody = open || own_token.is_some();
    let own_user = (asks_nobody && tls.is_none() && options.listen.ip().is_loopback() && !security.insecure)
        .then(local_user::own_user)
        .flatten();
    let access = Access {
        open,
        own_user,
        own_token: own_token.map(|token| access::sha256_of(token.text())),
        authority,
        tokens,
        audit,
        calls,
        slowdown: Slowdown::default(),
        token_file: security.tokens.clone(),
    };
    Ok((Arc::new(access), tls))
}

/// Returns the services for jobs and workers, behind the gate that asks who calls.
fn router(
    options: &ServeOptions,
    engine: &EngineHandle,
    access: Arc<Access>,
    plans: page::Plans,
    is_encrypted: bool,
    stopped: watch::Receiver<bool>,
) -> Result<Router, ServeError> {
    let jobs = jobs::Jobs::new(engine.clone(), options.security.roots.clone(), plans, stopped.clone());
    let jobs = JobServiceServer::new(jobs).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let gang_key = access::fresh_secret().map_err(ServeError::Random)?;
    let workers = workers::Workers::new(engine.clone(), options.timing, stopped, gang_key, is_encrypted);
    let workers = WorkerServiceServer::new(workers).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let services = Routes::new(jobs).add_service(workers).into_axum_router();
    let services = services.layer(from_fn_with_state(access, gate));
    Ok(tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .tcp_nodelay(true)
        .add_routes(services.into()))
}

/// Opens the state. With a replica, this waits while another coordinator leads on it.
async fn open_state(options: &ServeOptions, machine: Arc<dyn Machine>) -> Result<StateStore, StateError> {
    match &options.replica {
        Some(url) => replica::open(&options.state_directory, url, machine, replica::ENTRIES).await,
        None => {
            replica::forget(&options.state_directory);
            StateStore::open(&options.state_directory)
        }
    }
}

impl Running {
    /// Closes every stream, lets the server finish, leaves the replica to a standby and removes the endpoint file.
    pub async fn stop(self) -> Result<(), ServeError> {
        // The receivers may be gone already.
        let _ = self.stop.send(true);
        let _ = std::fs::remove_file(&self.endpoint_file);
        // It ends by itself within seconds.
        let _ = self.tracker.await;
        // Others need not wait for the end of a claim that nobody wants any more. An engine that waits for its disk or its
        // replica is not waited for.
        let releases = async {
            for release in self.engine.call(|engine| engine.releases()).await.unwrap_or_default() {
                let _ = release.await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), releases).await;
        if let Some(page) = self.page_ended {
            let _ = tokio::time::timeout(Duration::from_secs(2), page).await;
        }
        let ended = tokio::time::timeout(Duration::from_secs(3), self.server).await;
        // Nobody waits for an answer any more. A replica that does not answer is not waited for.
        let stops = self.engine.call(|engine| engine.stop());
        let _ = tokio::time::timeout(Duration::from_secs(5), stops).await;
        if let Some(audit) = &self.audit {
            audit.settle(i64::MAX);
        }
        match ended {
            Ok(Ok(ended)) => ended.map_err(ServeError::from),
            _ => Ok(()),
        }
    }

    pub async fn broken(&self) -> String {
        self.engine.broken().await
    }
}

/// Regularly writes the refused calls that were held back to be counted.
async fn settle(audit: Arc<AuditLog>, stopped: watch::Receiver<bool>) {
    let mut stopped = std::pin::pin!(wait_for(stopped));
    loop {
        tokio::select! {
            () = &mut stopped => return,
            () = tokio::time::sleep(Duration::from_secs(20)) => {}
        }
        audit.settle(unix_ms());
    }
}

async fn wait_for(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop too.
    let _ = stopped.wait_for(|stop| *stop).await;
}

/// Takes the lock of the state directory, which is created if needed. Dropping the file releases it.
pub(crate) fn lock(directory: &std::path::Path) -> Result<std::fs::File, ServeError> {
    let path = directory.join("coordinator.lock");
    let failed = |source| ServeError::Lock { path: path.clone(), source };
    private::directory(directory).map_err(failed)?;
    let file = private::file(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            let holder = match Endpoint::read(directory) {
                Some(Endpoint { process, url, .. }) => format!("process {process} at {url}"),
                None => "another llink-coord".into(),
            };
            Err(ServeError::InUse { directory: directory.into(), holder })
        }
        Err(std::fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}
