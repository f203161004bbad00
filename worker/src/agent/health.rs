//! gRPC's health service for probes: whether the process lives, and whether it is registered.

use std::net::SocketAddr;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// The service that is healthy while the coordinator knows this worker. The empty service name is healthy while the
/// process lives. It must not depend on the coordinator, whose short absence would otherwise restart all workers.
const READY: &str = "ready";

/// The address of the service is not free.
#[derive(Debug, thiserror::Error)]
#[error("--health {0}")]
pub struct NotFree(SocketAddr);

/// Reports whether this worker is registered. Without an address it reports to nobody.
#[derive(Clone, Default)]
pub(super) struct Readiness(Option<HealthReporter>);

impl Readiness {
    pub(super) async fn serve(address: Option<SocketAddr>) -> anyhow::Result<Self> {
        let Some(address) = address else {
            return Ok(Self::default());
        };
        let listener = TcpListener::bind(address).await.with_context(|| NotFree(address))?;
        let (reporter, service) = tonic_health::server::health_reporter();
        reporter.set_service_status("", ServingStatus::Serving).await;
        reporter.set_service_status(READY, ServingStatus::NotServing).await;
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(async move {
            if let Err(e) = server.serve_with_incoming(TcpListenerStream::new(listener)).await {
                tracing::warn!("health: {e}");
            }
        });
        Ok(Self(Some(reporter)))
    }

    pub(super) async fn set(&self, status: ServingStatus) {
        if let Some(reporter) = &self.0 {
            reporter.set_service_status(READY, status).await;
        }
    }
}
