//! The check of a job's models before its first stage.

use std::path::Path;

use llink_datasets::store::{ObjectInfo, Store};
use llink_proto::{Failure, ModelRole};

use super::super::engine::failure;
use super::{missing, stamp};
use crate::job::ModelsSection;

/// Returns a stamp of the model's files.
/// An error lists every problem of the model in one text, with what to do.
pub(super) async fn model_stamp(
    models: &ModelsSection,
    role: ModelRole,
    url: &str,
    base: &Path,
) -> Result<String, Failure> {
    if let Some(id) = on_the_hubs_site(url) {
        return Err(missing(format!("{url} is a web page, not a folder: {}", how_to_fetch(&id))));
    }
    let store = Store::open(url).map_err(|e| failure(&e))?;
    let objects = store.list("").await.map_err(|e| failure(&e))?;
    if objects.is_empty() {
        let advice = hub_id(url, base).map_or_else(String::new, |id| {
            format!(". If {id} is a model of the Hugging Face Hub, {}", how_to_fetch(&id))
        });
        return Err(missing(format!("{url}: no such folder, or nothing in it{advice}")));
    }
    let problems = problems(&store, models, role).await?;
    match problems.as_slice() {
        [] => Ok(stamp_of(&objects)),
        [problem] => Err(missing(format!("{url} can't be used: {problem}"))),
        all => Err(missing(format!("{url} can't be used:\n  - {}", all.join("\n  - ")))),
    }
}

fn stamp_of(objects: &[ObjectInfo]) -> String {
    let read = |o: &&ObjectInfo| [".json", ".safetensors", ".jinja", ".gguf"].iter().any(|end| o.path.ends_with(end));
    let stamps: Vec<String> = objects.iter().filter(read).map(|o| format!("{} {}", o.path, stamp(o))).collect();
    stamps.join("; ")
}

#[cfg(feature = "embedded")]
async fn problems(store: &Store, models: &ModelsSection, role: ModelRole) -> Result<Vec<String>, Failure> {
    use llink_worker::models::{Pooling, ReadingWishes, check};

    use crate::job::PoolingName;

    let encoder = &models.encoder;
    let wishes = ReadingWishes {
        pooling: encoder.pooling.map(|pooling| match pooling {
            PoolingName::Mean => Pooling::Mean,
            PoolingName::Cls => Pooling::Cls,
        }),
        normalize: encoder.normalize,
        prefix: encoder.prefix.clone(),
    };
    check(store, role, &wishes)
        .await
        .map_err(|error| Failure { kind: llink_proto::FailureKind::Input.into(), text: error.to_string() })
}

/// Without the worker's code, this program leaves the check to the worker that runs stage `models`.
#[cfg(not(feature = "embedded"))]
async fn problems(_: &Store, _: &ModelsSection, _: ModelRole) -> Result<Vec<String>, Failure> {
    Ok(Vec::new())
}

/// Returns the Hub's name `owner/name` that a path to nowhere may have meant.
fn hub_id(url: &str, base: &Path) -> Option<String> {
    let relative = Path::new(url).strip_prefix(base).ok()?.to_str()?;
    let (owner, name) = relative.split_once('/')?;
    let plain = |part: &str| {
        let mut letters = part.chars();
        letters.next().is_some_and(|c| c.is_ascii_alphanumeric())
            && letters.all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    (plain(owner) && plain(name)).then(|| relative.to_owned())
}

/// Returns the Hub's name of the model whose web page this is.
fn on_the_hubs_site(url: &str) -> Option<String> {
    let (_, path) = ["https://huggingface.co/", "https://hf.co/", "http://huggingface.co/"]
        .iter()
        .find_map(|site| url.split_once(site).filter(|(before, _)| before.is_empty()))?;
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    Some(format!("{}/{}", parts.next()?, parts.next()?))
}

fn how_to_fetch(id: &str) -> String {
    format!("write \"hf://{id}\", which is downloaded")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hubs_name_is_told_from_a_path() {
        let base = Path::new("/jobs/khmer");
        let of = |path: &str| hub_id(&format!("/jobs/khmer/{path}"), base);
        assert_eq!(of("intfloat/multilingual-e5-small").as_deref(), Some("intfloat/multilingual-e5-small"));
        for path in ["e5", "models/e5/x", ".cache/e5", "my models/e5"] {
            assert_eq!(of(path), None, "{path}");
        }
        assert_eq!(hub_id("/models/e5", base), None);
        let page = "https://huggingface.co/intfloat/multilingual-e5-small/tree/main";
        assert_eq!(on_the_hubs_site(page).as_deref(), Some("intfloat/multilingual-e5-small"));
        assert_eq!(on_the_hubs_site("https://example.com/a/b"), None);
    }
}
