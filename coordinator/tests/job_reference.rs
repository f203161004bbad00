//! Checks that `docs/job-file.md` matches the job file's own types: the doc comment and the default of each key.
//!
//! `LLINK_BLESS=1 cargo test --release -p llink-coord --test job_reference` writes the page again.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::path::Path;

use llink_coord::job::parse;
use serde_json::Value;

/// A table of the job file: its name, its source file, and the struct with its keys.
struct Section {
    name: &'static str,
    file: &'static str,
    of: &'static str,
}

const SECTIONS: [Section; 16] = [
    section("", "mod.rs", "JobFile"),
    section("corpus", "mod.rs", "CorpusSection"),
    section("corpus.source", "source.rs", "SourceEntry"),
    section("cleaning", "cleaning.rs", "CleaningSection"),
    section("instructions", "mod.rs", "InstructionsSection"),
    section("synthesize", "synthesize.rs", "SynthesizeSection"),
    section("models", "models.rs", "ModelsSection"),
    section("models.encoder", "models.rs", "EncoderModel"),
    section("models.decoder", "models.rs", "DecoderModel"),
    section("embed", "mod.rs", "EmbedSection"),
    section("align", "mod.rs", "AlignSection"),
    section("instruct", "instruct.rs", "InstructSection"),
    section("evaluate", "mod.rs", "EvaluateSection"),
    section("evaluate.judge", "judge.rs", "JudgeSection"),
    section("export", "export.rs", "ExportSection"),
    section("workers", "mod.rs", "WorkersSection"),
];

const fn section(name: &'static str, file: &'static str, of: &'static str) -> Section {
    Section { name, file, of }
}

/// A job that names every table, so that each optional key shows its default.
const EVERY_TABLE: &str = r#"
[corpus]
source = "sample"
[instructions]
source = "sample"
[synthesize]
url = "http://localhost:8000/v1"
model = "m"
[instruct]
[evaluate.judge]
url = "http://localhost:8000/v1"
model = "m"
"#;

const OPENING: &str = "\
# The job file

A job file is TOML. Only `[corpus]` must be given, and every other key has a default. This page is made from the code by a test.

A wrong key or value is shown with its line, what was expected and the nearest name, and nothing is started. Relative paths belong to
the job file's folder. `\"\"` and an absent value stand for \"not given\".
";

#[test]
fn the_reference_names_every_key_with_its_default() {
    let page = page();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/job-file.md");
    if std::env::var_os("LLINK_BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == page,
        "docs/job-file.md is out of date; LLINK_BLESS=1 cargo test --release -p llink-coord --test job_reference writes it anew"
    );
}

fn page() -> String {
    let job = parse("reference.toml", EVERY_TABLE).unwrap();
    let defaults = serde_json::to_value(job).unwrap();
    let mut page = OPENING.to_owned();
    for section in &SECTIONS {
        let keys = keys(section);
        assert!(!keys.is_empty(), "{} has no key", section.of);
        let title = match section.name {
            "" => "Top level".to_owned(),
            name => format!("`[{name}]`"),
        };
        let about = description(section);
        write!(
            page,
            "\n## {title}\n\n{about}\n\n| key | default | meaning |\n| --- | --- | --- |\n"
        )
        .unwrap();
        let mut parts = section.name.split('.').filter(|part| !part.is_empty());
        let values = parts.try_fold(&defaults, |value, part| value.get(part));
        for (key, doc) in keys {
            let default = values
                .and_then(|values| values.get(&key))
                .map_or_else(String::new, shown);
            writeln!(page, "| `{key}` | {default} | {doc} |").unwrap();
        }
    }
    page
}

/// Formats a default as TOML. It is empty for a table, which has its own section.
fn shown(value: &Value) -> String {
    match value {
        Value::Object(_) | Value::Null => String::new(),
        value => format!("`{value}`"),
    }
}

fn source(section: &Section) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/job").join(section.file);
    std::fs::read_to_string(path).unwrap()
}

/// Returns the doc comment of the section's struct.
fn description(section: &Section) -> String {
    let source = source(section);
    let opening = format!("pub struct {} {{", section.of);
    let before: Vec<&str> = source.lines().take_while(|line| *line != opening).collect();
    let comment = before.iter().rev().skip_while(|line| line.starts_with("#["));
    let mut lines: Vec<&str> = comment
        .map_while(|line| line.strip_prefix("///"))
        .map(str::trim)
        .collect();
    lines.reverse();
    plain(&lines.join(" "))
}

/// Returns the section's keys in order, each with its doc comment on one line.
fn keys(section: &Section) -> Vec<(String, String)> {
    let source = source(section);
    let opening = format!("pub struct {} {{", section.of);
    let body = source.lines().skip_while(|line| *line != opening).skip(1);
    let (mut found, mut doc) = (Vec::new(), Vec::new());
    for line in body.take_while(|line| *line != "}").map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            doc.push(text.trim().to_owned());
        } else if let Some((name, _)) = line.strip_prefix("pub ").and_then(|field| field.split_once(':')) {
            found.push((name.to_owned(), plain(&doc.join(" ")).replace('|', "\\|")));
            doc.clear();
        }
    }
    found
}

/// Returns a doc comment without rustdoc's links.
fn plain(doc: &str) -> String {
    doc.replace("[`", "`").replace("`]", "`")
}
