//! LoRA on the decoder's linear layers: low-rank matrices whose product is added to frozen weights (Hu et al., 2021).
//! Names and initial values are those of PEFT.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use llink_proto::settings::InstructSettings;
use strum::VariantArray as _;

use super::config::LlamaConfig;
use crate::numerics::dropout::Dropout;
use crate::numerics::random::{fill_uniform, key};
use crate::numerics::tensor_file::{self, TensorFile, Values};
use crate::ops::{LowRank, RowMasks};
use crate::{Error, Result};

/// A linear layer of a decoder layer, by Llama's names, in the order of the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::AsRefStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Projection {
    /// The queries.
    QProj,
    /// The keys.
    KProj,
    /// The values.
    VProj,
    /// The attention block's output.
    OProj,
    /// The feed-forward block's gate.
    GateProj,
    /// The feed-forward block's values, which the gate multiplies.
    UpProj,
    /// The feed-forward block's output.
    DownProj,
}

impl Projection {
    /// Returns the module's name inside a decoder layer, such as `self_attn.q_proj`.
    pub fn path(self) -> String {
        let block = match self {
            Self::QProj | Self::KProj | Self::VProj | Self::OProj => "self_attn",
            Self::GateProj | Self::UpProj | Self::DownProj => "mlp",
        };
        format!("{block}.{}", self.as_ref())
    }

    /// Returns the rows and columns of its weight: (out, in).
    pub const fn shape(self, config: &LlamaConfig) -> (usize, usize) {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let q_width = config.num_attention_heads * config.head_dim;
        let kv_width = config.num_key_value_heads * config.head_dim;
        match self {
            Self::QProj => (q_width, hidden),
            Self::KProj | Self::VProj => (kv_width, hidden),
            Self::OProj => (hidden, q_width),
            Self::GateProj | Self::UpProj => (inner, hidden),
            Self::DownProj => (hidden, inner),
        }
    }
}

/// The hyperparameters of an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraOptions {
    /// The rank r of A and B.
    pub rank: usize,
    /// The numerator of the correction's scale, alpha / rank.
    pub alpha: f64,
    /// The dropout probability of the correction's input in training.
    pub dropout: f64,
    /// The layers that are corrected.
    pub targets: Vec<Projection>,
}

impl Default for LoraOptions {
    fn default() -> Self {
        Self { rank: 16, alpha: 16.0, dropout: 0.05, targets: Projection::VARIANTS.to_vec() }
    }
}

impl From<&InstructSettings> for LoraOptions {
    fn from(settings: &InstructSettings) -> Self {
        Self {
            rank: settings.lora_rank as usize,
            alpha: settings.lora_alpha,
            dropout: settings.lora_dropout,
            ..Self::default()
        }
    }
}

/// An adapter with its parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraAdapter {
    options: LoraOptions,
    layers: usize,
    /// The shapes of the targets, in their order: (out, in).
    shapes: Vec<(usize, usize)>,
    /// The parameters by layer and target: A `[rank, in]`, then B `[out, rank]`.
    pub parameters: Vec<f32>,
}

impl LoraAdapter {
    /// Initializes an adapter as PEFT does. A is uniform within ±1/√in, and B is zero, so the correction is zero.
    ///
    /// # Errors
    /// [`Error::Input`] for a rank of 0 or no targets.
    pub fn new(config: &LlamaConfig, options: LoraOptions, seed: u64) -> Result<Self> {
        if options.rank == 0 || options.targets.is_empty() {
            return Err(Error::Input("LoRA needs a rank of at least 1 and a target".into()));
        }
        let shapes: Vec<_> = options.targets.iter().map(|target| target.shape(config)).collect();
        let mut adapter = Self { layers: config.num_hidden_layers, shapes, options, parameters: Vec::new() };
        adapter.parameters = vec![0.0; adapter.layers * adapter.layer_len()];
        for layer in 0..adapter.layers {
            for (target, (a, _)) in adapter.ranges(layer).into_iter().enumerate() {
                let key = key(&[seed, layer as u64, target as u64]);
                fill_uniform(&mut adapter.parameters[a], adapter.shapes[target].1, key);
            }
        }
        Ok(adapter)
    }

    /// Returns the hyperparameters.
    pub const fn options(&self) -> &LoraOptions {
        &self.options
    }

    /// Returns the number of decoder layers that it corrects.
    pub const fn layers(&self) -> usize {
        self.layers
    }

    /// Returns the position of a layer's parameters.
    pub fn layer_range(&self, layer: usize) -> Range<usize> {
        layer * self.layer_len()..(layer + 1) * self.layer_len()
    }

    fn layer_len(&self) -> usize {
        let widths = self.shapes.iter().map(|(outer, inner)| outer + inner);
        self.options.rank * widths.sum::<usize>()
    }

    /// Returns the positions of A and B of each of a layer's targets.
    fn ranges(&self, layer: usize) -> Vec<(Range<usize>, Range<usize>)> {
        let mut at = self.layer_range(layer).start;
        let mut next = |len: usize| {
            at += len;
            at - len..at
        };
        let rank = self.options.rank;
        self.shapes.iter().map(|(outer, inner)| (next(rank * inner), next(rank * outer))).collect()
    }

    /// Returns PEFT's name, the shape and the position of each tensor.
    pub fn tensor_places(&self) -> Vec<(String, Vec<usize>, Range<usize>)> {
        let rank = self.options.rank;
        let mut places = Vec::new();
        for layer in 0..self.layers {
            let targets = self.options.targets.iter().zip(&self.shapes);
            for ((target, (outer, inner)), (a, b)) in targets.zip(self.ranges(layer)) {
                let module = format!("base_model.model.model.layers.{layer}.{}", target.path());
                places.push((format!("{module}.lora_A.weight"), vec![rank, *inner], a));
                places.push((format!("{module}.lora_B.weight"), vec![*outer, rank], b));
            }
        }
        places
    }

    /// Returns the parameters as tensors of a file.
    pub fn tensors(&self) -> Vec<tensor_file::Tensor<'_>> {
        self.tensor_places()
            .into_iter()
            .map(|(name, shape, place)| (name, shape, Values::F32(&self.parameters[place])))
            .collect()
    }

    /// Reads the parameters from a file under PEFT's names. The file must hold no other LoRA tensors.
    ///
    /// # Errors
    /// [`Error::Model`] naming the first tensor that is missing, unexpected or of another shape.
    pub fn read(&mut self, file: &TensorFile<'_>) -> Result<()> {
        let places = self.tensor_places();
        for (name, expected, place) in &places {
            let (found, values) = file.f32(name)?;
            if found != *expected {
                return Err(file.error(format!(
                    "tensor `{name}` has shape {found:?}, but the decoder and the rank need {expected:?}"
                )));
            }
            self.parameters[place.clone()].copy_from_slice(&values);
        }
        let unexpected = |name: &&str| name.contains("lora_") && !places.iter().any(|(known, ..)| known == name);
        match file.names().filter(unexpected).min() {
            Some(name) => {
                Err(file.error(format!("tensor `{name}` does not belong to a layer that the adapter corrects")))
            }
            None => Ok(()),
        }
    }

    /// Copies the parameters to a device, f32 `[n]`.
    pub(crate) fn parameters_on(&self, device: &Device) -> Result<Tensor> {
        Ok(Tensor::from_slice(&self.parameters, self.parameters.len(), device)?)
    }

    /// Returns the corrections of all layers in `dtype`, given parameters `[n]` on their device. `dropout` is that of a
    /// training step, with a key for each row.
    pub(crate) fn layers_of(
        &self,
        parameters: &Tensor,
        dtype: DType,
        dropout: Option<(Dropout, &[u64])>,
    ) -> Result<Vec<LayerAdapter>> {
        let parameters = parameters.to_dtype(dtype)?;
        (0..self.layers).map(|layer| self.layer(layer, &parameters, dropout)).collect()
    }

    fn layer(&self, layer: usize, parameters: &Tensor, dropout: Option<(Dropout, &[u64])>) -> Result<LayerAdapter> {
        let rank = self.options.rank;
        let mut adapter = LayerAdapter { corrections: [const { None }; 7] };
        let start = self.layer_range(layer).start;
        let targets = self.options.targets.iter().zip(&self.shapes);
        for ((target, (outer, inner)), (a, b)) in targets.zip(self.ranges(layer)) {
            let masks = dropout.map(|(dropout, keys)| {
                let row = |row: &u64| dropout.row(key(&[*row, layer as u64, *target as u64]));
                RowMasks::new(keys.iter().map(row).collect(), parameters.device())
            });
            let matrix = |range: &Range<usize>, rows: usize, columns: usize| {
                parameters.narrow(0, range.start, range.len())?.reshape((rows, columns))
            };
            let low_rank = LowRank {
                a: matrix(&a, rank, *inner)?,
                b: matrix(&b, *outer, rank)?,
                scale: (self.options.alpha / rank as f64) as f32,
                dropout: masks.transpose()?,
            };
            adapter.corrections[*target as usize] = Some((low_rank, a.start - start));
        }
        Ok(adapter)
    }
}

/// One layer's corrections, each with its start in the layer's parameters.
pub(crate) struct LayerAdapter {
    corrections: [Option<(LowRank, usize)>; 7],
}

impl LayerAdapter {
    pub(crate) fn get(&self, projection: Projection) -> Option<&(LowRank, usize)> {
        self.corrections[projection as usize].as_ref()
    }
}
