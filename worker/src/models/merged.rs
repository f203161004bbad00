//! A decoder's weights with an adapter folded in: W + (alpha / rank) · B · A in place of each corrected weight W.
//!
//! Names, shapes and number formats are those of the decoder's own files. Tensors are mapped, and corrected one at a time.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::View;
use safetensors::tensor::Dtype;

use super::llama::PREFIXES;
use super::lora::LoraAdapter;
use super::weights::{Entry, INDEX, SINGLE, entries, is_read, prefixed};
use crate::{Error, Result};

pub(crate) struct MergedWeights<'a> {
    adapter: &'a LoraAdapter,
    entries: BTreeMap<String, Entry>,
    /// The corrections by the names of the weights.
    corrections: HashMap<String, Correction>,
}

/// The positions of A and B among the adapter's parameters.
type Correction = [Range<usize>; 2];

/// A tensor of the merged decoder. A corrected one is computed when it is written.
struct Merged<'a> {
    entry: &'a Entry,
    correction: Option<(&'a Correction, &'a LoraAdapter)>,
}

impl<'a> MergedWeights<'a> {
    /// Maps the weights in `dir`.
    ///
    /// # Errors
    /// [`Error::Model`] when there are no weights, or one that the adapter corrects is missing or has another shape.
    pub(crate) fn open(dir: &Path, adapter: &'a LoraAdapter) -> Result<Self> {
        let entries = entries(dir)?;
        let refuse = |reason: String| Error::model(dir.display(), reason);
        let mut corrections = HashMap::new();
        let places = adapter.tensor_places();
        for [(name, a_shape, a), (_, b_shape, b)] in places.as_chunks::<2>().0 {
            let name = name
                .strip_prefix("base_model.model.model.")
                .and_then(|name| name.strip_suffix("lora_A.weight"))
                .map(|module| format!("{module}weight"))
                .unwrap_or_default();
            let found = prefixed(PREFIXES, &name).find_map(|name| entries.get_key_value(&name));
            let (found, entry) =
                found.ok_or_else(|| refuse(format!("tensor {name}, which the adapter corrects, is missing")))?;
            if entry.shape != [b_shape[0], a_shape[1]] || !is_read(entry.dtype) {
                let (dtype, shape) = (entry.dtype, &entry.shape);
                return Err(refuse(format!("tensor {found} is {dtype:?} {shape:?}: the adapter can't correct it")));
            }
            corrections.insert(found.clone(), [a.clone(), b.clone()]);
        }
        Ok(Self { adapter, entries: entries.into_iter().collect(), corrections })
    }

    /// Returns the names of the tensors in files of at most `most` bytes. A larger tensor has a file of its own.
    pub(crate) fn files(&self, most: usize) -> Vec<(String, Vec<&str>)> {
        let mut files: Vec<(usize, Vec<&str>)> = Vec::new();
        for (name, entry) in &self.entries {
            let bytes = entry.bytes.len();
            match files.last_mut() {
                Some((used, names)) if *used + bytes <= most => {
                    *used += bytes;
                    names.push(name);
                }
                _ => files.push((bytes, vec![name])),
            }
        }
        let count = files.len();
        let file_name = |number: usize| match count {
            1 => SINGLE.to_owned(),
            _ => format!("model-{number:05}-of-{count:05}.safetensors"),
        };
        (1..).zip(files).map(|(number, (_, names))| (file_name(number), names)).collect()
    }

    /// Returns the content of a file with these tensors.
    pub(crate) fn content(&self, names: &[&str]) -> Result<Vec<u8>> {
        let tensors = names.iter().map(|name| {
            let correction = self.corrections.get(*name).map(|found| (found, self.adapter));
            let entry = &self.entries[*name];
            (name, Merged { entry, correction })
        });
        // Transformers refuses a file without this entry.
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::serialize(tensors, Some(metadata))
            .map_err(|error| Error::Input(format!("writing safetensors: {error}")))
    }

    /// Returns the index of several files, under the name that Transformers reads.
    pub(crate) fn index(&self, files: &[(String, Vec<&str>)]) -> (&'static str, String) {
        let places = files.iter().flat_map(|(file, names)| names.iter().map(move |name| (*name, file.as_str())));
        let places: BTreeMap<&str, &str> = places.collect();
        let bytes: usize = self.entries.values().map(|entry| entry.bytes.len()).sum();
        let index = serde_json::json!({"metadata": {"total_size": bytes}, "weight_map": places});
        (INDEX, format!("{index:#}\n"))
    }
}

impl View for Merged<'_> {
    fn dtype(&self) -> Dtype {
        self.entry.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.entry.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let bytes = &self.entry.file[self.entry.bytes.clone()];
        let Some((correction, adapter)) = self.correction else {
            return bytes.into();
        };
        let mut weight = self.entry.stored().values();
        let options = adapter.options();
        let [a, b] = correction.each_ref().map(|range| &adapter.parameters[range.clone()]);
        let scale = (options.alpha / options.rank as f64) as f32;
        add_product(&mut weight, scale, a, b, options.rank);
        from_f32(self.entry.dtype, &weight).into()
    }

    fn data_len(&self) -> usize {
        self.entry.bytes.len()
    }
}

/// Adds scale · B · A to a weight `[out, in]`, where A is `[rank, in]` and B `[out, rank]`.
fn add_product(weight: &mut [f32], scale: f32, a: &[f32], b: &[f32], rank: usize) {
    let inner = a.len() / rank;
    let rows = weight.par_chunks_exact_mut(inner).zip(b.par_chunks_exact(rank));
    rows.for_each(|(row, b)| {
        for (b, a) in b.iter().zip(a.chunks_exact(inner)) {
            row.iter_mut().zip(a).for_each(|(w, a)| *w += scale * b * a);
        }
    });
}

fn from_f32(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    let values = values.iter();
    match dtype {
        Dtype::BF16 => values.flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        Dtype::F16 => values.flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        _ => values.flat_map(|x| x.to_le_bytes()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use safetensors::SafeTensors;

    use super::*;
    use crate::models::config::LlamaConfig;
    use crate::models::lora::LoraOptions;

    fn golden() -> std::path::PathBuf {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden/seed8")).join("decoder_sharded")
    }

    #[test]
    fn files_hold_every_tensor_once_and_none_is_larger_than_asked() {
        let config = LlamaConfig::load(&golden()).unwrap();
        // B is zero, so the weights stay as they are.
        let adapter = LoraAdapter::new(&config, LoraOptions::default(), 3).unwrap();
        let weights = MergedWeights::open(&golden(), &adapter).unwrap();
        let most = 20_000;
        let files = weights.files(most);
        assert!(files.len() > 2, "{files:?}");
        let mut names = BTreeSet::new();
        for (file, tensors) in &files {
            let content = weights.content(tensors).unwrap();
            let found = SafeTensors::deserialize(&content).unwrap();
            let bytes: usize = found.iter().map(|(_, view)| view.data_len()).sum();
            assert!(bytes <= most || tensors.len() == 1, "{file}: {bytes}");
            for (name, view) in found.iter() {
                let entry = &weights.entries[name];
                assert_eq!(view.data(), &entry.file[entry.bytes.clone()], "{name}");
                assert!(names.insert(name.to_owned()), "{name} is in two files");
            }
        }
        assert!(names.iter().eq(weights.entries.keys()));
        let (_, index) = weights.index(&files);
        let index: serde_json::Value = serde_json::from_str(&index).unwrap();
        assert_eq!(index["weight_map"].as_object().unwrap().len(), names.len());
        assert!(files[0].0.starts_with("model-00001-of-000"), "{}", files[0].0);
        let all = weights.files(usize::MAX);
        assert_eq!((all.len(), all[0].0.as_str()), (1, SINGLE));
    }

    #[test]
    fn a_decoder_without_a_corrected_weight_is_refused_by_its_name() {
        let config = LlamaConfig::load(&golden()).unwrap();
        let deeper = LlamaConfig { num_hidden_layers: config.num_hidden_layers + 1, ..config };
        let adapter = LoraAdapter::new(&deeper, LoraOptions::default(), 3).unwrap();
        let refused = MergedWeights::open(&golden(), &adapter).map(|_| ()).unwrap_err();
        assert!(refused.to_string().contains("self_attn.q_proj.weight"), "{refused}");
    }
}
