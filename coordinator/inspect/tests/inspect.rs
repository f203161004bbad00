//! The program as a user runs it: what it prints of a shard, its answers to SQL, and its refusals.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use llink_datasets::role::{Corpus, Role, Side};
use llink_datasets::rows::InstructionExample;
use llink_datasets::shards::encode_instructions;

/// A folder with one shard of three examples.
fn shard() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let example = |task: &str, foreign: &str, answer: &str| InstructionExample {
        task: task.to_owned(),
        instruction: format!("{task} the text to English."),
        foreign: foreign.to_owned(),
        english_ref: answer.to_owned(),
        answer: answer.to_owned(),
        source: "sample".to_owned(),
    };
    let rows = [
        example("translate", "ក្មេងៗស្រឡាញ់ត្រី។", "The children love fish."),
        example("translate", "ឆ្កែឃើញឆ្មា។", "The dog sees the cat."),
        example("summarize", "ឆ្កែឃើញឆ្មា។", "A dog sees a cat."),
    ];
    let name = "00000.parquet";
    let bytes = encode_instructions(&rows, name, &Role::Shard(Corpus::Instructions, Side::Train), "key").unwrap();
    std::fs::write(dir.path().join(name), bytes).unwrap();
    dir
}

fn inspect(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llink-inspect"));
    command.current_dir(dir).args(args).output().unwrap()
}

fn printed(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    format!("exit code {}\n{out}{err}", output.status.code().unwrap())
}

#[test]
fn a_shard_is_described_with_its_schema_lengths_and_first_rows() {
    let dir = shard();
    insta::assert_snapshot!(printed(&inspect(dir.path(), &["00000.parquet", "--rows", "2"])));
}

#[test]
fn sql_is_answered_over_tables_named_by_role() {
    let dir = shard();
    let query = "select task, count(*) as n from instructions_train group by task order by task";
    insta::assert_snapshot!(printed(&inspect(dir.path(), &[".", "--sql", query])));
}

#[test]
fn a_wrong_table_and_an_empty_folder_are_refused_with_what_to_do() {
    let dir = shard();
    let wrong = inspect(dir.path(), &[".", "--sql", "select * from instructions_tain"]);
    insta::assert_snapshot!("a table that is not there", printed(&wrong));
    let empty = tempfile::tempdir().unwrap();
    insta::assert_snapshot!("an empty folder", printed(&inspect(empty.path(), &["."])));
}
