//! Stages in the object store: the check for complete results, the commit, and the job's report.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use llink_datasets::manifest::{ATTEMPT_PREFIX, Manifest};
use llink_datasets::report::Report;
use llink_datasets::store::Store;
use llink_proto::{Failure, FailureKind};

use super::claims::{Claims, Taken};
use super::engine::failure;
use crate::machine::Machine;
use crate::plan::{self, Claim, StageName};
use crate::schedule::{LookedUp, Work};

/// The number of folders that are listed at the same time.
const LISTINGS: usize = 8;

/// Returns the manifest of a stage under its key, if it was committed and each of its files has its size.
pub(super) async fn whole(output: &str, stage: StageName, key: &str) -> Result<Option<Manifest>, Failure> {
    let store = Store::open(output).map_err(|e| failure(&e))?;
    match committed(&store, stage, key).await? {
        Committed::Whole(manifest) => Ok(Some(manifest)),
        Committed::Damaged(_) | Committed::Not => Ok(None),
    }
}

enum Committed {
    Not,
    Whole(Manifest),
    /// There is a manifest, but files that it lists are lost. The text says so.
    Damaged(String),
}

async fn committed(store: &Store, stage: StageName, key: &str) -> Result<Committed, Failure> {
    let path = plan::manifest_path(stage, key);
    let Some(manifest) = Manifest::read(store, &path).await.map_err(|e| failure(&e))? else {
        return Ok(Committed::Not);
    };
    let missing = missing(store, &files_of(&manifest)).await?;
    Ok(match missing.first() {
        None => Committed::Whole(manifest),
        Some(first) => Committed::Damaged(format!(
            "{} of the {} files of the earlier result are gone or have another size, {first} for one: it is made again",
            missing.len(),
            manifest.artifacts.len()
        )),
    })
}

/// What the store holds of a stage. One that is not there is claimed, unless another coordinator has the claim: `held` is
/// the claim that this one had before, `own` the name of its attempts. Of the files in `kept`, those that are lost are told.
pub(super) async fn look_up(
    machine: &Arc<dyn Machine>,
    work: &Work,
    held: Option<&Claim>,
    own: &str,
    kept: &BTreeMap<String, u64>,
) -> Result<LookedUp, Failure> {
    let store = Store::open(&work.output).map_err(|e| failure(&e))?;
    if let Committed::Whole(manifest) = committed(&store, work.stage, &work.key).await? {
        return Ok(LookedUp::Whole(Box::new(manifest)));
    }
    let claims = Claims::new(machine, &store, work);
    let taken = claims.take(held, own, machine.wall_clock()).await;
    let claim = match taken.map_err(|e| failure(&e))? {
        Taken::Theirs(who) => return Ok(LookedUp::Elsewhere { who }),
        Taken::Mine(claim) => claim,
    };
    // The earlier owner of the claim may have committed in between.
    let damage = match committed(&store, work.stage, &work.key).await? {
        Committed::Whole(manifest) => {
            claims.remove().await.map_err(|e| failure(&e))?;
            return Ok(LookedUp::Whole(Box::new(manifest)));
        }
        Committed::Damaged(damage) => Some(damage),
        Committed::Not => None,
    };
    let lost = missing(&store, kept).await?;
    Ok(LookedUp::Claimed { claim, lost, damage })
}

/// Writes the manifest, once all that it lists is there, and removes what only the stage's own tasks read. What another
/// attempt committed before counts in its place.
pub(super) async fn commit(
    machine: &Arc<dyn Machine>,
    work: &Work,
    claim: &Claim,
    manifest: Manifest,
) -> Result<Manifest, Failure> {
    let store = Store::open(&work.output).map_err(|e| failure(&e))?;
    all_there(&store, &files_of(&manifest)).await?;
    let manifest = match committed(&store, work.stage, &work.key).await? {
        Committed::Whole(earlier) => earlier,
        Committed::Damaged(_) | Committed::Not => {
            let path = plan::manifest_path(work.stage, &work.key);
            manifest.write(&store, &path).await.map_err(|e| failure(&e))?;
            manifest
        }
    };
    if let Err(e) = clean_up(machine, &store, work, claim, &manifest).await {
        tracing::warn!("what only the tasks of stage {} read is left there: {e}", work.stage);
    }
    Ok(manifest)
}

/// Removes the claims, and what attempts left that nobody reads any more. Who may still be writing keeps its own.
async fn clean_up(
    machine: &Arc<dyn Machine>,
    store: &Store,
    work: &Work,
    claim: &Claim,
    manifest: &Manifest,
) -> Result<(), llink_datasets::Error> {
    let claims = Claims::new(machine, store, work);
    let at_work = claims.others_at_work(claim, machine.wall_clock()).await?;
    let committed = files_of(manifest);
    let directory = plan::directory(work.stage, &work.key);
    for object in store.list(&directory).await? {
        let below = object.path.strip_prefix(&directory).unwrap_or_default();
        let (first, rest) = below.trim_start_matches('/').split_once('/').unwrap_or_default();
        let attempt = match first {
            plan::WORK_DIRECTORY => rest.split('/').next(),
            // The attempt's own checkpoints and curves are kept, as are those of attempts without a folder of their
            // own.
            _ => first.strip_prefix(ATTEMPT_PREFIX).filter(|attempt| *attempt != claim.attempt),
        };
        let is_over = attempt.is_some_and(|attempt| !at_work.iter().any(|other| other == attempt));
        if is_over && !committed.contains_key(&object.path) {
            store.delete(&object.path).await?;
        }
    }
    claims.remove().await
}

/// Writes the report beside the job's files, once all of them are there, with the page that `evaluate` made.
pub(super) async fn publish(output: &str, report: String, files: &BTreeMap<String, u64>) -> Result<(), Failure> {
    let store = Store::open(output).map_err(|e| failure(&e))?;
    all_there(&store, files).await?;
    put_report(&store, report).await.map_err(|e| {
        storage(format!("the report can't be written: {e}. Every stage is kept: remove the cause and submit again"))
    })
}

async fn put_report(store: &Store, report: String) -> Result<(), llink_datasets::Error> {
    let parsed: Report = serde_json::from_str(&report).unwrap_or_default();
    if let Some(page) = parsed.page {
        store.put("report.html", store.get(&page).await?).await?;
    }
    store.put("report.json", report.into()).await
}

fn files_of(manifest: &Manifest) -> BTreeMap<String, u64> {
    let files = manifest.artifacts.iter();
    files.map(|file| (file.path.clone(), file.bytes)).collect()
}

async fn all_there(store: &Store, files: &BTreeMap<String, u64>) -> Result<(), Failure> {
    let missing = missing(store, files).await?;
    match missing.first() {
        None => Ok(()),
        Some(first) => Err(storage(format!(
            "{} and {} other files of this job are gone or have another size: something changed them while it ran. \
             Submit it again, and the missing files are made again",
            store.describe(first),
            missing.len() - 1
        ))),
    }
}

/// Returns the files that are not there with their size. Stage folders are listed, which takes fewer requests than one
/// for each file.
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

fn stage_folder(path: &str) -> String {
    path.splitn(3, '/').take(2).collect::<Vec<_>>().join("/")
}

fn storage(text: String) -> Failure {
    Failure { kind: FailureKind::Storage.into(), text }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use llink_datasets::manifest::ManifestArtifact;
    use llink_datasets::role::Role;

    use super::*;
    use crate::machine::ThisMachine;

    const OUTPUT: &str = "memory://stages";

    async fn stage(key: &str) -> (Store, Manifest) {
        let store = Store::open(OUTPUT).unwrap();
        let mut manifest: Manifest =
            serde_json::from_value(serde_json::json!({"version": 1, "stage": "align", "key": key, "artifacts": []}))
                .unwrap();
        for name in ["a", "b/c"] {
            let path = format!("align/{key}/{name}");
            let artifact = ManifestArtifact::of(&path, Role::Assignment, 0, b"four", BTreeMap::new());
            store.put(&path, Bytes::from_static(b"four")).await.unwrap();
            manifest.artifacts.push(artifact);
        }
        (store, manifest)
    }

    fn machine() -> Arc<dyn Machine> {
        Arc::new(ThisMachine::new())
    }

    fn work(key: &str) -> Work {
        Work { output: OUTPUT.into(), stage: StageName::Align, key: key.into() }
    }

    #[tokio::test]
    async fn a_stage_counts_only_while_each_of_its_files_is_there_with_its_size() {
        let (store, manifest) = stage("k1").await;
        let found = || whole(OUTPUT, StageName::Align, "k1");
        assert_eq!(found().await.unwrap(), None);
        commit(&machine(), &work("k1"), &Claim::default(), manifest.clone()).await.unwrap();
        assert_eq!(found().await.unwrap(), Some(manifest));
        store.put("align/k1/b/c", Bytes::from_static(b"fo")).await.unwrap();
        assert_eq!(found().await.unwrap(), None);
        let kept = BTreeMap::from([("align/k1/a".to_owned(), 4), ("align/k1/b/c".to_owned(), 4)]);
        let looked_up = look_up(&machine(), &work("k1"), None, "own", &kept).await.unwrap();
        let LookedUp::Claimed { lost, damage, .. } = looked_up else {
            panic!("{looked_up:?}");
        };
        assert_eq!(lost, BTreeSet::from(["align/k1/b/c".to_owned()]));
        assert!(damage.unwrap().contains("1 of the 2 files"));
    }

    #[tokio::test]
    async fn nothing_is_committed_or_reported_whose_files_are_not_there() {
        let (store, manifest) = stage("k2").await;
        store.delete("align/k2/a").await.unwrap();
        let refused = commit(&machine(), &work("k2"), &Claim::default(), manifest.clone()).await.unwrap_err();
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
    async fn a_commit_leaves_what_counts_and_what_others_may_be_writing() {
        let (store, manifest) = stage("k3").await;
        let LookedUp::Claimed { claim, .. } =
            look_up(&machine(), &work("k3"), None, "mine", &BTreeMap::new()).await.unwrap()
        else {
            panic!("nobody else is there");
        };
        let waits = look_up(&machine(), &work("k3"), None, "other", &BTreeMap::new()).await.unwrap();
        assert!(matches!(waits, LookedUp::Elsewhere { .. }), "{waits:?}");
        for left in ["work/mine/x", "work/gone/x", "attempt-gone/x"] {
            store.put(&format!("align/k3/{left}"), Bytes::from_static(b"x")).await.unwrap();
        }
        commit(&machine(), &work("k3"), &claim, manifest.clone()).await.unwrap();
        let left = store.list("align/k3").await.unwrap();
        let left: Vec<&str> = left.iter().map(|object| object.path.as_str()).collect();
        assert_eq!(left, ["align/k3/a", "align/k3/b/c", "align/k3/manifest.json"]);
        // A late commit returns the result that counts already.
        let mut late = manifest.clone();
        late.artifacts.pop();
        assert_eq!(commit(&machine(), &work("k3"), &claim, late).await.unwrap(), manifest);
        let found = look_up(&machine(), &work("k3"), None, "other", &BTreeMap::new()).await.unwrap();
        assert_eq!(found, LookedUp::Whole(Box::new(manifest)));
    }

    #[tokio::test]
    async fn a_page_that_is_not_there_fails_the_report() {
        let report = r#"{"page": "evaluate/none/report.html"}"#.to_owned();
        let refused = publish("memory://no-page", report, &BTreeMap::new()).await.unwrap_err();
        assert_eq!(refused.kind(), FailureKind::Storage);
        assert!(refused.text.contains("the report can't be written"), "{}", refused.text);
    }
}
