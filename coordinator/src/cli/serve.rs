//! The `serve` command runs a coordinator until it is stopped.

use std::net::SocketAddr;
use std::path::PathBuf;

use llink_datasets::roots::Roots;

use super::{Exit, Failed, interrupted, say};
use crate::schedule::{Keep, Timing};
use crate::serve::{self, Security, ServeOptions, TlsFiles};

#[derive(Debug, clap::Args)]
pub(super) struct Serve {
    /// Address to listen on. Beyond loopback this needs --tls-cert, --tls-key, a way to identify callers, and
    /// --allow-root.
    #[arg(long, env = "LLINK_LISTEN", value_name = "ADDR:PORT", default_value = "127.0.0.1:7070")]
    listen: SocketAddr,
    /// Directory of the state store.
    #[arg(long, env = "LLINK_STATE", value_name = "DIR", default_value = ".llink")]
    state: PathBuf,
    /// Seconds without a heartbeat after which a worker loses its leases.
    #[arg(long, env = "LLINK_LEASE_S", value_name = "SECONDS", default_value_t = 15.0)]
    lease: f64,
    /// Seconds that training waits for lost ranks before it continues with fewer.
    #[arg(long, env = "LLINK_GATHER_S", value_name = "SECONDS", default_value_t = 10.0)]
    gather: f64,
    /// Days after a job's end for which its tasks, attempts and events are kept. What it was and how it ended stays.
    #[arg(long, env = "LLINK_KEEP_DAYS", value_name = "DAYS", default_value_t = 30.0)]
    keep: f64,
    /// Ended jobs of which tasks, attempts and events are kept at most: the newest.
    #[arg(long, env = "LLINK_KEEP_JOBS", value_name = "JOBS", default_value_t = 1_000)]
    keep_jobs: usize,
    /// Workers that the jobs of one person hold at the same time, where callers say who they are; 0 is any number.
    #[arg(long, env = "LLINK_AT_MOST_PER_PERSON", value_name = "WORKERS", default_value_t = 0)]
    at_most_per_person: usize,
    /// The coordinator's certificate (PEM), which is read again when it changes.
    #[arg(long, env = "LLINK_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The private key of the certificate (PEM).
    #[arg(long, env = "LLINK_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The certificate authority that signs the certificates of workers and users (PEM).
    #[arg(long, env = "LLINK_TLS_CLIENT_CA", value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// File of hashed tokens from `llink-coord token`, which is read again when it changes.
    #[arg(long, env = "LLINK_TOKENS", value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// A URL or absolute path below which jobs may read and write, or `any`; may be given several times.
    #[arg(long, env = "LLINK_ALLOW_ROOT", value_name = "URL", value_delimiter = ',')]
    allow_root: Vec<String>,
    /// Listen beyond loopback without TLS, credentials and roots, and on loopback to every user of this machine. Only
    /// for networks and machines that you trust.
    #[arg(long, env = "LLINK_INSECURE")]
    insecure: bool,
    /// File for the audit log, as JSON lines. By default audit.jsonl in the state directory, if callers must identify
    /// themselves.
    #[arg(long, env = "LLINK_AUDIT", value_name = "FILE")]
    audit: Option<PathBuf>,
    /// Address of gRPC's health service for probes, in plain text.
    #[arg(long, env = "LLINK_HEALTH", value_name = "ADDR:PORT")]
    health: Option<SocketAddr>,
    /// Address of Prometheus's /metrics, in plain text.
    #[arg(long, env = "LLINK_METRICS", value_name = "ADDR:PORT")]
    metrics: Option<SocketAddr>,
    /// Address of the page for browsers. Beyond loopback this needs what --listen needs.
    #[arg(long, env = "LLINK_PAGE", value_name = "ADDR:PORT")]
    page: Option<SocketAddr>,
    /// Folder or URL to which the state is copied before anything is acknowledged, and from which it is restored. Another
    /// coordinator that is started with it waits, and takes over when this one is gone.
    #[arg(long, env = "LLINK_REPLICA", value_name = "URL")]
    replica: Option<String>,
}

impl Serve {
    pub(super) async fn run(self) -> Result<(), Failed> {
        return_memory_early();
        let options = self.options()?;
        let running = tokio::select! {
            started = serve::start(options) => started?,
            // A standby waits for as long as another one leads.
            () = interrupted() => return Ok(()),
        };
        say(&format!("llink-coord listens on {}", running.url));
        if let Some(page) = &running.page {
            say(&format!("the page is at {page}"));
        }
        tokio::select! {
            why = running.broken() => Err(Exit::Storage.because(why)),
            () = interrupted() => {
                running.stop().await?;
                Ok(())
            }
        }
    }

    fn options(self) -> Result<ServeOptions, Failed> {
        let timing = Timing {
            lease: milliseconds("--lease", self.lease, 0.2)?,
            gather: milliseconds("--gather", self.gather, 0.0)?,
            ..Timing::default()
        };
        if !(0.0..=36_500.0).contains(&self.keep) {
            let text = format!("--keep {}: expected 0 to 36500 days", self.keep);
            return Err(Exit::Usage.because(text));
        }
        let keep = Keep { millis: (self.keep * 86_400_000.0) as i64, jobs: self.keep_jobs };
        let roots_named = !self.allow_root.is_empty();
        let roots = match roots_named {
            true => Roots::of(&self.allow_root).map_err(|e| Exit::Usage.because(format!("--allow-root: {e}")))?,
            false => Roots::Any,
        };
        let asks = self.tokens.is_some() || self.tls_client_ca.is_some();
        let audit = self.audit.or_else(|| asks.then(|| self.state.join("audit.jsonl")));
        let tls = self.tls_cert.zip(self.tls_key).map(|(certificate, key)| TlsFiles {
            certificate,
            key,
            client_authority: self.tls_client_ca,
        });
        Ok(ServeOptions {
            timing,
            keep,
            at_most_per_person: self.at_most_per_person,
            security: Security { tls, tokens: self.tokens, audit, roots, roots_named, insecure: self.insecure },
            health: self.health,
            metrics: self.metrics,
            page: self.page,
            replica: self.replica,
            ..ServeOptions::new(self.listen, self.state)
        })
    }
}

/// Gives freed memory back to the system early. By itself glibc keeps up to 64 MB of it in each arena, once it has freed a
/// piece of many megabytes.
fn return_memory_early() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes plain numbers, and may come at any time.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 << 10);
    }
}

fn milliseconds(flag: &str, seconds: f64, at_least: f64) -> Result<i64, Failed> {
    if (at_least..=3600.0).contains(&seconds) {
        return Ok((seconds * 1000.0) as i64);
    }
    Err(Exit::Usage.because(format!("{flag} {seconds}: expected {at_least} to 3600 seconds")))
}
