//! Fetches models from object stores and the Hub to this machine.

use std::path::{Path, PathBuf};

use llink_datasets::store::{ObjectInfo, Store};
use tokio::runtime::Handle;

use super::gguf::is_gguf;
use super::weights::SINGLE;
use crate::{Error, Result};

/// The place of a model: a folder, or one GGUF file.
#[derive(Debug)]
pub struct ModelPlace {
    store: Store,
    /// The GGUF file's name in the store.
    file: Option<String>,
}

impl ModelPlace {
    /// Opens the place that a path or URL names.
    pub fn open(url: &str) -> Result<Self> {
        if !is_gguf(url) {
            return Ok(Self { store: Store::open(url)?, file: None });
        }
        let (store, name) = Store::open_object(url)?;
        Ok(Self { store, file: Some(name) })
    }

    /// Returns the folder or file if it is on this machine.
    pub fn local_path(&self) -> Option<PathBuf> {
        self.store.local_path(self.file.as_deref().unwrap_or_default())
    }

    /// Returns the path of a local model, or of a model from the Hub, whose files are downloaded into its cache.
    /// Returns `None` for a model in an object store.
    pub fn in_place(&self, runtime: &Handle, check: &dyn Fn() -> Result<()>) -> Result<Option<PathBuf>> {
        if let Some(local) = self.local_path() {
            return Ok(Some(local));
        }
        let Some(folder) = runtime.block_on(self.store.folder())? else {
            return Ok(None);
        };
        for name in self.files(runtime)? {
            check()?;
            runtime.block_on(self.store.keep(&name))?;
        }
        Ok(Some(self.within(&folder)))
    }

    /// Returns the model as a folder or file on this machine: in its own place, else in the folder `target`. If that
    /// folder does not exist, its files are fetched. `check` is called between files and may stop the fetching.
    ///
    /// # Errors
    /// Those of the store, of the disk, and of `check`.
    pub fn fetch(&self, target: &Path, runtime: &Handle, check: &dyn Fn() -> Result<()>) -> Result<PathBuf> {
        if let Some(place) = self.in_place(runtime, check)? {
            return Ok(place);
        }
        if target.is_dir() {
            return Ok(self.within(target));
        }
        let parent = target.parent().unwrap_or(target);
        std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
        let staging = tempfile::tempdir_in(parent).map_err(Error::io(parent))?;
        for name in self.files(runtime)? {
            check()?;
            let content = runtime.block_on(self.store.get(&name))?;
            write_below(staging.path(), &name, &content)?;
        }
        match std::fs::rename(staging.path(), target) {
            Ok(()) => drop(staging.keep()),
            // Another process on this machine was faster, and its copy is the same.
            Err(_) if target.is_dir() => {}
            Err(error) => return Err(Error::io(target)(error)),
        }
        Ok(self.within(target))
    }

    /// Returns the model's path if `folder` holds its files.
    fn within(&self, folder: &Path) -> PathBuf {
        self.file.as_ref().map_or_else(|| folder.into(), |file| folder.join(file))
    }

    fn files(&self, runtime: &Handle) -> Result<Vec<String>> {
        if let Some(file) = &self.file {
            return Ok(vec![file.clone()]);
        }
        let objects = runtime.block_on(self.store.list(""))?;
        Ok(wanted(&objects).map(str::to_owned).collect())
    }
}

/// Writes a file of a model below `dir`, and creates its folder.
pub(super) fn write_below(dir: &Path, name: &str, content: &[u8]) -> Result<()> {
    let path = dir.join(name);
    let folder = path.parent().unwrap_or(dir);
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    std::fs::write(&path, content).map_err(Error::io(&path))
}

/// Returns the files that a model is loaded from. If there are whole weights, variants in other number formats are left
/// out.
fn wanted(objects: &[ObjectInfo]) -> impl Iterator<Item = &str> {
    let names = || objects.iter().map(|object| object.path.as_str());
    let whole = names().any(|name| name == SINGLE);
    names().filter(move |name| {
        let other = name.ends_with(".safetensors") && !name.contains('/') && *name != SINGLE;
        belongs(name) && !(whole && other)
    })
}

/// Returns whether a file of a repository or folder is read when its model is loaded. These are files at the top and
/// those of an encoder's modules (`1_Pooling/config.json`).
pub(crate) fn belongs(path: &str) -> bool {
    let read = [".json", ".safetensors", ".jinja"].iter().any(|end| path.ends_with(end));
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let module =
        folder.split_once('_').is_some_and(|(number, rest)| number.parse::<u32>().is_ok() && !rest.contains('/'));
    // These files hold the same weights for their maker's own programs.
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
        let objects = ["model.fp16.safetensors", "model.safetensors", "2_Dense/model.safetensors"]
            .map(|path| ObjectInfo { path: path.into(), bytes: 1, modified_ms: 0, e_tag: None });
        let fetched: Vec<&str> = wanted(&objects).collect();
        assert_eq!(fetched, ["model.safetensors", "2_Dense/model.safetensors"]);
        assert_eq!(wanted(&objects[..1]).count(), 1);
    }
}
