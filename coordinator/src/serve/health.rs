//! The health service of gRPC on a port of its own, because probes of Kubernetes speak neither TLS nor tokens. It tells
//! only whether this process serves.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tonic_health::ServingStatus;

use super::connections::Limits;
use super::engine::EngineHandle;
use super::{ServeError, accept};

/// The service whose health says that calls are answered. The empty name says that the process lives.
pub const READY: &str = "ready";
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// The time for an answer of the engine. A later answer means that the engine waits for its disk.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves the health service until `stopped`. Calls are not answered before there is an engine.
pub(super) async fn serve(
    address: SocketAddr,
    engine: oneshot::Receiver<EngineHandle>,
    stopped: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let (listener, _) = accept::bind(address).await?;
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter.set_service_status("", ServingStatus::Serving).await;
    reporter.set_service_status(READY, ServingStatus::NotServing).await;
    let mut stop = stopped.clone();
    tokio::spawn(async move {
        let Ok(engine) = engine.await else { return };
        loop {
            let answers = tokio::time::timeout(PATIENCE, engine.call(|_| ())).await;
            let ready = matches!(answers, Ok(Ok(()))) && !*stop.borrow();
            let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
            reporter.set_service_status(READY, status).await;
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                changed = stop.changed() => if changed.is_err() { return },
            }
        }
    });
    let server = tonic::transport::Server::builder().add_service(service);
    let shutdown = super::wait_for(stopped);
    tokio::spawn(async move {
        let served = server
            .serve_with_incoming_shutdown(
                accept::incoming(listener, accept::Protection::Plain, accept::Spoken::Http2, Limits::FEW),
                shutdown,
            )
            .await;
        if let Err(e) = served {
            tracing::warn!("health: {e}");
        }
    });
    Ok(())
}
