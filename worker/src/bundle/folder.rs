//! Reads the files of a bundle and checks them against the hashes of its manifest.

use std::collections::BTreeMap;

use bytes::Bytes;
use llink_datasets::manifest::{Manifest, sha256_hex};
use llink_datasets::report::Report;
use llink_datasets::store::Store;
use llink_proto::Artifact;
use tokio::runtime::Handle;

use crate::{Error, Result};

const STAGE: &str = "export";

/// The location of a bundle's files, and the hash of each.
pub struct BundleFolder {
    store: Store,
    runtime: Handle,
    /// The path from the store to the files.
    prefix: String,
    hashes: BTreeMap<String, String>,
    /// The key that identifies the bundle.
    key: String,
}

impl BundleFolder {
    /// Opens a bundle, or the newest bundle of a job's output. `url` is a path or any URL of a store.
    ///
    /// # Errors
    /// [`Error::Model`] when there is no bundle; those of the store.
    pub fn open(url: &str, runtime: &Handle) -> Result<Self> {
        let store = Store::open(url)?;
        let manifest = runtime.block_on(Manifest::read(&store, "manifest.json"))?;
        let refuse = |reason: String| Error::model(url, reason);
        let Some(manifest) = manifest else {
            return match exported(&store, runtime)? {
                Some(folder) => Self::open(&format!("{}/{folder}", store.url()), runtime),
                None => Err(refuse(
                    "there is no bundle here: its folder has a manifest.json, written by the `export` stage of a job that \
                     came to its end, and the output of such a job has a report.json"
                        .into(),
                )),
            };
        };
        if manifest.stage != STAGE {
            return Err(refuse(format!(
                "is the result of stage `{}`, not a bundle: the bundle is in {STAGE}/ of the job's output",
                manifest.stage
            )));
        }
        // The manifest's paths are relative to the job's output, but the folder may have been moved.
        let own = format!("{STAGE}/{}/", manifest.key);
        let hashes = manifest.artifacts.into_iter().map(|a| {
            let name = a.path.strip_prefix(&own).unwrap_or(&a.path).to_owned();
            (name, a.sha256)
        });
        Ok(Self { hashes: hashes.collect(), store, runtime: runtime.clone(), prefix: String::new(), key: manifest.key })
    }

    /// Opens a bundle without a manifest, whose files were just written below `directory`.
    pub fn of(store: &Store, runtime: &Handle, directory: &str, written: &[Artifact]) -> Self {
        let prefix = format!("{directory}/");
        let named = written.iter().filter_map(|a| {
            let name = a.path.strip_prefix(&prefix)?;
            Some((name.to_owned(), a.sha256.clone()))
        });
        Self {
            hashes: named.collect(),
            store: store.clone(),
            runtime: runtime.clone(),
            key: directory.rsplit('/').next().unwrap_or_default().into(),
            prefix,
        }
    }

    /// Returns the stage's key, which identifies the bundle.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns the URL of the folder.
    pub fn url(&self) -> String {
        self.store.describe(self.prefix.trim_end_matches('/'))
    }

    /// Returns the name of a file in errors.
    pub fn describe(&self, file: &str) -> String {
        self.store.describe(&format!("{}{file}", self.prefix))
    }

    /// Reads the content of a file.
    ///
    /// # Errors
    /// [`Error::Model`] when the bundle has no such file; when it is missing or differs from the manifest.
    pub fn read(&self, file: &str) -> Result<Bytes> {
        let refuse = |reason: String| Error::model(self.describe(file), reason);
        let expected =
            self.hashes.get(file).ok_or_else(|| refuse("the bundle's manifest lists no such file".into()))?;
        let content = self.runtime.block_on(self.store.get(&format!("{}{file}", self.prefix)))?;
        let found = sha256_hex(&content);
        if found == *expected {
            return Ok(content);
        }
        Err(refuse(format!(
            "was altered after it was written: SHA-256 {found}, the manifest has {expected}. Copy or export the bundle again"
        )))
    }
}

/// Returns the location of a job's bundle, by the report in its output.
fn exported(output: &Store, runtime: &Handle) -> Result<Option<String>> {
    let report = match runtime.block_on(output.get("report.json")) {
        Ok(report) => report,
        Err(llink_datasets::Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let report: Report = serde_json::from_slice(&report).unwrap_or_default();
    let mut stages = report.stages.into_iter();
    Ok(stages.find(|stage| stage.stage == STAGE).map(|stage| stage.directory))
}
