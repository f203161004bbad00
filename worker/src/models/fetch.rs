//! Models that lie in an object store, brought to this machine.

use std::path::{Path, PathBuf};

use llink_datasets::store::Store;
use tokio::runtime::Handle;

use crate::{Error, Result};

/// The model of `store` as the folder `target`, fetched unless it is there. `check` is asked between files whether to go on.
///
/// # Errors
/// Those of the store, of the disk, and of `check`.
pub fn fetch(store: &Store, target: &Path, runtime: &Handle, check: &dyn Fn() -> Result<()>) -> Result<PathBuf> {
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
    for object in runtime.block_on(store.list(""))? {
        check()?;
        if !belongs(&object.path) {
            continue;
        }
        let content = runtime.block_on(store.get(&object.path))?;
        let path = staging.path().join(&object.path);
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
    use super::belongs;

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
    }
}
