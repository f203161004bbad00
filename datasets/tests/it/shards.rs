//! Shards on disk have their schema and stable bytes, and can't be made from the wrong tables.

use std::collections::BTreeMap;
use std::process::Command;

use crate::common::{clean, pairs_of, run_stage, sample_spec, silent, split};
use crate::skip::python_with;
use bytes::Bytes;
use half::f16;
use llink_datasets::clean::TooLong;
use llink_datasets::manifest::sha256_hex;
use llink_datasets::role::{Corpus, Role, Side};
use llink_datasets::rows::row_id;
use llink_datasets::shards::{WriteSpec, write_shard};
use llink_datasets::store::Store;
use llink_datasets::vectors::{VectorTable, write_vectors};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

#[tokio::test]
async fn shards_are_as_the_design_says() {
    let store = Store::open("memory://design").unwrap();
    for (corpus, columns) in [
        (Corpus::Pairs, vec!["id", "english", "foreign", "foreign_chars", "source"]),
        (Corpus::Instructions, vec!["id", "task", "instruction", "foreign", "english_ref", "answer"]),
    ] {
        let folder = format!("{corpus:?}");
        let stage = run_stage(&store, &folder, &[sample_spec(corpus, 11_000, 1)], &split(corpus, 9_000, 900, 10_000))
            .await
            .unwrap();
        let shard = &stage.shards[0];
        let content = store.get(&shard.path).await.unwrap();
        assert_eq!((shard.bytes, shard.sha256.as_str()), (content.len() as u64, sha256_hex(&content).as_str()));
        let builder = ParquetRecordBatchReaderBuilder::try_new(content).unwrap();
        let names: Vec<_> = builder.schema().fields().iter().map(|field| field.name().clone()).collect();
        assert_eq!(names, columns);
        let metadata = builder.metadata();
        assert_eq!((metadata.num_row_groups(), metadata.row_group(0).num_rows()), (2, 8_192));
        assert!(metadata.row_group(0).column(0).statistics().is_some(), "statistics on id");
        let pairs = metadata.file_metadata().key_value_metadata().unwrap();
        let fact = |key: &str| pairs.iter().find(|pair| pair.key == key).and_then(|pair| pair.value.clone());
        assert_eq!(fact("llink.schema_version").as_deref(), Some("1"));
        assert_eq!(fact("llink.stage_key").as_deref(), Some("0123abcd"));
        assert_eq!(fact("llink.role"), Some(shard.role.to_string()));
    }
}

#[tokio::test]
async fn the_sample_gives_as_many_instructions_of_the_wanted_kind_as_were_asked_for() {
    let store = Store::open("memory://wanted").unwrap();
    let mut spec = sample_spec(Corpus::Instructions, 2_000, 5);
    (spec.tasks, spec.rules.max_chars) = (vec!["translate".into()], 110);
    spec.rules.too_long = TooLong::Drop;
    let cleaned = clean(&store, &spec, "wanted.parquet").await.unwrap();
    assert_eq!((cleaned.counts["rows"], cleaned.counts["kept"]), (2_000, 2_000), "{:?}", cleaned.counts);
    // A request for an unknown task ends too.
    spec.tasks = vec!["sing".into()];
    let nothing = clean(&store, &spec, "nothing.parquet").await;
    assert!(nothing.is_err(), "{nothing:?}");
}

#[tokio::test]
async fn the_same_job_gives_the_same_bytes() {
    let mut runs = Vec::new();
    for name in ["memory://once", "memory://again"] {
        let store = Store::open(name).unwrap();
        let sources = [sample_spec(Corpus::Pairs, 3_000, 1), sample_spec(Corpus::Pairs, 3_000, 2)];
        let spec = split(Corpus::Pairs, 4_000, 500, 1_000);
        let stage = run_stage(&store, "out", &sources, &spec).await.unwrap();
        runs.push((stage.split.artifact, stage.split.shards, stage.shards));
    }
    assert_eq!(runs[0], runs[1]);
}

#[tokio::test]
async fn rows_keep_their_texts_ids_and_order() {
    let store = Store::open("memory://rows").unwrap();
    let sources = [sample_spec(Corpus::Pairs, 2_000, 1), sample_spec(Corpus::Pairs, 2_000, 2)];
    let spec = split(Corpus::Pairs, None, 1_000, 700);
    let stage = run_stage(&store, "out", &sources, &spec).await.unwrap();
    let mut found = Vec::new();
    for side in [Side::Holdout, Side::Train] {
        found.extend(pairs_of(&store, &stage, side).await);
    }
    assert_eq!(found.len() as u64, stage.split.counts["train"] + stage.split.counts["holdout"]);
    let keys: Vec<u64> = found.iter().map(|row| llink_datasets::text::comparison_key(&row.2)).collect();
    assert!(keys.is_sorted(), "rows are in the order of their split keys");
    let made: BTreeMap<String, String> =
        [1, 2].into_iter().flat_map(|seed| llink_quickstart::sample::pairs(2_000, seed)).collect();
    for (id, english, foreign) in &found {
        assert_eq!(made.get(english), Some(foreign));
        assert_eq!(*id, row_id(&[english.as_str(), foreign]));
    }
}

#[tokio::test]
async fn an_assignment_of_other_tables_is_refused() {
    let store = Store::open("memory://mixed-up").unwrap();
    let spec = split(Corpus::Pairs, 80, 20, 1_000);
    run_stage(&store, "out", &[sample_spec(Corpus::Pairs, 100, 1)], &spec).await.unwrap();
    clean(&store, &sample_spec(Corpus::Pairs, 3, 2), "short.parquet").await.unwrap();
    let write = |cleaned: &str, shard: u32| WriteSpec {
        corpus: Corpus::Pairs,
        cleaned: vec![cleaned.to_owned()],
        assignment: "out/assignment.parquet".into(),
        shard,
        path: "shard.parquet".into(),
        role: Role::Shard(Corpus::Pairs, Side::Train),
        stage_key: String::new(),
    };
    store.put("damaged.parquet", Bytes::from_static(b"PAR1 no PAR1")).await.unwrap();
    for (cleaned, shard, words) in [
        ("short.parquet", 0, ["short.parquet", "made from another table"]),
        ("out/cleaned/0.parquet", 9, ["out/assignment.parquet", "there is no shard 9"]),
        ("absent.parquet", 0, ["absent.parquet", "no such file"]),
        ("damaged.parquet", 0, ["damaged.parquet", "Parquet"]),
    ] {
        let text = write_shard(&write(cleaned, shard), &store, &silent).await.unwrap_err().to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
    }
}

const POLARS: &str = r#"
import glob, sys
import polars as pl
folder = sys.argv[1]
pairs = pl.scan_parquet(folder + "/out/pairs/*/*.parquet")
schema = dict(pairs.collect_schema())
assert schema["id"] == pl.UInt64, schema
assert schema["english"] == pl.String and schema["foreign"] == pl.String, schema
assert schema["foreign_chars"] == pl.UInt16, schema
frame = pairs.collect()
assert frame.height == int(sys.argv[2]), frame.height
assert (frame["foreign"].str.len_chars() == frame["foreign_chars"]).all()
assert frame["source"].cast(pl.String).unique().to_list() == ["sample"]
one = pairs.filter(pl.col("id") == frame["id"][7]).collect()
assert one.height == 1 and one["foreign"][0] == frame["foreign"][7]
vectors = pl.scan_parquet(folder + "/vectors.parquet")
schema = dict(vectors.collect_schema())
assert schema["vector"] in (pl.Array(pl.Float16, 4), pl.Array(pl.Float32, 4)), schema
frame = vectors.collect()
assert frame["vector"][2].to_list() == [8.0, 9.0, 10.0, 11.0], frame
print("polars", pl.__version__, schema["vector"])
"#;

/// This test runs where a Python has polars: `LLINK_PYTHON`, else `python3`.
#[tokio::test]
async fn polars_reads_shards_with_no_options() {
    let Some(python) = python_with(&["polars"]) else { return };
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap()).unwrap();
    let spec = split(Corpus::Pairs, 800, 100, 300);
    let stage = run_stage(&store, "out", &[sample_spec(Corpus::Pairs, 2_000, 1)], &spec).await.unwrap();
    let rows: u64 = stage.shards.iter().map(|shard| shard.rows).sum();
    let values = (0..40).map(|n| f16::from_f32(n as f32)).collect();
    let table = VectorTable { ids: (0..10).collect(), width: 4, values };
    store.put("vectors.parquet", write_vectors(&table, &BTreeMap::new()).unwrap()).await.unwrap();
    let output = Command::new(&python)
        .args(["-c", POLARS, folder.path().to_str().unwrap(), &rows.to_string()])
        .output()
        .unwrap();
    print!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
