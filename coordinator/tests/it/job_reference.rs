//! Checks that `docs/job-file.md` matches the job file's own types: the doc comment, the default and the bounds of each key.
//!
//! `LLINK_BLESS=1 cargo test --release -p llink-coord job_reference` writes the page again.

use std::fmt::Write as _;
use std::path::Path;

use llink_coord::job::{
    CleaningSection, CorpusSection, EvaluateSection, InstructionsSection, JudgeSection, SynthesizeSection,
    TrackSection, WorkersSection, parse,
};
use llink_proto::settings::{AlignSettings, EmbedSettings, InstructSettings, Key};
use serde_json::Value;

/// A table of the job file.
struct Section {
    name: &'static str,
    about: String,
    keys: Vec<Row>,
}

/// A key of a table: its name, its meaning, and its bounds, if there are any.
struct Row {
    name: String,
    meaning: String,
    bounds: String,
}

/// Returns a table that [`llink_proto::settings!`] declares.
macro_rules! declared {
    ($name:literal, $of:ty) => {
        Section { name: $name, about: plain(<$of>::ABOUT), keys: <$of>::KEYS.iter().map(Row::from).collect() }
    };
}

fn sections() -> [Section; 17] {
    [
        in_source("", "mod.rs", "JobFile"),
        declared!("corpus", CorpusSection),
        in_source("corpus.source", "source.rs", "SourceEntry"),
        declared!("cleaning", CleaningSection),
        declared!("instructions", InstructionsSection),
        declared!("synthesize", SynthesizeSection),
        in_source("models", "models.rs", "ModelsSection"),
        in_source("models.encoder", "models.rs", "EncoderModel"),
        in_source("models.decoder", "models.rs", "DecoderModel"),
        declared!("embed", EmbedSettings),
        declared!("align", AlignSettings),
        declared!("instruct", InstructSettings),
        declared!("evaluate", EvaluateSection),
        declared!("evaluate.judge", JudgeSection),
        in_source("export", "export.rs", "ExportSection"),
        declared!("track", TrackSection),
        declared!("workers", WorkersSection),
    ]
}

impl From<&Key> for Row {
    fn from(key: &Key) -> Self {
        Self {
            name: key.name.to_owned(),
            meaning: plain(key.meaning).replace('|', "\\|"),
            bounds: key.bounds.iter().map(ToString::to_string).collect(),
        }
    }
}

/// A job that names every table and has the required keys alone, so that each other key shows its default.
const EVERY_TABLE: &str = r#"
[corpus]
source = { url = "sample" }
[instructions]
source = "sample"
[synthesize]
url = "http://localhost:8000/v1"
model = "m"
[instruct]
[evaluate.judge]
url = "http://localhost:8000/v1"
model = "m"
[track]
"#;

const OPENING: &str = "\
# The job file

A job file is TOML. Only `[corpus]` must be given. A key that is not marked \"required\" may be left out, and then has its default. Where the default is empty, it stays unset. This page is made from the code by a test.

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
        "docs/job-file.md is out of date; LLINK_BLESS=1 cargo test --release -p llink-coord job_reference writes it anew"
    );
}

fn page() -> String {
    let job = parse("reference.toml", EVERY_TABLE).unwrap();
    let defaults = serde_json::to_value(job).unwrap();
    let required: Value = toml::from_str(EVERY_TABLE).unwrap();
    let mut page = OPENING.to_owned();
    for section in sections() {
        assert!(!section.keys.is_empty(), "[{}] has no key", section.name);
        let title = match section.name {
            "" => "Top level".to_owned(),
            name => format!("`[{name}]`"),
        };
        let bounded = section.keys.iter().any(|key| !key.bounds.is_empty());
        let head = match bounded {
            true => "| key | default | values | meaning |\n| --- | --- | --- | --- |",
            false => "| key | default | meaning |\n| --- | --- | --- |",
        };
        writeln!(page, "\n## {title}\n\n{}\n\n{head}", section.about).unwrap();
        let parts = section.name.split('.').filter(|part| !part.is_empty());
        let [values, given] =
            [&defaults, &required].map(|all| parts.clone().try_fold(all, |value, part| value.get(part)));
        for Row { name, meaning, bounds } in section.keys {
            let default = match given.and_then(|given| given.get(&name)) {
                Some(required) if !required.is_object() || name == "source" => "required".to_owned(),
                _ => values.and_then(|values| values.get(&name)).map_or_else(String::new, shown),
            };
            let bounds = if bounded { format!(" {bounds} |") } else { String::new() };
            writeln!(page, "| `{name}` | {default} |{bounds} {meaning} |").unwrap();
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

/// Returns the table of a struct in the source file `file`.
fn in_source(name: &'static str, file: &str, of: &str) -> Section {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/job").join(file);
    let source = std::fs::read_to_string(path).unwrap();
    let opening = format!("pub struct {of} {{");
    let lines: Vec<&str> = source.lines().collect();
    let at = lines.iter().position(|line| *line == opening).unwrap();
    let comment = lines[..at].iter().rev().skip_while(|line| line.starts_with("#["));
    let mut about: Vec<&str> = comment.map_while(|line| line.strip_prefix("///")).collect();
    about.reverse();
    let (mut keys, mut doc) = (Vec::new(), String::new());
    for line in lines[at + 1..].iter().take_while(|line| **line != "}").map(|line| line.trim()) {
        if let Some(text) = line.strip_prefix("///") {
            doc += text;
        } else if let Some((name, _)) = line.strip_prefix("pub ").and_then(|field| field.split_once(':')) {
            keys.push(Row { name: name.to_owned(), meaning: plain(&doc).replace('|', "\\|"), bounds: String::new() });
            doc.clear();
        }
    }
    Section { name, about: plain(&about.join("\n")), keys }
}

/// Returns a doc comment on one line, without rustdoc's links.
fn plain(doc: &str) -> String {
    let lines: Vec<&str> = doc.lines().map(str::trim).collect();
    lines.join(" ").trim().replace("[`", "`").replace("`]", "`")
}
