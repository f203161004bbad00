//! Weights by name from memory-mapped safetensors: one `model.safetensors`, or the shards that
//! `model.safetensors.index.json` lists.
//!
//! On the CPU matrices and embeddings stay in the map; only norms and biases are copied, as f32.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Tensor};
use memmap2::Mmap;
use safetensors::tensor::Dtype;
use safetensors::{SafeTensors, View as _};
use serde::Deserialize;

use super::backend::Backend;
use super::ops::{Embedding, Form, Format, FrozenLinear, FrozenMatrix, Precision, Stored};
use crate::{Error, Result};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A model folder's weights, for computing in one dtype on one device.
pub struct Weights {
    dir: String,
    entries: HashMap<String, Entry>,
    prefixes: &'static [&'static str],
    backend: Backend,
}

/// Where a tensor lies.
struct Entry {
    file: Arc<Mmap>,
    bytes: Range<usize>,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl Weights {
    /// Maps the weight files of `dir`. A tensor is looked up under each of `prefixes` in turn.
    ///
    /// # Errors
    /// [`Error::Model`] when there is no weight file, a listed shard is missing, or a file is damaged.
    pub fn open(dir: &Path, prefixes: &'static [&'static str], backend: &Backend) -> Result<Self> {
        let mut entries = HashMap::new();
        for path in weight_files(dir)? {
            map_file(&path, &mut entries)?;
        }
        Ok(Self {
            dir: dir.display().to_string(),
            entries,
            prefixes,
            backend: backend.clone(),
        })
    }

    /// The dtype of what flows between layers: on the CPU f32, whatever the products are done in.
    pub fn activation_dtype(&self) -> DType {
        match self.precision() {
            Some(_) => DType::F32,
            None => self.backend.dtype(),
        }
    }

    /// How operations are carried out.
    pub(crate) fn form(&self) -> Form {
        self.backend.form()
    }

    /// What products on the CPU are done in; none where tensors compute, and in dtypes that the matrices don't know.
    fn precision(&self) -> Option<Precision> {
        match self.backend.dtype() {
            _ if self.form() == Form::Tensors => None,
            DType::BF16 => Some(Precision::Bf16),
            DType::F32 | DType::F16 => Some(Precision::F32),
            _ => None,
        }
    }

    /// The tensor `name`, in the activations' dtype, on the device.
    ///
    /// # Errors
    /// [`Error::Model`] with the tensor's name when it is missing, has another shape, or is not f32, bf16 or f16.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let (entry, format) = self.entry(name, shape)?;
        let dtype = match format {
            Format::F32 => DType::F32,
            Format::Bf16 => DType::BF16,
            Format::F16 => DType::F16,
        };
        // The file's own dtype travels to the device, where it is converted.
        let tensor = Tensor::from_raw_buffer(&entry.file[entry.bytes.clone()], dtype, shape, self.backend.device())?;
        Ok(tensor.to_dtype(self.activation_dtype())?)
    }

    /// The linear map of the weight `name` [out, in] and of a bias [out].
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub(crate) fn linear(&self, name: &str, [outer, inner]: [usize; 2], bias: Option<&str>) -> Result<FrozenLinear> {
        let bias = bias.map(|bias| self.tensor(bias, &[outer])).transpose()?;
        match self.precision() {
            None => Ok(FrozenLinear::of_tensor(self.tensor(name, &[outer, inner])?, bias)),
            Some(wish) => {
                let matrix = FrozenMatrix::new(self.stored(name, &[outer, inner])?, outer, inner, wish);
                Ok(FrozenLinear::from_matrix(matrix, bias))
            }
        }
    }

    /// The embedding `name` [vocab, width].
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub(crate) fn embedding(&self, name: &str, [vocab, width]: [usize; 2]) -> Result<Embedding> {
        match self.precision() {
            None => Ok(Embedding::Tensor(self.tensor(name, &[vocab, width])?)),
            Some(_) => Ok(Embedding::Host {
                stored: self.stored(name, &[vocab, width])?,
                vocab,
                width,
            }),
        }
    }

    fn stored(&self, name: &str, shape: &[usize]) -> Result<Stored> {
        let (entry, format) = self.entry(name, shape)?;
        Ok(Stored::mapped(entry.file.clone(), entry.bytes.clone(), format))
    }

    fn entry(&self, name: &str, shape: &[usize]) -> Result<(&Entry, Format)> {
        let Some(entry) = self
            .prefixes
            .iter()
            .find_map(|prefix| self.entries.get(&format!("{prefix}{name}")))
        else {
            return Err(self.refuse(format!("tensor {name} is missing (expected shape {shape:?})")));
        };
        if entry.shape != shape {
            let found = &entry.shape;
            return Err(self.refuse(format!("tensor {name} has shape {found:?}, config.json says {shape:?}")));
        }
        let format = match entry.dtype {
            Dtype::F32 => Format::F32,
            Dtype::BF16 => Format::Bf16,
            Dtype::F16 => Format::F16,
            found => {
                return Err(self.refuse(format!("tensor {name} is {found:?}; supported are F32, BF16 and F16")));
            }
        };
        Ok((entry, format))
    }

    fn refuse(&self, reason: String) -> Error {
        Error::Model {
            path: self.dir.clone(),
            reason,
        }
    }
}

/// Maps one file and adds where its tensors lie.
fn map_file(path: &Path, entries: &mut HashMap<String, Entry>) -> Result<()> {
    let io = |source| Error::Io {
        path: path.display().to_string(),
        source,
    };
    let file = std::fs::File::open(path).map_err(io)?;
    // SAFETY: the files are read-only inputs of a task; nothing writes to them while they are mapped.
    let file = Arc::new(unsafe { Mmap::map(&file) }.map_err(io)?);
    let tensors = SafeTensors::deserialize(&file).map_err(|error| refuse(path, error.to_string()))?;
    for (name, view) in tensors.iter() {
        let start = view.data().as_ptr() as usize - file.as_ptr() as usize;
        entries.insert(
            name.to_owned(),
            Entry {
                file: file.clone(),
                bytes: start..start + view.data_len(),
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
            },
        );
    }
    Ok(())
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
    let index: Index = serde_json::from_str(&text).map_err(|error| refuse(&index_path, error.to_string()))?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    if names.is_empty() {
        return Err(refuse(&index_path, "lists no shard".into()));
    }
    names
        .into_iter()
        .map(|name| {
            let plain = Path::new(&name).file_name().is_some_and(|file| file == name.as_str());
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
