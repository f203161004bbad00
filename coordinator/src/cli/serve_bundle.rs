//! The `serve-bundle` command answers with a bundle over HTTP until it is stopped.

use std::path::PathBuf;

use llink_worker::bundle::{Generator, Opening};
use tokio::runtime::Handle;

use super::generate::ModelOptions;
use super::{Exit, Failed, interrupted, say};
use crate::serve::bundle::{self, BundleOptions};

#[derive(Debug, clap::Args)]
pub(super) struct ServeBundle {
    /// The bundle: its folder or URL, or the output of the job that exported it.
    #[arg(value_name = "BUNDLE")]
    bundle: String,
    #[command(flatten)]
    options: BundleOptions,
    #[command(flatten)]
    models: ModelOptions,
    /// Folder for models from object stores.
    #[arg(long, env = "LLINK_STATE", value_name = "DIR", default_value = ".llink")]
    state: PathBuf,
}

impl ServeBundle {
    pub(super) async fn run(self) -> Result<(), Failed> {
        self.options.check()?;
        let opening = Opening {
            encoder: self.models.encoder,
            decoder: self.models.decoder,
            // The texts of clients leave no trace on the disk.
            vectors: None,
            downloads: self.state.join("models"),
            compute: self.models.compute,
        };
        let (url, runtime) = (self.bundle, Handle::current());
        let opened = tokio::task::spawn_blocking(move || {
            let mut generator = Generator::open(&url, opening, &runtime)?;
            // This loads the encoder, or says at the start that it is missing.
            generator.read(&["."])?;
            Ok::<_, llink_worker::Error>(generator)
        });
        let opened = opened.await.map_err(|e| Exit::Internal.because(format!("the bundle: {e}")))?;
        let mut running = bundle::start(opened?, self.options).await?;
        say(&format!("llink-coord answers at {}", running.url));
        tokio::select! {
            why = running.broken() => Err(Exit::Internal.because(why)),
            () = interrupted() => {
                running.stop().await;
                Ok(())
            }
        }
    }
}
