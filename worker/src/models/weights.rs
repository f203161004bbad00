//! Tensors by name from memory-mapped safetensors: one `model.safetensors`, or the shards that
//! `model.safetensors.index.json` lists.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::safetensors::{Load, MmapedSafetensors};
use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use crate::{Error, Result};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A model folder's weights, read tensor by tensor and converted to one compute dtype on one device.
pub struct Weights {
    dir: String,
    files: MmapedSafetensors,
    prefixes: &'static [&'static str],
    device: Device,
    dtype: DType,
}

impl Weights {
    /// Maps the weight files of `dir`. A tensor is looked up under each of `prefixes` in turn.
    ///
    /// # Errors
    /// [`Error::Model`] when there is no weight file, a listed shard is missing, or a file is damaged.
    pub fn open(
        dir: &Path,
        prefixes: &'static [&'static str],
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        let paths = weight_files(dir)?;
        for path in &paths {
            // Mapped one by one first, so that a damaged shard is refused by its own name.
            // SAFETY: the files are read-only inputs of a task; nothing writes to them while they are mapped.
            unsafe { MmapedSafetensors::new(path) }
                .map_err(|error| refuse(path, error.to_string()))?;
        }
        // SAFETY: as above.
        let files = unsafe { MmapedSafetensors::multi(&paths) }?;
        Ok(Self {
            dir: dir.display().to_string(),
            files,
            prefixes,
            device: device.clone(),
            dtype,
        })
    }

    /// The tensor `name`, in the compute dtype, on the device.
    ///
    /// # Errors
    /// [`Error::Model`] with the tensor's name when it is missing, has another shape, or is not f32, bf16 or f16.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let Some(view) = self
            .prefixes
            .iter()
            .find_map(|prefix| self.files.get(&format!("{prefix}{name}")).ok())
        else {
            return Err(self.refuse(format!(
                "tensor {name} is missing (expected shape {shape:?})"
            )));
        };
        if view.shape() != shape {
            let found = view.shape();
            return Err(self.refuse(format!(
                "tensor {name} has shape {found:?}, config.json says {shape:?}"
            )));
        }
        match DType::try_from(view.dtype()) {
            Ok(DType::F32 | DType::BF16 | DType::F16) => {}
            _ => {
                let found = view.dtype();
                return Err(self.refuse(format!(
                    "tensor {name} is {found:?}; supported are F32, BF16 and F16"
                )));
            }
        }
        // The file's own dtype travels to the device, where it is converted.
        Ok(view.load(&self.device)?.to_dtype(self.dtype)?)
    }

    fn refuse(&self, reason: String) -> Error {
        Error::Model {
            path: self.dir.clone(),
            reason,
        }
    }
}

/// The weight files of a model folder, sorted by name: the single file, or the shards that the index lists.
///
/// # Errors
/// [`Error::Model`] when there is neither, or a shard that the index lists is missing.
pub fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let single = dir.join(SINGLE);
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index_path = dir.join(INDEX);
    if !index_path.is_file() {
        return Err(refuse(dir, format!("holds neither {SINGLE} nor {INDEX}")));
    }
    let text = std::fs::read_to_string(&index_path).map_err(|source| Error::Io {
        path: index_path.display().to_string(),
        source,
    })?;
    let index: Index =
        serde_json::from_str(&text).map_err(|error| refuse(&index_path, error.to_string()))?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    if names.is_empty() {
        return Err(refuse(&index_path, "lists no shard".into()));
    }
    names
        .into_iter()
        .map(|name| {
            let plain = Path::new(&name)
                .file_name()
                .is_some_and(|file| file == name.as_str());
            let path = dir.join(&name);
            if plain && path.is_file() {
                Ok(path)
            } else {
                Err(refuse(
                    &index_path,
                    format!("lists the shard {name}, which is not there"),
                ))
            }
        })
        .collect()
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn refuse(path: &Path, reason: String) -> Error {
    Error::Model {
        path: path.display().to_string(),
        reason,
    }
}
