//! Runs the whole `shard` stage on made-up or real rows and prints the time and peak memory of each step.
//!
//!     cargo run --release -p llink-datasets --example shard_stage -- FOLDER [TRAIN HOLDOUT [SOURCE [across|everywhere]]]

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

#[tokio::main(flavor = "current_thread")]
#[allow(clippy::print_stdout)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
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

    let began = Instant::now();
    let started = began;
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
    println!(
        "clean {:?} {:?}, peak {} MiB",
        started.elapsed(),
        cleaned.counts,
        peak_kib() >> 10
    );
    for warning in &cleaned.warnings {
        println!("  {warning}");
    }

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
    println!(
        "split {:?} {:?} {:?}, peak so far {} MiB",
        started.elapsed(),
        split.counts,
        split.warnings,
        peak_kib() >> 10
    );

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
        specs
            .iter()
            .map(|spec| runtime.block_on(write_shard(spec, &store, &silent)))
            .collect()
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
    let bytes: u64 = shards.iter().map(|shard| shard.bytes).sum();
    println!("write {:?} {} shards, {bytes} bytes", started.elapsed(), shards.len());
    println!(
        "in all {:.2} s, peak {} MiB",
        began.elapsed().as_secs_f64(),
        peak_kib() >> 10
    );
    Ok(())
}

/// Returns the most memory that the process has held, in KiB.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}
