//! Models that lie elsewhere, brought to this machine.

use std::path::{Path, PathBuf};

use llink_datasets::store::{ObjectInfo, Store};
use tokio::runtime::Handle;

use super::weights::SINGLE;
use crate::{Error, Result};

/// The model of `store` as a folder: where it lies, for a local one; in the Hub's cache, for an `hf://` URL; else `target`, fetched
/// unless it is there. `check` is asked between files whether to go on.
///
/// # Errors
/// Those of the store, of the disk, and of `check`.
pub fn fetch(store: &Store, target: &Path, runtime: &Handle, check: &dyn Fn() -> Result<()>) -> Result<PathBuf> {
    if let Some(place) = in_place(store, runtime, check)? {
        return Ok(place);
    }
    if target.is_dir() {
        return Ok(target.into());
    }
    let failed = |path: &Path, source| Error::Io {
        path: path.display().to_string(),
        source,
    };
    let parent = target.parent().unwrap_or(target);
    std::fs::create_dir_all(parent).map_err(|e| failed(parent, e))?;
    let staging = tempfile::tempdir_in(parent).map_err(|e| failed(parent, e))?;
    for name in wanted(&runtime.block_on(store.list(""))?) {
        check()?;
        let content = runtime.block_on(store.get(name))?;
        let path = staging.path().join(name);
        let folder = path.parent().unwrap_or(parent);
        std::fs::create_dir_all(folder).map_err(|e| failed(folder, e))?;
        std::fs::write(&path, &content).map_err(|e| failed(&path, e))?;
    }
    match std::fs::rename(staging.path(), target) {
        Ok(()) => drop(staging.keep()),
        // Another process on this machine was faster; its copy is as good.
        Err(_) if target.is_dir() => {}
        Err(e) => return Err(failed(target, e)),
    }
    Ok(target.into())
}

/// The folder of a model that has a place of its own on this machine: a local one, or one of the Hub, whose files are brought
/// into its cache. `None` for one in an object store.
///
/// # Errors
/// As [`fetch`].
pub fn in_place(store: &Store, runtime: &Handle, check: &dyn Fn() -> Result<()>) -> Result<Option<PathBuf>> {
    if let Some(local) = store.local_path("") {
        return Ok(Some(local));
    }
    let Some(place) = runtime.block_on(store.folder())? else {
        return Ok(None);
    };
    for name in wanted(&runtime.block_on(store.list(""))?) {
        check()?;
        runtime.block_on(store.keep(name))?;
    }
    Ok(Some(place))
}

/// The files that a model is loaded from. Beside whole weights others are left: variants in other number formats.
fn wanted(objects: &[ObjectInfo]) -> impl Iterator<Item = &str> {
    let names = || objects.iter().map(|object| object.path.as_str());
    let whole = names().any(|name| name == SINGLE);
    names().filter(move |name| {
        let other = name.ends_with(".safetensors") && !name.contains('/') && *name != SINGLE;
        belongs(name) && !(whole && other)
    })
}

/// Whether a file of a repository or folder is read when its model is loaded: those at its top, and those of an encoder's
/// modules (`1_Pooling/config.json`).
pub(crate) fn belongs(path: &str) -> bool {
    let read = [".json", ".safetensors", ".jinja", ".gguf"]
        .iter()
        .any(|end| path.ends_with(end));
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let module = folder
        .split_once('_')
        .is_some_and(|(number, rest)| number.parse::<u32>().is_ok() && !rest.contains('/'));
    // The same weights once more, as their maker's own programs read them.
    read && (folder.is_empty() || module) && !name.starts_with("consolidated")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_models_own_files_are_fetched_and_no_others() {
        for path in [
            "config.json",
            "model-00001-of-00002.safetensors",
            "chat_template.jinja",
            "1_Pooling/config.json",
            "2_Dense/model.safetensors",
        ] {
            assert!(belongs(path), "{path}");
        }
        for path in [
            "README.md",
            "pytorch_model.bin",
            "consolidated.safetensors",
            "onnx/config.json",
            "checkpoint-500/model.safetensors",
            "1_Pooling/a/config.json",
            "openvino/model.safetensors",
        ] {
            assert!(!belongs(path), "{path}");
        }
        let objects = [
            "model.fp16.safetensors",
            "model.safetensors",
            "2_Dense/model.safetensors",
        ]
        .map(|path| ObjectInfo {
            path: path.into(),
            bytes: 1,
            modified_ms: 0,
            e_tag: None,
        });
        let fetched: Vec<&str> = wanted(&objects).collect();
        assert_eq!(fetched, ["model.safetensors", "2_Dense/model.safetensors"]);
        assert_eq!(wanted(&objects[..1]).count(), 1);
    }
}
