//! The code that the integration tests share: files in memory, the three steps of the stage, and a small random generator.

use std::collections::BTreeMap;

use bytes::Bytes;
use llink_datasets::Result;
use llink_datasets::clean::Rules;
use llink_datasets::manifest::ManifestArtifact;
use llink_datasets::pairs::read_pairs;
use llink_datasets::read::Source;
use llink_datasets::role::{Corpus, Role, Side};
use llink_datasets::shards::{
    CleanSpec, Cleaned, MadeUp, NearDuplicates, SidesBy, Split, SplitSpec, WriteSpec, clean_source, split_corpus,
    write_shard,
};
use llink_datasets::store::Store;
use llink_quickstart::{Quickstart, sample};

/// A XorShift generator, which is enough to draw test cases.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

pub fn silent(_: u64, _: u64) {}

pub fn source_spec(corpus: Corpus, source: &str) -> CleanSpec {
    CleanSpec {
        corpus,
        source: Source::named(source),
        made_up: None,
        rules: Rules::default(),
        tasks: Vec::new(),
        with_signatures: false,
    }
}

pub fn sample_spec(corpus: Corpus, rows: u64, seed: u64) -> CleanSpec {
    CleanSpec { made_up: Some(MadeUp { by: &Quickstart, rows, seed }), ..source_spec(corpus, sample::SOURCE) }
}

pub async fn clean(store: &Store, spec: &CleanSpec, path: &str) -> Result<Cleaned> {
    clean_source(spec, store, path, &silent).await
}

/// The place of the files that tests of readers make.
pub const FILES: &str = "memory://files";

pub fn files() -> Store {
    Store::open(FILES).unwrap()
}

/// Makes a file.
pub async fn put(name: &str, content: impl AsRef<[u8]>) -> Source {
    files().put(name, Bytes::copy_from_slice(content.as_ref())).await.unwrap();
    Source::named(&format!("{FILES}/{name}"))
}

/// Returns the source of two files in step.
pub fn beside(english: Source, foreign: Source) -> Source {
    Source { foreign_url: Some(foreign.url), ..english }
}

/// Cleans a file, and returns the table of its kept rows.
pub async fn cleaned(spec: &CleanSpec) -> Result<(Cleaned, Bytes)> {
    let out = format!("{}.out", spec.source.url.rsplit('/').next().unwrap());
    let cleaned = clean(&files(), spec, &out).await?;
    assert_sums(&cleaned.counts, &["kept"]);
    Ok((cleaned, files().get(&out).await.unwrap()))
}

/// Returns the kept pairs of a file sorted by English, and what was reported of the others.
pub async fn read(source: Source) -> Result<(Vec<(String, String)>, Cleaned)> {
    let (cleaned, table) = cleaned(&CleanSpec { source, ..source_spec(Corpus::Pairs, "") }).await?;
    let table = read_pairs("pairs", table).unwrap();
    let mut rows: Vec<_> = table.english.into_iter().zip(table.foreign).collect();
    rows.sort();
    Ok((rows, cleaned))
}

pub fn split(corpus: Corpus, train_rows: impl Into<Option<u64>>, holdout_rows: u64, shard_rows: u32) -> SplitSpec {
    SplitSpec {
        corpus,
        train_rows: train_rows.into(),
        holdout_rows,
        shard_rows,
        near_duplicates: NearDuplicates::Keep,
        sides_by: SidesBy::Key,
        pairs: None,
    }
}

/// The output of the whole stage for some sources.
pub struct Stage {
    pub split: Split,
    pub shards: Vec<ManifestArtifact>,
}

/// Runs the three steps into `folder` of a store.
pub async fn run_stage(store: &Store, folder: &str, sources: &[CleanSpec], spec: &SplitSpec) -> Result<Stage> {
    let mut paths = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        let cleaned = clean(store, source, &format!("{folder}/cleaned/{index}.parquet")).await?;
        paths.extend(cleaned.artifacts.into_iter().map(|artifact| artifact.path));
    }
    let assignment = format!("{folder}/assignment.parquet");
    let split = split_corpus(spec, store, &paths, &assignment, &silent).await?;
    let mut shards = Vec::new();
    for shard in &split.shards {
        let spec = WriteSpec {
            corpus: spec.corpus,
            cleaned: paths.clone(),
            assignment: assignment.clone(),
            shard: shard.index,
            path: format!("{folder}/{}", shard.path),
            role: shard.role.clone(),
            stage_key: "0123abcd".into(),
        };
        shards.push(write_shard(&spec, store, &silent).await?);
    }
    Ok(Stage { split, shards })
}

/// Returns the pairs of one side, over all its shards.
pub async fn pairs_of(store: &Store, stage: &Stage, side: Side) -> Vec<(u64, String, String)> {
    let mut rows = Vec::new();
    let role = Role::Shard(Corpus::Pairs, side);
    for shard in stage.shards.iter().filter(|shard| shard.role == role) {
        let table = read_pairs(&shard.path, store.get(&shard.path).await.unwrap()).unwrap();
        let texts = table.english.into_iter().zip(table.foreign);
        rows.extend(table.ids.into_iter().zip(texts).map(|(id, (en, km))| (id, en, km)));
    }
    rows
}

/// Asserts that `rows` is the sum of the named parts and of everything dropped.
pub fn assert_sums(counts: &BTreeMap<String, u64>, parts: &[&str]) {
    let kept: u64 = parts.iter().map(|part| counts[*part]).sum();
    let dropped: u64 = counts.iter().filter(|(name, _)| name.starts_with("dropped_")).map(|(_, rows)| rows).sum();
    assert_eq!(counts["rows"], kept + dropped, "{counts:?}");
}
