//! Parses a text to a [`JobFile`], with errors that name the line, the key and the nearest name.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{JobFile, JobFileError, Problem, check};

/// Reads and checks a job file. Only the errors use `file_name`.
/// Syntax errors, unknown or missing keys, wrong types and values out of range, each with its place.
pub fn parse(file_name: &str, text: &str) -> Result<JobFile, JobFileError> {
    let fail = |problems| JobFileError { file_name: file_name.into(), text: text.into(), problems };
    let document = DeTable::parse(text).map_err(|e| fail(vec![syntax_problem(&e)]))?;
    // The text is parsed once unchanged, so that faults have their place in it, and then with the recipe's defaults.
    let shape = |e: toml::de::Error| fail(vec![shape_problem(&document, &e)]);
    let given: JobFile = toml::from_str(text).map_err(shape)?;
    let job = given.recipe.complete(text).map_err(shape)?;
    let mut problems = check::problems(&job);
    if problems.is_empty() {
        return Ok(job);
    }
    for problem in &mut problems {
        problem.span = span_of(document.get_ref(), &problem.key);
    }
    problems.sort_by_key(|p| p.span.as_ref().map_or(usize::MAX, |s| s.start));
    Err(fail(problems))
}

fn syntax_problem(error: &toml::de::Error) -> Problem {
    Problem {
        key: String::new(),
        span: error.span(),
        what: format!("not valid TOML: {}", error.message().trim()),
        help: None,
    }
}

/// Converts an error of serde: an unknown key, a missing one, or a value of the wrong type.
fn shape_problem(document: &Spanned<DeTable<'_>>, error: &toml::de::Error) -> Problem {
    let message = error.message().trim();
    let key = error.span().map(|s| path_at(document.get_ref(), &s)).unwrap_or_default();
    if let Some(rest) = message.strip_prefix("unknown field ") {
        let mut names = backticked(rest);
        let unknown = if names.is_empty() { String::new() } else { names.remove(0) };
        let table = key.rsplit_once('.').map(|(table, _)| table);
        let place = table.map_or("at the top level".to_owned(), |t| format!("in [{t}]"));
        let nearest = nearest(&unknown, &names).map(|n| format!("did you mean `{n}`? ")).unwrap_or_default();
        return Problem {
            span: error.span(),
            what: format!("unknown key `{unknown}` {place}"),
            help: Some(format!("{nearest}expected one of: {}", names.join(", "))),
            key,
        };
    }
    if let Some(rest) = message.strip_prefix("missing field ") {
        let missing = backticked(rest).into_iter().next().unwrap_or_default();
        // For a missing top-level key, serde gives the span of the whole document, which is no useful place.
        let top_level = error.span().is_none_or(|s| s.start == 0) && !document.get_ref().contains_key(missing.as_str());
        let full = if key.is_empty() || top_level { missing.clone() } else { format!("{key}.{missing}") };
        let help = example_for(&full).map(|e| format!("expected: {e}"));
        let span = if top_level { None } else { error.span() };
        return Problem { span, what: format!("`{full}` is missing"), help, key: full };
    }
    let wrong = message.strip_prefix("invalid type: ").or(message.strip_prefix("invalid value: "));
    let what = match wrong.and_then(|wrong| wrong.split_once(", expected ")) {
        Some((given, expected)) => format!("{given}: expected {}", in_words(expected)),
        None => message.replacen("unknown variant", "unknown value", 1),
    };
    let candidates = backticked(message);
    let help = candidates
        .split_first()
        .and_then(|(given, known)| nearest(given, known).map(|n| format!("did you mean `{n}`?")));
    Problem { span: error.span(), what: format!("`{key}`: {what}"), help, key }
}

/// Returns what serde expects in words that do not take a knowledge of Rust.
fn in_words(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number of at least 0",
        "f32" | "f64" => "a number",
        _ => expected,
    }
}

fn example_for(key: &str) -> Option<&'static str> {
    match key {
        "corpus" => Some("[corpus]\n      source = \"sample\"   # or a path, a URL, or an array of them"),
        "corpus.source" | "instructions.source" => Some("source = \"sample\", a path, a URL, or an array of them"),
        _ => None,
    }
}

fn backticked(message: &str) -> Vec<String> {
    message.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Returns the known name that differs from `given` by a typing mistake.
fn nearest<'a>(given: &str, known: &'a [String]) -> Option<&'a str> {
    known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(given, name), name.as_str()))
        .filter(|(distance, name)| *distance <= 1 + name.len().max(given.len()) / 3)
        .min()
        .map(|(_, name)| name)
}

/// Returns the dotted path of the innermost key whose name or value covers `span`.
fn path_at(table: &DeTable<'_>, span: &Range<usize>) -> String {
    let covers = |s: Range<usize>| s.start <= span.start && span.end <= s.end;
    for (key, value) in table {
        if covers(key.span()) {
            return key.get_ref().to_string();
        }
        if let DeValue::Table(inner) = value.get_ref() {
            // The span of a table covers only its header or braces, and its entries may be outside. So the inner tables
            // come first.
            let path = path_at(inner, span);
            if !path.is_empty() {
                return format!("{}.{path}", key.get_ref());
            }
        }
        if let DeValue::Array(items) = value.get_ref() {
            let tables = items.iter().filter_map(|item| item.get_ref().as_table());
            if let Some(path) = tables.map(|inner| path_at(inner, span)).find(|path| !path.is_empty()) {
                return format!("{}.{path}", key.get_ref());
            }
        }
        if covers(value.span()) {
            return key.get_ref().to_string();
        }
    }
    String::new()
}

/// Returns the span of the value at the dotted `path`, or of the deepest existing part of the path if the value is a
/// default.
fn span_of(table: &DeTable<'_>, path: &str) -> Option<Range<usize>> {
    let (first, rest) = path.split_once('.').map_or((path, None), |(a, b)| (a, Some(b)));
    let (key, value) = table.iter().find(|(key, _)| key.get_ref().as_ref() == first)?;
    match (rest, value.get_ref()) {
        (Some(rest), DeValue::Table(inner)) => span_of(inner, rest).or(Some(key.span())),
        _ => Some(value.span()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse("job.toml", text).unwrap_err().to_string()
    }

    #[test]
    fn the_shortest_job_has_the_papers_numbers() {
        let job = parse("job.toml", "[corpus]\nsource = \"sample\"\n").unwrap();
        assert_eq!(job.corpus.train_pairs, 100_000);
        assert_eq!(job.corpus.holdout_pairs, 40_000);
        assert_eq!((job.align.steps, job.align.batch, job.align.queue), (20_000, 128, 32_768));
        assert_eq!(job.models.encoder.path, "tiny");
    }

    #[test]
    fn faults_are_placed_and_what_to_write_is_said() {
        let faulty = [
            "[corpus\nsource = 1\n",
            "name = \"x\"\n",
            "[corpus]\nsource = \"sample\"\ntrian_pairs = 3\n",
            "[corpus]\nsource = \"sample\"\n[alingn]\nsteps = 3\n",
            "[corpus]\nsource = \"sample\"\n[align]\nsteps = \"many\"\n",
            "[corpus]\nsource = \"sample\"\ntrain_pairs = -1\n",
            "[corpus]\nsource = \"sample\"\n[align]\nbatch = 1\ndropout = 1.5\n",
            "[corpus]\nsource = \"sample\"\n[align]\ndropout = \"low\"\n",
            "[corpus]\nsource = \"sample\"\ntoo_long = \"drpo\"\n",
            "[corpus]\nsource = 3\n",
            "[corpus]\nsource = [\"a\", { url = \"b\", fromat = \"tsv\" }]\n",
            "[corpus]\nsource = { url = \"b\", format = \"tvs\" }\n",
            "[corpus]\nsource = { english = \"b\" }\n",
            "[corpus]\nsource = \"a\"\nenglish_column = 0\n[cleaning]\nscript = \"Khmer\"\n",
        ];
        insta::assert_snapshot!(faulty.map(error).join("\n\n"));
    }

    #[test]
    fn sources_may_be_tables() {
        let job = parse(
            "job.toml",
            "[corpus]\nsource = [\"a.tsv\", { english = \"b.en.gz\", foreign = \"b.km.gz\" },\n  \
             { url = \"c\", format = \"jsonl\", compression = \"xz\", english_column = \"t.en\", foreign_column = \"t.km\" }]\n",
        )
        .unwrap();
        let files: Vec<_> = job.corpus.source.as_slice().iter().flat_map(|s| s.files()).collect();
        assert_eq!(files, ["a.tsv", "b.en.gz", "b.km.gz", "c"]);
    }
}
