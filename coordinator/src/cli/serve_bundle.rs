//! The `serve-bundle` command answers with a bundle over HTTP until it is stopped.

use std::net::SocketAddr;
use std::path::PathBuf;

use llink_worker::bundle::{Generator, Opening};
use tokio::runtime::Handle;

use super::generate::ModelPlaces;
use super::{Exit, Failed, interrupted, say};
use crate::serve::TlsFiles;
use crate::serve::bundle::{self, BundleOptions};

#[derive(Debug, clap::Args)]
pub(super) struct ServeBundle {
    /// The bundle: its folder or URL, or the output of the job that exported it.
    #[arg(value_name = "BUNDLE")]
    bundle: String,
    /// Address to listen on. Beyond loopback this needs --tls-cert, --tls-key and --tokens.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Name of the model in requests.
    #[arg(long, default_value = "llink")]
    name: String,
    /// Answers that are computed at once.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    at_once: u16,
    /// Requests that may wait beside them. More are refused until there is room.
    #[arg(long, value_name = "N", default_value_t = 64)]
    queue: u16,
    /// The longest answer in tokens, if a request does not say it.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// File of hashed tokens from `llink-coord token`, which is read again when it changes. Clients send a token as their
    /// API key.
    #[arg(long, env = "LLINK_TOKENS", value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// The server's certificate (PEM), which is read again when it changes.
    #[arg(long, env = "LLINK_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The private key of the certificate (PEM).
    #[arg(long, env = "LLINK_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Listen beyond loopback without TLS and tokens. Only for networks that you trust.
    #[arg(long, env = "LLINK_INSECURE")]
    insecure: bool,
    #[command(flatten)]
    models: ModelPlaces,
    /// Folder for models from object stores.
    #[arg(long, env = "LLINK_STATE", value_name = "DIR", default_value = ".llink")]
    state: PathBuf,
}

impl ServeBundle {
    pub(super) async fn run(self) -> Result<(), Failed> {
        let tls = self.tls_cert.zip(self.tls_key).map(|(certificate, key)| TlsFiles {
            certificate,
            key,
            client_authority: None,
        });
        let options = BundleOptions {
            listen: self.listen,
            name: self.name,
            at_once: usize::from(self.at_once),
            queue: usize::from(self.queue),
            max_tokens: self.max_tokens as usize,
            tls,
            tokens: self.tokens,
            insecure: self.insecure,
        };
        options.check()?;
        let opening = Opening {
            encoder: self.models.encoder,
            decoder: self.models.decoder,
            // The texts of clients leave no trace on the disk.
            vectors: None,
            downloads: self.state.join("models"),
        };
        let (url, runtime) = (self.bundle, Handle::current());
        let opened = tokio::task::spawn_blocking(move || {
            let mut generator = Generator::open(&url, opening, &runtime)?;
            // This loads the encoder, or says at the start that it is missing.
            generator.read(&["."])?;
            Ok::<_, llink_worker::Error>(generator)
        });
        let opened = opened.await.map_err(|e| Failed::new(Exit::Internal, format!("the bundle: {e}")))?;
        let mut running = bundle::start(opened?, options).await?;
        say(&format!("llink-coord answers at {}", running.url));
        tokio::select! {
            why = running.broken() => Err(Failed::new(Exit::Internal, why)),
            () = interrupted() => {
                running.stop().await;
                Ok(())
            }
        }
    }
}
