//! Finds values that parse but are invalid.

use llink_datasets::script::WritingSystem;
use llink_proto::settings::{Expect, fault};

use super::{CleaningSection, ColumnName, FormatName, JobFile, Problem, Sources};

/// Returns every value out of range, by its key. The parser fills in the places.
pub(super) fn problems(job: &JobFile) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut expect = |holds: bool, key: &str, given: &dyn std::fmt::Display, expected: &str| {
        if !holds {
            found.push(Problem { key: key.into(), span: None, what: fault(key, given, expected), help: None });
        }
    };
    let name_ok =
        !job.name.is_empty() && job.name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.');
    expect(name_ok, "name", &format!("{:?}", job.name), "letters, digits, `-`, `_` or `.`");
    expect(
        !job.output.is_empty() && !job.output.starts_with("hf://"),
        "output",
        &format!("{:?}", job.output),
        "a folder or an object-store URL",
    );

    corpus(job, &mut expect);
    cleaning(&job.cleaning, &mut expect);
    if let Some(synthesize) = &job.synthesize {
        super::synthesize::problems(synthesize, &mut expect);
    }
    if let Some(i) = &job.instructions {
        expect(!i.source.as_slice().is_empty(), "instructions.source", &"empty", "at least one source");
        sources(&i.source, "instructions.source", &mut expect);
        i.check_bounds(&mut expect);
        expect(i.min_chars <= i.max_chars, "instructions.min_chars", &i.min_chars, "at most `instructions.max_chars`");
        let sized = i.train > 0 || !i.source.has_sample();
        expect(sized, "instructions.train", &i.train, "how many sample instructions to make");
    }
    super::models::problems(job, &mut expect);
    job.embed.check(&mut expect);
    job.align.check(&mut expect);
    let batch = u64::from(job.align.batch);
    let batch_fits = job.corpus.train_pairs == 0 || batch <= job.corpus.train_pairs;
    expect(batch_fits, "align.batch", &batch, "at most `corpus.train_pairs`");
    if let Some(instruct) = &job.instruct {
        let taught = job.instructions.is_some() || job.synthesize.is_some();
        let expected = "an [instructions] section with what it trains on";
        expect(taught, "instruct", &"given", expected);
        instruct.check(&mut expect);
    }
    super::export::problems(job, &mut expect);
    super::judge::problems(job, &mut expect);
    super::track::problems(job, &mut expect);
    job.evaluate.check_bounds(&mut expect);
    evaluation_set(job, &mut expect);
    job.workers.check_bounds(&mut expect);
    let instruct = job.instruct.as_ref().map_or(1, |instruct| instruct.min_ranks);
    let fewest = instruct.max(job.align.min_ranks);
    let at_most = job.workers.at_most.unwrap_or(fewest);
    let expected = "0 for any number, or at least the `min_ranks` of `align` and `instruct`";
    expect(at_most >= fewest, "workers.at_most", &at_most, expected);
    found
}

fn corpus(job: &JobFile, expect: Expect<'_>) {
    let c = &job.corpus;
    expect(!c.source.as_slice().is_empty(), "corpus.source", &"empty", "at least one source");
    sources(&c.source, "corpus.source", expect);
    let expected = "a format of files; a folder of FLORES has it in its own table, { url = …, format = \"flores\", … }";
    expect(c.format != Some(FormatName::Flores), "corpus.format", &"flores", expected);
    column(&c.english_column, "corpus.english_column", expect);
    column(&c.foreign_column, "corpus.foreign_column", expect);
    if let (Some(english), Some(foreign)) = (&c.english_column, &c.foreign_column) {
        let differ = english != foreign;
        expect(differ, "corpus.foreign_column", foreign, "another column than `corpus.english_column`");
    }
    c.check_bounds(expect);
    expect(c.min_chars <= c.max_chars, "corpus.min_chars", &c.min_chars, "at most `corpus.max_chars`");
    let sample_sized = c.train_pairs > 0 || !c.source.has_sample();
    expect(sample_sized, "corpus.train_pairs", &c.train_pairs, "how many pairs of the sample corpus to make");
}

fn evaluation_set(job: &JobFile, expect: Expect<'_>) {
    let Some(set) = &job.evaluate.set else { return };
    sources(set, "evaluate.set", expect);
    let is_outside = !set.as_slice().is_empty() && !set.has_sample();
    expect(is_outside, "evaluate.set", &"no file", "at least one file");
    let answers = job.instruct.is_some() && job.evaluate.answers > 0;
    let expected = "an [instruct] section, and `evaluate.answers` above 0: answers are what is scored";
    expect(answers, "evaluate.set", &"given", expected);
}

fn sources(sources: &Sources, key: &str, expect: Expect<'_>) {
    for entry in sources.as_slice() {
        if let Some(expected) = entry.fault() {
            let given = match entry.name() {
                "" => "without a file".to_owned(),
                name => format!("{name:?}"),
            };
            expect(false, key, &given, expected);
        }
        column(&entry.english_column, key, expect);
        column(&entry.foreign_column, key, expect);
    }
}

fn column(column: &Option<ColumnName>, key: &str, expect: Expect<'_>) {
    if let Some(column) = column {
        let counted = *column != ColumnName::Number(0) && *column != ColumnName::Name(String::new());
        expect(counted, key, column, "a column's number, from 1, or its name");
    }
}

/// Refuses a URL that is not of HTTP.
pub(super) fn http(url: &str, key: &str, expect: Expect<'_>, expected: &str) {
    let is_http = url.starts_with("http://") || url.starts_with("https://");
    expect(is_http, key, &format!("{url:?}"), expected);
}

/// Refuses a name for people that is empty or has several lines.
pub(super) fn name(name: &Option<String>, key: &str, expect: Expect<'_>) {
    if let Some(name) = name {
        let one_line = !name.trim().is_empty() && !name.contains(char::is_control);
        expect(one_line, key, &format!("{name:?}"), "a name");
    }
}

fn cleaning(c: &CleaningSection, expect: Expect<'_>) {
    let is_script = |code: &str| code.parse::<WritingSystem>().is_ok();
    let expected = "an ISO 15924 code of a script, such as Khmr, Laoo or Latn";
    let script = c.script.as_deref();
    expect(script.is_none_or(is_script), "cleaning.script", &format!("{:?}", script.unwrap_or_default()), expected);
    expect(is_script(&c.english_script), "cleaning.english_script", &format!("{:?}", c.english_script), expected);
    c.check_bounds(expect);
}
