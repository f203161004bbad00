//! The `verify` command reads again what jobs wrote, and names every fault.

use llink_datasets::store::Store;
use llink_datasets::verify::verify;

use super::{Exit, Failed, say};
use llink_datasets::measured::thousands;

#[derive(Debug, clap::Args)]
pub(super) struct Verify {
    /// A job's output, a stage's folder, or a folder above: a path or an object-store URL.
    url: String,
}

impl Verify {
    pub(super) async fn run(self) -> Result<(), Failed> {
        let store = Store::open(&self.url)?;
        let found = verify(&store).await?;
        for fault in &found.faults {
            say(fault);
        }
        let looked_at = format!(
            "{} manifests, {} objects, {} rows, {} KiB",
            found.manifests,
            thousands(found.objects),
            thousands(found.rows),
            thousands(found.bytes / 1024)
        );
        if found.faults.is_empty() {
            say(&format!("{looked_at}: all as the manifests say"));
            return Ok(());
        }
        if found.manifests == 0 {
            return Err(Exit::Input.because("nothing was verified"));
        }
        let text = format!(
            "{looked_at}: {} faults. Delete the folders of the stages named above and submit their job again",
            found.faults.len()
        );
        Err(Exit::Input.because(text))
    }
}
