//! Weights by name from memory-mapped safetensors: one `model.safetensors`, or the shards that
//! `model.safetensors.index.json` lists.
//!
//! On the CPU, matrices and embeddings stay in the map. Only norms and biases are copied, as f32. A GGUF file works in
//! the same way.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Tensor};
use memmap2::Mmap;
use safetensors::tensor::Dtype;
use safetensors::{SafeTensors, View as _};
use serde::Deserialize;
use serde_json::Value;

use super::gguf::Gguf;
use super::json;
use super::placeholder::placeholder;
use crate::ops::backend::{Backend, WeightsIn};
use crate::ops::{Embedding, Format, FrozenLinear, FrozenMatrix, Memory, Precision, Stored};
use crate::{Error, Result};

pub(crate) const SINGLE: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// The weights of a model folder, for one dtype on one device.
pub struct Weights {
    dir: String,
    entries: HashMap<String, Entry>,
    prefixes: &'static [&'static str],
    backend: Backend,
}

/// The place of a tensor.
pub(super) struct Entry {
    pub(super) file: Arc<Memory>,
    pub(super) bytes: Range<usize>,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
}

impl Entry {
    /// Returns the values in place. The tensor's dtype is one that [`is_read`].
    pub(super) fn stored(&self) -> Stored {
        let format = match self.dtype {
            Dtype::BF16 => Format::Bf16,
            Dtype::F16 => Format::F16,
            _ => Format::F32,
        };
        Stored::mapped(self.file.clone(), self.bytes.clone(), format)
    }
}

/// Returns whether weights may have this number format.
pub(super) fn is_read(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16)
}

impl Weights {
    /// Maps the weight files of `dir`. A tensor is looked up under each of `prefixes` in turn.
    ///
    /// # Errors
    /// [`Error::Model`] when there is no weight file, a listed shard is missing, or a file is damaged.
    pub fn open(dir: &Path, prefixes: &'static [&'static str], backend: &Backend) -> Result<Self> {
        Ok(Self { dir: dir.display().to_string(), entries: entries(dir)?, prefixes, backend: backend.clone() })
    }

    /// Returns the weights of a GGUF file, by the names of a folder. Values in blocks are unpacked to bf16.
    ///
    /// # Errors
    /// [`Error::Model`] for a file that is cut off.
    pub(super) fn of_gguf(file: &Gguf, backend: &Backend) -> Result<Self> {
        Ok(Self { dir: file.path().to_owned(), entries: file.entries()?, prefixes: &[""], backend: backend.clone() })
    }

    pub(super) fn path(&self) -> &str {
        &self.dir
    }

    /// Returns the precision of products with weights in their file. `None` if weights are tensors, or the matrices do
    /// not support the dtype.
    fn precision(&self) -> Option<Precision> {
        match self.backend.dtype() {
            _ if self.backend.weights() == WeightsIn::Tensors => None,
            DType::BF16 => Some(Precision::Bf16),
            DType::F32 | DType::F16 => Some(Precision::F32),
            _ => None,
        }
    }

    /// Returns the tensor `name` on the device, in the dtype of the activations.
    ///
    /// # Errors
    /// [`Error::Model`] with the tensor's name when it is missing, has another shape, or is not f32, bf16 or f16.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let entry = self.entry(name, shape)?;
        let dtype = match entry.dtype {
            Dtype::BF16 => DType::BF16,
            Dtype::F16 => DType::F16,
            _ => DType::F32,
        };
        // The values go to the device in the file's own dtype and are converted there.
        let tensor = Tensor::from_raw_buffer(&entry.file[entry.bytes.clone()], dtype, shape, self.backend.device())?;
        Ok(tensor.to_dtype(self.backend.activations())?)
    }

    /// Returns the values of the tensor `name` in f32.
    pub(super) fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        Ok(self.stored(name, shape)?.values())
    }

    /// Returns the linear map of the weight `name` `[out, in]` and a bias `[out]`.
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

    /// Returns the embedding `name` `[vocab, width]`.
    pub(crate) fn embedding(&self, name: &str, [vocab, width]: [usize; 2]) -> Result<Embedding> {
        match self.precision() {
            None => Ok(Embedding::of_tensor(self.tensor(name, &[vocab, width])?)),
            Some(_) => Ok(Embedding::of_stored(self.stored(name, &[vocab, width])?, [vocab, width])),
        }
    }

    fn stored(&self, name: &str, shape: &[usize]) -> Result<Stored> {
        Ok(self.entry(name, shape)?.stored())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    fn find(&self, name: &str) -> Option<&Entry> {
        prefixed(self.prefixes, name).find_map(|name| self.entries.get(&name))
    }

    fn entry(&self, name: &str, shape: &[usize]) -> Result<&Entry> {
        let Some(entry) = self.find(name) else {
            return Err(self.refuse(format!("tensor {name} is missing (expected shape {shape:?})")));
        };
        if entry.shape != shape {
            let found = &entry.shape;
            return Err(self.refuse(format!("tensor {name} has shape {found:?}, but config.json says {shape:?}")));
        }
        if !is_read(entry.dtype) {
            return Err(self.refuse(format!(
                "tensor {name} is {:?}; supported are F32, BF16 and F16: take the model that this one was quantized from",
                entry.dtype
            )));
        }
        Ok(entry)
    }

    fn refuse(&self, reason: String) -> Error {
        Error::model(&self.dir, reason)
    }
}

/// Returns the names that a tensor may have.
pub(super) fn prefixed(prefixes: &[&str], name: &str) -> impl Iterator<Item = String> {
    prefixes.iter().map(move |prefix| format!("{prefix}{name}"))
}

/// Maps the weight files of a model folder. Returns the places of their tensors.
pub(super) fn entries(dir: &Path) -> Result<HashMap<String, Entry>> {
    let mut entries = HashMap::new();
    for path in weight_files(dir)? {
        map_file(&path, &mut entries)?;
    }
    Ok(entries)
}

fn map_file(path: &Path, entries: &mut HashMap<String, Entry>) -> Result<()> {
    let io = Error::io(path);
    let refuse = |reason: String| Error::model(path.display(), reason);
    let file = std::fs::File::open(path).map_err(io)?;
    if file.metadata().map_err(io)?.len() == 0 {
        return Err(refuse(placeholder(&[]).unwrap_or_default()));
    }
    // SAFETY: the files are read-only inputs of a task, and nothing writes to them while they are mapped.
    let file = Arc::new(Memory::File(unsafe { Mmap::map(&file) }.map_err(io)?));
    if let Some(reason) = placeholder(&file) {
        return Err(refuse(reason));
    }
    let tensors = SafeTensors::deserialize(&file).map_err(|error| {
        refuse(format!("is damaged or not a safetensors file ({error}): download or copy it again"))
    })?;
    entries.extend(tensors.iter().map(|(name, view)| {
        let start = view.data().as_ptr() as usize - file.as_ptr() as usize;
        let bytes = start..start + view.data_len();
        let entry = Entry { file: file.clone(), bytes, dtype: view.dtype(), shape: view.shape().to_vec() };
        (todays_name(name), entry)
    }));
    Ok(())
}

/// Returns PyTorch's name of a tensor. Weights from TensorFlow, such as those of BERT, keep its names of a LayerNorm's
/// weight and bias.
pub(crate) fn todays_name(name: &str) -> String {
    for (old, new) in [("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")] {
        if let Some(before) = name.strip_suffix(old) {
            return format!("{before}{new}");
        }
    }
    name.to_owned()
}

/// Returns the weight files of a model folder, sorted by name: the single file, or the shards that the index lists.
///
/// # Errors
/// [`Error::Model`] when there is neither, or shards that the index lists are missing.
pub fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let io = Error::io(dir);
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        names.insert(entry.map_err(io)?.file_name().to_string_lossy().into_owned());
    }
    let index = || json::read(&dir.join(INDEX));
    let files = weight_names(&names, index)?.map_err(|reason| Error::model(dir.display(), reason))?;
    Ok(files.into_iter().map(|name| dir.join(name)).collect())
}

/// Returns the weight files among a folder's `names`, sorted, or the reason why they are not complete. `index` reads
/// [`INDEX`].
pub(crate) fn weight_names(
    names: &BTreeSet<String>,
    index: impl FnOnce() -> Result<Value>,
) -> Result<std::result::Result<Vec<String>, String>> {
    if names.contains(SINGLE) {
        return Ok(Ok(vec![SINGLE.into()]));
    }
    if !names.contains(INDEX) {
        return Ok(Err(without_weights(names)));
    }
    let index: Index = match json::parse(&index()?) {
        Ok(index) => index,
        Err(reason) => return Ok(Err(format!("{INDEX}: {reason}"))),
    };
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    if shards.is_empty() {
        return Ok(Err(format!("{INDEX} lists no shards")));
    }
    // A path that leads out of the folder is not among its names.
    let missing: Vec<&str> = shards.iter().filter(|s| !names.contains(*s)).map(String::as_str).collect();
    Ok(match missing.as_slice() {
        [] => Ok(shards.into_iter().collect()),
        missing => {
            let missing = missing.join(", ");
            Err(format!("{INDEX} lists {missing}, which is not there: download the folder again"))
        }
    })
}

/// Describes a folder without readable weights, and says what to do.
fn without_weights(names: &BTreeSet<String>) -> String {
    let with = |ends: &[&str]| names.iter().find(|name| ends.iter().any(|end| name.ends_with(end)));
    if names.contains("adapter_model.safetensors") {
        return "holds a LoRA adapter (adapter_model.safetensors) and no model: merge it into its model first \
                (PEFT's `merge_and_unload()`, then `save_pretrained`)"
            .into();
    }
    if let Some(name) = with(&[".bin", ".pt", ".pth", ".ckpt"]) {
        return format!(
            "{SINGLE} is missing and {name} is PyTorch's own format, which is not read: convert the folder once with Python: \
             `from transformers import AutoModel, AutoModelForCausalLM`, then \
             `AutoModel.from_pretrained(\"FOLDER\").save_pretrained(\"FOLDER\")` for an encoder, `AutoModelForCausalLM` for a decoder"
        );
    }
    if let Some(name) = with(&[".safetensors"]) {
        return format!(
            "{SINGLE} is missing: {name} is not the name that weights have; rename it if it holds the whole model"
        );
    }
    if let Some(name) = with(&[".h5", ".msgpack", ".onnx", ".ot"]) {
        return format!(
            "{SINGLE} is missing and {name} is a format that is not read: download the model's safetensors files"
        );
    }
    format!("holds neither {SINGLE} nor {INDEX}: the weights are missing; download them")
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}
