//! Stages in the object store: whether one is there with all its files, its commit, and the job's report.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, TryStreamExt};
use llink_datasets::manifest::Manifest;
use llink_datasets::store::Store;
use llink_proto::{Failure, FailureKind};

use super::engine::failure;
use crate::plan::{self, StageName};
use crate::schedule::LookedUp;

/// Folders that are listed at the same time.
const LISTINGS: usize = 8;

/// The manifest of a stage under its key, if it was committed and its files are there, each with its size.
pub(super) async fn whole(output: &str, stage: StageName, key: &str) -> Result<Option<Manifest>, Failure> {
    match look_up(output, stage, key, &BTreeMap::new()).await? {
        LookedUp::Whole(manifest) => Ok(Some(*manifest)),
        LookedUp::Absent { .. } => Ok(None),
    }
}

/// What the store holds of a stage; of the files in `kept`, with their sizes, those that are lost.
pub(super) async fn look_up(
    output: &str,
    stage: StageName,
    key: &str,
    kept: &BTreeMap<String, u64>,
) -> Result<LookedUp, Failure> {
    let store = Store::open(output).map_err(|e| failure(&e))?;
    let path = plan::manifest_path(stage, key);
    let manifest = Manifest::read(&store, &path).await.map_err(|e| failure(&e))?;
    let mut damage = None;
    if let Some(manifest) = manifest {
        let missing = missing(&store, &files_of(&manifest)).await?;
        let Some(first) = missing.first() else {
            return Ok(LookedUp::Whole(Box::new(manifest)));
        };
        damage = Some(format!(
            "{} of the {} files of the earlier result are gone or have another size, {first} for one: it is made again",
            missing.len(),
            manifest.artifacts.len()
        ));
    }
    let lost = missing(&store, kept).await?;
    Ok(LookedUp::Absent { lost, damage })
}

/// Writes the manifest, once all that it lists is there, and removes what only the stage's own tasks read.
pub(super) async fn commit(output: &str, stage: StageName, manifest: Manifest) -> Result<Manifest, Failure> {
    let store = Store::open(output).map_err(|e| failure(&e))?;
    all_there(&store, &files_of(&manifest)).await?;
    let path = plan::manifest_path(stage, &manifest.key);
    manifest.write(&store, &path).await.map_err(|e| failure(&e))?;
    let work = format!("{}/{}", plan::directory(stage, &manifest.key), plan::WORK_DIRECTORY);
    match store.list(&work).await {
        Ok(objects) => {
            for object in objects {
                if let Err(e) = store.delete(&object.path).await {
                    tracing::warn!("cannot remove {}: {e}", object.path);
                }
            }
        }
        Err(e) => tracing::warn!("cannot list {work}: {e}"),
    }
    Ok(manifest)
}

/// Puts the report beside what the job made, once all of that is there; the page that `evaluate` drew comes along.
pub(super) async fn publish(output: &str, report: String, files: &BTreeMap<String, u64>) -> Result<(), Failure> {
    let store = Store::open(output).map_err(|e| failure(&e))?;
    all_there(&store, files).await?;
    put_report(&store, report)
        .await
        .map_err(|e| storage(format!("the report can't be written: {e}. Every stage is kept: free the cause and submit again")))
}

async fn put_report(store: &Store, report: String) -> Result<(), llink_datasets::Error> {
    let parsed: serde_json::Value = serde_json::from_str(&report).unwrap_or_default();
    if let Some(page) = parsed["page"].as_str() {
        store.put("report.html", store.get(page).await?).await?;
    }
    store.put("report.json", report.into()).await
}

/// The files that a manifest lists, with their sizes.
pub(super) fn files_of(manifest: &Manifest) -> BTreeMap<String, u64> {
    let files = manifest.artifacts.iter();
    files.map(|file| (file.path.clone(), file.bytes)).collect()
}

async fn all_there(store: &Store, files: &BTreeMap<String, u64>) -> Result<(), Failure> {
    let missing = missing(store, files).await?;
    match missing.first() {
        None => Ok(()),
        Some(first) => Err(storage(format!(
            "{}: gone, or of another size than was written, as are {} other files of this job: something removed them \
             while it ran. Submit it again: what is missing is made anew",
            store.describe(first),
            missing.len() - 1
        ))),
    }
}

/// Those of some files that are not there with their size. The folders of stages are listed, which takes fewer requests
/// than asking for each file.
async fn missing(store: &Store, files: &BTreeMap<String, u64>) -> Result<BTreeSet<String>, Failure> {
    let folders: BTreeSet<String> = files.keys().map(|path| stage_folder(path)).collect();
    let listings = futures::stream::iter(folders)
        .map(|folder| async move { store.list(&folder).await })
        .buffer_unordered(LISTINGS);
    let found: Vec<_> = listings.try_collect().await.map_err(|e| failure(&e))?;
    let found: BTreeMap<&str, u64> = found.iter().flatten().map(|o| (o.path.as_str(), o.bytes)).collect();
    let is_missing = |(path, bytes): &(&String, &u64)| found.get(path.as_str()) != Some(*bytes);
    Ok(files.iter().filter(is_missing).map(|(path, _)| path.clone()).collect())
}

/// `stage/key` of a path below it.
fn stage_folder(path: &str) -> String {
    path.splitn(3, '/').take(2).collect::<Vec<_>>().join("/")
}

fn storage(text: String) -> Failure {
    Failure {
        kind: FailureKind::Storage.into(),
        text,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use llink_datasets::manifest::ManifestArtifact;

    use super::*;

    const OUTPUT: &str = "memory://stages";

    async fn stage(key: &str) -> (Store, Manifest) {
        let store = Store::open(OUTPUT).unwrap();
        let mut manifest: Manifest =
            serde_json::from_value(serde_json::json!({"version": 1, "stage": "align", "key": key, "artifacts": []}))
                .unwrap();
        for name in ["a", "b/c"] {
            let path = format!("align/{key}/{name}");
            let artifact = ManifestArtifact::of(&path, "x", 0, b"four", BTreeMap::new());
            store.put(&path, Bytes::from_static(b"four")).await.unwrap();
            manifest.artifacts.push(artifact);
        }
        (store, manifest)
    }

    #[tokio::test]
    async fn a_stage_counts_only_while_each_of_its_files_is_there_with_its_size() {
        let (store, manifest) = stage("k1").await;
        let found = || whole(OUTPUT, StageName::Align, "k1");
        assert_eq!(found().await.unwrap(), None);
        commit(OUTPUT, StageName::Align, manifest.clone()).await.unwrap();
        assert_eq!(found().await.unwrap(), Some(manifest));
        store.put("align/k1/b/c", Bytes::from_static(b"fo")).await.unwrap();
        assert_eq!(found().await.unwrap(), None);
        let kept = BTreeMap::from([("align/k1/a".to_owned(), 4), ("align/k1/b/c".to_owned(), 4)]);
        let LookedUp::Absent { lost, damage } = look_up(OUTPUT, StageName::Align, "k1", &kept).await.unwrap() else {
            panic!("it counts");
        };
        assert_eq!(lost, BTreeSet::from(["align/k1/b/c".to_owned()]));
        assert!(damage.unwrap().contains("1 of the 2 files"));
    }

    #[tokio::test]
    async fn nothing_is_committed_or_reported_whose_files_are_not_there() {
        let (store, manifest) = stage("k2").await;
        store.delete("align/k2/a").await.unwrap();
        let refused = commit(OUTPUT, StageName::Align, manifest.clone()).await.unwrap_err();
        assert_eq!(refused.kind(), FailureKind::Storage);
        assert!(refused.text.contains("align/k2/a"), "{}", refused.text);
        assert_eq!(store.head("align/k2/manifest.json").await.unwrap(), None);
        let report = || "{}".to_owned();
        assert!(publish(OUTPUT, report(), &files_of(&manifest)).await.is_err());
        assert_eq!(store.head("report.json").await.unwrap(), None);
        store.put("align/k2/a", Bytes::from_static(b"four")).await.unwrap();
        publish(OUTPUT, report(), &files_of(&manifest)).await.unwrap();
        assert!(store.head("report.json").await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_page_that_is_not_there_fails_the_report() {
        let report = r#"{"page": "evaluate/none/report.html"}"#.to_owned();
        let refused = publish("memory://no-page", report, &BTreeMap::new()).await.unwrap_err();
        assert_eq!(refused.kind(), FailureKind::Storage);
        assert!(refused.text.contains("the report can't be written"), "{}", refused.text);
    }
}
