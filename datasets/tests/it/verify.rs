//! Tests that `verify` finds every fault in a stage's output, and none in a good output.

use crate::common::{run_stage, sample_spec, split};
use bytes::Bytes;
use llink_datasets::manifest::{MANIFEST_VERSION, Manifest, ManifestArtifact, sha256_hex};
use llink_datasets::role::{Corpus, Role, Side};
use llink_datasets::store::Store;
use llink_datasets::verify::verify;

async fn written(url: &str) -> (Store, Manifest) {
    let store = Store::open(url).unwrap();
    let spec = split(Corpus::Pairs, 300, 80, 100);
    let stage = run_stage(&store, "shard/0123abcd", &[sample_spec(Corpus::Pairs, 600, 3)], &spec).await.unwrap();
    let manifest = Manifest {
        version: MANIFEST_VERSION,
        stage: "shard".into(),
        // This is the key that `run_stage` gives its shards.
        key: "0123abcd".into(),
        artifacts: stage.shards,
        ..Manifest::default()
    };
    manifest.write(&store, "shard/0123abcd/manifest.json").await.unwrap();
    (store, manifest)
}

#[tokio::test]
async fn sound_shards_have_no_fault_wherever_they_are_looked_at_from() {
    let (store, _) = written("memory://verify-sound").await;
    for url in ["memory://verify-sound", "memory://verify-sound/shard/0123abcd"] {
        let found = verify(&Store::open(url).unwrap()).await.unwrap();
        assert_eq!(found.faults, [""; 0], "{url}");
        assert_eq!((found.manifests, found.objects, found.rows), (1, 4, 380));
    }
    drop(store);
    let nothing = verify(&Store::open("memory://verify-nothing").unwrap()).await.unwrap();
    assert!(nothing.faults[0].contains("nothing was committed"), "{nothing:?}");
}

#[tokio::test]
async fn each_fault_is_named_with_its_object() {
    let (store, manifest) = written("memory://verify-faults").await;
    let fault = async |what: &str| {
        let found = verify(&store).await.unwrap();
        assert_eq!(found.faults.len(), 1, "{found:?}");
        assert!(found.faults[0].contains(what), "{found:?}");
    };
    let first = &manifest.artifacts[0];
    let content = store.get(&first.path).await.unwrap();
    let mut flipped = content.to_vec();
    flipped[content.len() / 2] ^= 1;
    store.put(&first.path, flipped.into()).await.unwrap();
    fault("pairs/train/00000.parquet: SHA-256 is").await;
    store.put(&first.path, content.slice(..100)).await.unwrap();
    fault("has 100 bytes").await;
    store.delete(&first.path).await.unwrap();
    fault("pairs/train/00000.parquet: no such file").await;
    store.put(&first.path, content.clone()).await.unwrap();

    // This manifest lists a training shard as held out: its hashes are right and its rows are wrong.
    let mut twisted = manifest.clone();
    let copied = ManifestArtifact { role: Role::Shard(Corpus::Pairs, Side::Holdout), ..first.clone() };
    twisted.artifacts.push(copied);
    twisted.write(&store, "shard/0123abcd/manifest.json").await.unwrap();
    let found = verify(&store).await.unwrap();
    assert_eq!(found.faults.len(), 4, "three rows are named, the others counted: {found:?}");
    assert!(
        found.faults[0].contains("row 0: ") && found.faults[0].contains("stands on the other side of the split too")
    );
    assert!(found.faults[3].contains("197 more rows are wrong"), "{found:?}");
    let counts = [("pairs.rows", 9), ("pairs.kept", 5), ("pairs.dropped_duplicate", 3)];
    let counts = counts.map(|(name, rows)| (name.to_owned(), rows)).into();
    let other_sums = Manifest { counts, ..manifest.clone() };
    other_sums.write(&store, "shard/0123abcd/manifest.json").await.unwrap();
    fault("pairs.rows is 9, but its parts add up to 8").await;
    let other_key = Manifest { key: "other".into(), ..manifest.clone() };
    other_key.write(&store, "shard/0123abcd/manifest.json").await.unwrap();
    let found = verify(&store).await.unwrap();
    assert_eq!(found.faults.len(), 4, "each shard: {found:?}");
    assert!(found.faults[0].contains("was written for key 0123abcd"), "{found:?}");
    let mut wrong_rows = manifest.clone();
    wrong_rows.artifacts[0].rows += 1;
    wrong_rows.write(&store, "shard/0123abcd/manifest.json").await.unwrap();
    fault("has 100 rows, the manifest says 101").await;
    let mut no_table = manifest.clone();
    let rubbish = Bytes::from_static(b"PAR1 rubbish PAR1");
    no_table.artifacts[0].bytes = rubbish.len() as u64;
    no_table.artifacts[0].sha256 = sha256_hex(&rubbish);
    store.put(&first.path, rubbish).await.unwrap();
    no_table.write(&store, "shard/0123abcd/manifest.json").await.unwrap();
    fault("can't be read as Parquet").await;
}
