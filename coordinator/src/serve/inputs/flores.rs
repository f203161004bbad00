//! Finds the two files of a FLORES folder, which has a file for each language.
//!
//! FLORES-200 has `devtest/khm_Khmr.devtest`, FLORES+ `devtest/devtest.khm_Khmr` or `devtest/khm_Khmr.parquet`.

use std::collections::BTreeMap;

use llink_datasets::shown::ShownUrl;
use llink_datasets::store::Store;
use llink_proto::Failure;

use super::super::engine::failure;
use super::{missing, of_key};
use crate::job::{FormatName, JobFile, SourceEntry, Sources};

/// The English language of a folder, unless the job names another.
const ENGLISH: &str = "eng_Latn";

/// Replaces each source in FLORES' layout by its two files.
pub(super) async fn find_files(file: &mut JobFile) -> Result<(), Failure> {
    let pairs = [("corpus.source", Some(&mut file.corpus.source)), ("evaluate.set", file.evaluate.set.as_mut())];
    for (key, sources) in pairs {
        for entry in sources.into_iter().flat_map(Sources::as_mut_slice) {
            if entry.format == Some(FormatName::Flores) {
                *entry = two_files(entry).await.map_err(|failure| of_key(key, &failure))?;
            }
        }
    }
    Ok(())
}

async fn two_files(entry: &SourceEntry) -> Result<SourceEntry, Failure> {
    let url = entry.name().trim_end_matches('/');
    let store = Store::open(url).map_err(|e| failure(&e))?;
    let objects = store.list("").await.map_err(|e| failure(&e))?;
    let paths: Vec<&str> = objects.iter().map(|object| object.path.as_str()).collect();
    let languages = languages(&paths);
    if languages.is_empty() {
        let folders: Vec<&str> =
            paths.iter().filter_map(|path| path.split_once('/')).map(|(folder, _)| folder).collect();
        return Err(missing(format!("{}: {}", ShownUrl::of(url), no_languages(folders))));
    }
    let file = |language: &str| match languages.get(language) {
        Some(name) => Ok(format!("{url}/{name}")),
        None => {
            let known: Vec<&str> = languages.keys().copied().collect();
            let known = known.join(", ");
            Err(missing(format!("{}: has no file of {language}; its languages are {known}", ShownUrl::of(url))))
        }
    };
    let english = file(entry.english_language.as_deref().unwrap_or(ENGLISH))?;
    let foreign = file(entry.foreign_language.as_deref().unwrap_or_default())?;
    let name = |ending: &str| english.ends_with(ending);
    let format = match () {
        () if name(".parquet") => FormatName::Parquet,
        () if name(".jsonl") => FormatName::Jsonl,
        () => FormatName::Moses,
    };
    Ok(SourceEntry { url: None, english: Some(english), foreign: Some(foreign), format: Some(format), ..entry.clone() })
}

fn no_languages(mut folders: Vec<&str>) -> String {
    folders.dedup();
    let advice = match folders.is_empty() {
        true => "name the folder of a split".to_owned(),
        false => format!("name one of its folders ({})", folders.join(", ")),
    };
    format!("has no file of a language, such as {ENGLISH}.devtest, devtest.{ENGLISH} or {ENGLISH}.parquet; {advice}")
}

/// Returns the file of each language, by the code in its name.
fn languages<'a>(paths: &[&'a str]) -> BTreeMap<&'a str, &'a str> {
    let files = paths.iter().filter(|path| !path.contains('/'));
    files.flat_map(|path| path.split('.').filter(|part| is_code(part)).map(move |code| (code, *path))).collect()
}

/// Returns whether a text is a language's ISO 639-3 code and its script's ISO 15924 code, such as `khm_Khmr`.
fn is_code(text: &str) -> bool {
    text.split_once('_').is_some_and(|(language, script)| {
        let lower = |text: &str| text.chars().all(|c| c.is_ascii_lowercase());
        let (first, rest) = script.split_at_checked(1).unwrap_or_default();
        language.len() == 3 && lower(language) && rest.len() >= 3 && first.chars().all(|c| c.is_ascii_uppercase())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(folder: &std::path::Path, language: &str) -> SourceEntry {
        SourceEntry {
            format: Some(FormatName::Flores),
            foreign_language: Some(language.into()),
            url: Some(folder.display().to_string()),
            ..SourceEntry::default()
        }
    }

    #[tokio::test]
    async fn the_files_of_a_split_are_found_by_their_languages() {
        for (split, suffix, format) in [
            ("flores200", ["", ".devtest"], FormatName::Moses),
            ("rc", ["devtest.", ""], FormatName::Moses),
            ("plus", ["", ".parquet"], FormatName::Parquet),
            ("lines", ["", ".jsonl"], FormatName::Jsonl),
        ] {
            let folder = tempfile::tempdir().unwrap();
            for language in ["eng_Latn", "khm_Khmr", "zho_Hans"] {
                let name = format!("{}{language}{}", suffix[0], suffix[1]);
                std::fs::write(folder.path().join(name), "x").unwrap();
            }
            let found = two_files(&entry(folder.path(), "khm_Khmr")).await.unwrap();
            let path =
                |code: &str| folder.path().join(format!("{}{code}{}", suffix[0], suffix[1])).display().to_string();
            assert_eq!(found.english, Some(path("eng_Latn")), "{split}");
            assert_eq!((found.foreign, found.format, found.url), (Some(path("khm_Khmr")), Some(format), None));
            let other = two_files(&entry(folder.path(), "khm_Latn")).await.unwrap_err().text;
            assert!(other.contains("no file of khm_Latn") && other.contains("eng_Latn, khm_Khmr, zho_Hans"), "{other}");
        }
    }

    #[tokio::test]
    async fn a_folder_above_the_splits_is_refused_with_their_names() {
        let folder = tempfile::tempdir().unwrap();
        for split in ["dev", "devtest"] {
            std::fs::create_dir(folder.path().join(split)).unwrap();
            std::fs::write(folder.path().join(split).join(format!("khm_Khmr.{split}")), "x").unwrap();
        }
        let text = two_files(&entry(folder.path(), "khm_Khmr")).await.unwrap_err().text;
        assert!(text.contains("(dev, devtest)"), "{text}");
    }
}
