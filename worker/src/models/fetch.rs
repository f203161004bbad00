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
        let wanted = object.path.ends_with(".json") || object.path.ends_with(".safetensors");
        if !wanted || object.path.contains('/') {
            continue;
        }
        let content = runtime.block_on(store.get(&object.path))?;
        let path = staging.path().join(&object.path);
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
