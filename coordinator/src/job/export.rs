//! The description of the bundle (`[export]`).

use llink_proto::settings::Expect;
use serde::{Deserialize, Serialize};

use super::{JobFile, check, is_gguf};

/// The exported bundle (`[export]`): the names in its model card, which are for people and for the hub, and what else it holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExportSection {
    /// The foreign language, such as `km`. Absent: taken from the corpus or its script.
    pub language: Option<String>,
    /// The encoder's name for people, such as `FacebookAI/xlm-roberta-base`. Absent: the name of its folder.
    pub encoder: Option<String>,
    /// The decoder's name for people, such as `meta-llama/Llama-3.2-1B-Instruct`. Absent: the name of its folder.
    pub decoder: Option<String>,
    /// The license of the bundle, as the hub writes it. Absent: none is named.
    pub license: Option<String>,
    /// Whether the bundle also holds `merged/`: the decoder with the adapter folded in, as a folder for Transformers
    /// and vLLM. It is as large as the decoder. Absent: `false`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub merged: bool,
}

/// The usual language of a script.
const LANGUAGES: [(&str, &str); 12] = [
    ("Khmr", "km"),
    ("Laoo", "lo"),
    ("Mymr", "my"),
    ("Thai", "th"),
    ("Tibt", "bo"),
    ("Ethi", "am"),
    ("Geor", "ka"),
    ("Armn", "hy"),
    ("Sinh", "si"),
    ("Taml", "ta"),
    ("Telu", "te"),
    ("Mlym", "ml"),
];

impl ExportSection {
    /// Returns the foreign language, if it is known.
    pub fn language_of(job: &JobFile) -> Option<&str> {
        let by_script = || {
            let script = job.cleaning.script.as_deref()?;
            LANGUAGES.iter().find(|(code, _)| *code == script).map(|(_, name)| *name)
        };
        let given = job.export.language.as_deref();
        given
            .or(job.corpus.foreign_language.as_deref())
            .or_else(by_script)
            .or_else(|| job.corpus.source.has_sample().then_some("km"))
    }
}

/// Returns the name of a model for people: the last part of its path, or the hub's name if the source is an `hf://` URL
/// or in the hub's cache.
pub fn model_name(source: &str) -> String {
    let hub = source.strip_prefix("hf://").map(|rest| rest.strip_prefix("models/").unwrap_or(rest));
    if let Some((owner, rest)) = hub.and_then(|rest| rest.split_once('/')) {
        let name = rest.split(['@', '/']).next().unwrap_or(rest);
        return format!("{owner}/{name}");
    }
    let mut parts = source.rsplit('/').filter(|part| !part.is_empty());
    let cached =
        source.split('/').find_map(|part| part.strip_prefix("models--")).and_then(|name| name.split_once("--"));
    match cached {
        Some((owner, name)) => format!("{owner}/{name}"),
        None => parts.next().unwrap_or(source).to_owned(),
    }
}

/// Reports invalid values.
pub(super) fn problems(job: &JobFile, expect: Expect<'_>) {
    let can_merge = job.instruct.is_some() && !is_gguf(&job.models.decoder.path);
    let expected = "`false`, or an [instruct] section and a decoder that is a folder and no GGUF file";
    expect(can_merge || !job.export.merged, "export.merged", &"true", expected);
    for (key, value) in [
        ("export.language", &job.export.language),
        ("export.encoder", &job.export.encoder),
        ("export.decoder", &job.export.decoder),
        ("export.license", &job.export.license),
    ] {
        check::name(value, key, expect);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_named_as_people_call_them() {
        for (source, name) in [
            ("/models/xlm-roberta-base/", "xlm-roberta-base"),
            ("s3://bucket/Llama-3.2-1B-Instruct", "Llama-3.2-1B-Instruct"),
            (
                "/root/.cache/huggingface/hub/models--meta-llama--Llama-3.2-1B-Instruct/snapshots/9213176",
                "meta-llama/Llama-3.2-1B-Instruct",
            ),
            ("hf://meta-llama/Llama-3.2-1B@9213176", "meta-llama/Llama-3.2-1B"),
            ("tiny", "tiny"),
        ] {
            assert_eq!(model_name(source), name);
        }
    }

    #[test]
    fn the_language_is_what_the_job_says_of_it() {
        let job = |text: &str| crate::job::parse("job.toml", text).unwrap();
        let language = |text: &str| ExportSection::language_of(&job(text)).map(str::to_owned);
        let corpus = "[corpus]\nsource = \"/a.tsv\"\n";
        assert_eq!(language(corpus), None);
        assert_eq!(language("[corpus]\nsource = \"sample\"\n").as_deref(), Some("km"));
        assert_eq!(language(&format!("{corpus}[cleaning]\nscript = \"Laoo\"\n")).as_deref(), Some("lo"));
        assert_eq!(
            language(&format!("{corpus}[cleaning]\nscript = \"Laoo\"\n[export]\nlanguage = \"kmk\"\n")).as_deref(),
            Some("kmk")
        );
    }
}
