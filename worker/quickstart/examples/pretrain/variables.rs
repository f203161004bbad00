//! Weights that are trained, by the names of the file they come from and go back to; and the operations that both
//! architectures are made of, as candle graphs that can be differentiated.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{D, DType, Device, Tensor, Var};

use llink_worker::{Error, Result};

/// A model's weights in f32, each a variable.
pub(super) struct Variables {
    named: BTreeMap<String, Var>,
}

impl Variables {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let read = candle_core::safetensors::load(path, &Device::Cpu)?;
        let named = read
            .into_iter()
            .map(|(name, tensor)| Ok((name, Var::from_tensor(&tensor.to_dtype(DType::F32)?)?)))
            .collect::<Result<_>>()?;
        Ok(Self { named })
    }

    /// Normal numbers of these names, shapes and standard deviations.
    pub(super) fn random(seed: u64, wanted: &[(&str, &[usize], f64)]) -> Result<Self> {
        let named = wanted
            .iter()
            .map(|(name, shape, std)| {
                let numbers = llink_quickstart::normal::Normal::new(seed, name).map(|x| (x * std) as f32);
                let numbers: Vec<f32> = numbers.take(shape.iter().product()).collect();
                let tensor = Tensor::from_vec(numbers, *shape, &Device::Cpu)?;
                Ok(((*name).to_owned(), Var::from_tensor(&tensor)?))
            })
            .collect::<Result<_>>()?;
        Ok(Self { named })
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Var> {
        self.named.values()
    }

    /// Writes them in bf16, under their names.
    pub(super) fn write_bf16(&self, path: &Path) -> Result<()> {
        let tensors: HashMap<String, Tensor> = self
            .named
            .iter()
            .map(|(name, variable)| Ok((name.clone(), variable.to_dtype(DType::BF16)?)))
            .collect::<Result<_>>()?;
        // Transformers asks for the framework that the tensors are meant for.
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let bytes = safetensors::serialize(&tensors, Some(metadata));
        let bytes = bytes.map_err(|error| Error::model(path.display(), error.to_string()))?;
        std::fs::write(path, bytes).map_err(Error::io(path))
    }

    pub(super) fn get(&self, name: &str) -> Result<&Tensor> {
        self.named.get(name).map(Var::as_tensor).ok_or_else(|| Error::Input(format!("no weight is called {name}")))
    }

    /// x [n, in] → x·Wᵀ [n, out], W the weight `name`.
    pub(super) fn product(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        Ok(x.matmul(&self.get(name)?.t()?)?)
    }

    /// As [`Variables::product`] with `name.weight`, and `name.bias` added.
    pub(super) fn linear(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let product = self.product(&format!("{name}.weight"), x)?;
        Ok(product.broadcast_add(self.get(&format!("{name}.bias"))?)?)
    }

    /// LayerNorm over the last dimension.
    pub(super) fn layer_norm(&self, name: &str, x: &Tensor, eps: f64) -> Result<Tensor> {
        let (weight, bias) = (self.get(&format!("{name}.weight"))?, self.get(&format!("{name}.bias"))?);
        Ok(candle_nn::ops::layer_norm_slow(x, weight, bias, eps as f32)?)
    }

    /// RMSNorm over the last dimension.
    pub(super) fn rms_norm(&self, name: &str, x: &Tensor, eps: f64) -> Result<Tensor> {
        Ok(candle_nn::ops::rms_norm_slow(x, self.get(name)?, eps as f32)?)
    }
}

/// Sequences of token ids, the short ones padded at their end: B of them, T long.
pub(super) struct Padded {
    /// Token ids, [B·T].
    pub(super) ids: Tensor,
    /// B and T.
    pub(super) shape: (usize, usize),
    /// Lengths before padding.
    pub(super) lengths: Vec<usize>,
    /// The last token of each.
    pub(super) last: Vec<u32>,
}

impl Padded {
    pub(super) fn new(sequences: &[Vec<u32>], pad: u32) -> Result<Self> {
        let lengths: Vec<usize> = sequences.iter().map(Vec::len).collect();
        let last = sequences.iter().filter_map(|ids| ids.last().copied()).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut ids = Vec::with_capacity(sequences.len() * longest);
        for sequence in sequences {
            ids.extend_from_slice(sequence);
            ids.resize(ids.len() + longest - sequence.len(), pad);
        }
        let shape = (sequences.len(), longest);
        Ok(Self { ids: Tensor::from_vec(ids, shape.0 * shape.1, &Device::Cpu)?, shape, lengths, last })
    }

    /// The rows, of [B·T], that hold tokens `from` and later of each sequence.
    pub(super) fn rows_from(&self, from: &[usize]) -> Vec<u32> {
        let each = self.lengths.iter().zip(from).enumerate();
        each.flat_map(|(sequence, (length, from))| {
            let start = sequence * self.shape.1;
            (start + from..start + length).map(|row| row as u32)
        })
        .collect()
    }

    /// What is added to attention scores: 0 where key j may be seen, far below 0 where not, [B, 1, T, T] or [B, 1, 1, T].
    pub(super) fn attention_bias(&self, causal: bool) -> Result<Tensor> {
        const UNSEEN: f32 = -1e9;
        let (batch, longest) = self.shape;
        if causal {
            // Padding stands behind every token that counts, so that the past holds none of it.
            let bias: Vec<f32> =
                (0..longest * longest).map(|at| if at % longest <= at / longest { 0.0 } else { UNSEEN }).collect();
            return Ok(Tensor::from_vec(bias, (1, 1, longest, longest), &Device::Cpu)?);
        }
        let bias: Vec<f32> = self
            .lengths
            .iter()
            .flat_map(|length| (0..longest).map(move |key| if key < *length { 0.0 } else { UNSEEN }))
            .collect();
        Ok(Tensor::from_vec(bias, (batch, 1, 1, longest), &Device::Cpu)?)
    }
}

/// softmax(q·kᵀ/√head_dim + bias)·v of q, k, v [B, heads, T, head_dim], as rows [B·T, heads·head_dim].
pub(super) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (batch, heads, tokens, head_dim) = q.dims4()?;
    let scores = (q.contiguous()?.matmul(&k.t()?.contiguous()?)? * (1.0 / (head_dim as f64).sqrt()))?;
    let weights = candle_nn::ops::softmax(&scores.broadcast_add(bias)?, D::Minus1)?;
    let mixed = weights.matmul(&v.contiguous()?)?.transpose(1, 2)?;
    Ok(mixed.reshape((batch * tokens, heads * head_dim))?)
}

/// Rows [B·T, heads·head_dim] as heads [B, heads, T, head_dim].
pub(super) fn heads(rows: &Tensor, (batch, tokens): (usize, usize), heads: usize) -> Result<Tensor> {
    let head_dim = rows.dim(1)? / heads;
    Ok(rows.reshape((batch, tokens, heads, head_dim))?.transpose(1, 2)?)
}
