//! Limits on what a worker may send, because its texts are stored and shown to people. Long explanations are cut and
//! say so. A result with more names or files than any task has is refused.

use llink_datasets::shown::redacted;
use llink_proto::{Failure, HeartbeatRequest, RegisterRequest, TaskResult, shown};

/// The most bytes of a failure's text, which is enough for the last lines of every rank.
pub(super) const FAILURE_BYTES: usize = 16 << 10;
const WARNING_BYTES: usize = 2 << 10;
const WARNINGS: usize = 100;
/// The most bytes of the name of a figure, a count or a fact, and of a label.
const NAME_BYTES: usize = 200;
const NAMES: usize = 10_000;
/// The most bytes of a path, an address or a fact's value.
const VALUE_BYTES: usize = 4 << 10;
const ARTIFACTS: usize = 200_000;
const METADATA: usize = 64;

pub(super) fn failure(failure: Failure) -> Failure {
    Failure { text: cut(failure.text, FAILURE_BYTES), ..failure }
}

/// Cuts a result's warnings to the limits. A result with another part over its limit is refused.
pub(super) fn result(mut result: TaskResult) -> Result<TaskResult, String> {
    let more = result.warnings.len().saturating_sub(WARNINGS);
    result.warnings.truncate(WARNINGS);
    result.warnings = result.warnings.into_iter().map(|text| cut(text, WARNING_BYTES)).collect();
    if more > 0 {
        result.warnings.push(format!("{more} more warnings were left out"));
    }
    names("figures", result.figures.keys())?;
    names("counts", result.counts.keys())?;
    names("facts", result.facts.keys())?;
    fits("a fact", result.facts.values(), VALUE_BYTES)?;
    if result.artifacts.len() > ARTIFACTS {
        return Err(format!("{} artifacts, at most {ARTIFACTS} are accepted", result.artifacts.len()));
    }
    for artifact in &result.artifacts {
        fits("the path of an artifact", [&artifact.path], VALUE_BYTES)?;
        fits("the role or hash of an artifact", [&artifact.role, &artifact.sha256], NAME_BYTES)?;
        if artifact.metadata.len() > METADATA {
            return Err(format!("an artifact with {} entries of metadata", artifact.metadata.len()));
        }
        let metadata = artifact.metadata.iter().flat_map(|(key, value)| [key, value]);
        fits("metadata of an artifact", metadata, VALUE_BYTES)?;
    }
    Ok(result)
}

pub(super) fn registration(mut info: RegisterRequest) -> RegisterRequest {
    info.host = cut(info.host, NAME_BYTES);
    if let Some(device) = &mut info.device {
        device.kind = cut(std::mem::take(&mut device.kind), NAME_BYTES);
        device.name = cut(std::mem::take(&mut device.name), NAME_BYTES);
    }
    info
}

pub(super) fn progress(request: &mut HeartbeatRequest) -> Result<(), String> {
    for running in &mut request.running {
        names("figures", running.figures.keys())?;
        running.place = cut(std::mem::take(&mut running.place), VALUE_BYTES);
    }
    Ok(())
}

pub(super) fn address(address: &str) -> Result<(), String> {
    fits("an address", [address], VALUE_BYTES)
}

/// Returns whether a name can be part of an id and of a log line.
pub(super) fn is_worker_name(name: &str) -> bool {
    name.len() <= 100 && !name.contains(|c: char| shown::acts(c) || c.is_whitespace())
}

fn cut(text: String, most: usize) -> String {
    shown::bounded(&redacted(&text), most).into_owned()
}

fn names<'a>(what: &str, names: impl ExactSizeIterator<Item = &'a String>) -> Result<(), String> {
    match names.len() {
        count if count > NAMES => Err(format!("{count} {what}, at most {NAMES} are accepted")),
        _ => fits(&format!("the name of {what}"), names, NAME_BYTES),
    }
}

fn fits(what: &str, texts: impl IntoIterator<Item = impl AsRef<str>>, most: usize) -> Result<(), String> {
    match texts.into_iter().find(|text| text.as_ref().len() > most) {
        None => Ok(()),
        Some(text) => Err(format!("{what} has {} bytes, at most {most} are accepted", text.as_ref().len())),
    }
}

#[cfg(test)]
mod tests {
    use llink_proto::Artifact;

    use super::*;

    #[test]
    fn explanations_are_cut_and_say_so() {
        let long = failure(Failure { kind: 1, text: "x".repeat(60 << 20) });
        assert!(long.text.len() < FAILURE_BYTES + 100, "{}", long.text.len());
        assert!(long.text.ends_with("more bytes were cut]"));
        let kept = result(TaskResult { warnings: vec!["y".repeat(1 << 14); 1000], ..TaskResult::default() });
        let warnings = kept.unwrap().warnings;
        assert_eq!((warnings.len(), warnings.last().unwrap().as_str()), (101, "900 more warnings were left out"));
        assert!(warnings.iter().map(String::len).sum::<usize>() < 300 << 10);
    }

    #[test]
    fn a_result_that_no_task_has_is_refused() {
        let long = || "n".repeat(NAME_BYTES + 1);
        let mut figures = TaskResult::default();
        figures.figures.insert(long(), 1.0);
        let mut facts = TaskResult::default();
        facts.facts.insert("f".into(), "v".repeat(VALUE_BYTES + 1));
        let mut counts = TaskResult::default();
        counts.counts.extend((0..=NAMES).map(|n| (n.to_string(), 1)));
        let artifact = Artifact { path: "p".repeat(VALUE_BYTES + 1), ..Artifact::default() };
        let path = TaskResult { artifacts: vec![artifact], ..TaskResult::default() };
        for (wrong, word) in [(figures, "figures"), (facts, "fact"), (counts, "10001 counts"), (path, "path")] {
            let said = result(wrong).unwrap_err();
            assert!(said.contains(word), "{said}");
        }
        assert!(result(TaskResult::default()).is_ok());
        assert!(is_worker_name("w-1") && !is_worker_name("a\u{202e}b") && !is_worker_name("a\u{1b}b"));
    }
}
