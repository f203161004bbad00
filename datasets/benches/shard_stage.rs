//! Runs the whole `shard` stage on made-up or real rows and prints one JSON line with the time and peak memory of each step.
//! `shard_stage_peer.py` beside it does the same in polars.
//!
//!     cargo bench -p llink-datasets --bench shard_stage -- FOLDER [TRAIN HOLDOUT [SOURCE [across|everywhere]]]

mod support;

use std::collections::BTreeMap;
use std::time::Instant;

use llink_datasets::clean::Rules;
use llink_datasets::manifest::ManifestArtifact;
use llink_datasets::read::Source;
use llink_datasets::rows::Corpus;
use llink_datasets::shards::{
    CleanSpec, MadeUp, NearDuplicates, SidesBy, SplitSpec, WriteSpec, clean_source, split_corpus, write_shard,
};
use llink_datasets::store::Store;
use llink_quickstart::{Quickstart, sample};
use serde_json::json;
use support::peak_mib;

#[tokio::main(flavor = "current_thread")]
#[allow(clippy::print_stdout)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|text| text != "--bench").collect();
    let folder = arguments.first().ok_or("name a folder to write to")?;
    let number = |index: usize, default: u64| arguments.get(index).map_or(Ok(default), |text| text.parse());
    let (train_rows, holdout_rows) = (number(1, 100_000)?, number(2, 40_000)?);
    let source = arguments.get(3).map_or(sample::SOURCE, String::as_str);
    let near = match arguments.get(4).map(String::as_str) {
        Some("across") => NearDuplicates::Across(0.8),
        Some("everywhere") => NearDuplicates::Everywhere(0.8),
        _ => NearDuplicates::Keep,
    };
    let store = Store::open(folder)?;
    let silent = |_, _| {};
    let step = |started: Instant, counts: BTreeMap<String, u64>, warnings: Vec<String>| {
        let seconds = started.elapsed().as_secs_f64();
        json!({"seconds": seconds, "peak_rss_mib": peak_mib(), "counts": counts, "warnings": warnings})
    };

    let began = Instant::now();
    let spec = CleanSpec {
        corpus: Corpus::Pairs,
        source: Source::named(source),
        made_up: (source == sample::SOURCE).then_some(MadeUp {
            by: &Quickstart,
            rows: (train_rows + holdout_rows) * 101 / 100,
            seed: 17,
        }),
        rules: Rules::default(),
        tasks: Vec::new(),
        with_signatures: near != NearDuplicates::Keep,
    };
    let cleaned = clean_source(&spec, &store, "cleaned.parquet", &silent).await?;
    let rows = cleaned.counts["rows"];
    let clean_step = step(began, cleaned.counts, cleaned.warnings);

    let started = Instant::now();
    let paths: Vec<String> = cleaned.artifacts.into_iter().map(|a| a.path).collect();
    let spec = SplitSpec {
        corpus: Corpus::Pairs,
        train_rows: Some(train_rows),
        holdout_rows,
        shard_rows: 16_384,
        near_duplicates: near,
        sides_by: SidesBy::Key,
        pairs: None,
    };
    let split = split_corpus(&spec, &store, &paths, "assignment.parquet", &silent).await?;
    let split_step = step(started, split.counts, split.warnings);

    let started = Instant::now();
    // Shards are written independently, as by the workers of a job.
    let threads = std::thread::available_parallelism()?.get();
    let specs: Vec<WriteSpec> = split
        .shards
        .into_iter()
        .map(|shard| WriteSpec {
            corpus: Corpus::Pairs,
            cleaned: paths.clone(),
            assignment: "assignment.parquet".into(),
            shard: shard.index,
            path: shard.path,
            role: shard.role,
            stage_key: "example".into(),
        })
        .collect();
    let write = |specs: &[WriteSpec]| -> llink_datasets::Result<Vec<ManifestArtifact>> {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime can be started");
        specs.iter().map(|spec| runtime.block_on(write_shard(spec, &store, &silent))).collect()
    };
    let mut shards: Vec<ManifestArtifact> = Vec::new();
    std::thread::scope(|scope| -> llink_datasets::Result<()> {
        let parts = specs.chunks(specs.len().div_ceil(threads));
        let running: Vec<_> = parts.map(|part| scope.spawn(|| write(part))).collect();
        for thread in running {
            shards.extend(thread.join().expect("no shard panics")?);
        }
        Ok(())
    })?;
    let figures = json!({
        "job": "shard_stage",
        "engine": concat!("llink ", env!("CARGO_PKG_VERSION")),
        "source": source,
        "rows": rows,
        "clean": clean_step,
        "split": split_step,
        "write": {
            "seconds": started.elapsed().as_secs_f64(),
            "shards": shards.len(),
            "bytes": shards.iter().map(|shard| shard.bytes).sum::<u64>(),
        },
        "seconds": began.elapsed().as_secs_f64(),
        "peak_rss_mib": peak_mib(),
    });
    println!("{figures}");
    Ok(())
}
