//! LoRA on the decoder's linear layers: thin matrices whose product is added to frozen weights (Hu et al., 2021), named and
//! started as PEFT does.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::config::LlamaConfig;
use super::ops::{LowRank, RowMasks};
use crate::train::dropout::Dropout;
use crate::train::random::{key, uniform};
use crate::train::tensor_file::{self, TensorFile, Values};
use crate::{Error, Result};

/// A linear layer of a decoder layer, by Llama's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    /// Queries.
    QProj,
    /// Keys.
    KProj,
    /// Values.
    VProj,
    /// The attention block's output.
    OProj,
    /// The feed-forward block's gate.
    GateProj,
    /// What the gate lets through.
    UpProj,
    /// The feed-forward block's output.
    DownProj,
}

impl Projection {
    /// All of them, in the order of the forward pass.
    pub const ALL: [Self; 7] = [
        Self::QProj,
        Self::KProj,
        Self::VProj,
        Self::OProj,
        Self::GateProj,
        Self::UpProj,
        Self::DownProj,
    ];

    /// The module's name, such as `q_proj`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::QProj => "q_proj",
            Self::KProj => "k_proj",
            Self::VProj => "v_proj",
            Self::OProj => "o_proj",
            Self::GateProj => "gate_proj",
            Self::UpProj => "up_proj",
            Self::DownProj => "down_proj",
        }
    }

    /// The module's name inside a decoder layer, such as `self_attn.q_proj`.
    #[must_use]
    pub fn path(self) -> String {
        let block = match self {
            Self::QProj | Self::KProj | Self::VProj | Self::OProj => "self_attn",
            Self::GateProj | Self::UpProj | Self::DownProj => "mlp",
        };
        format!("{block}.{}", self.name())
    }

    /// Rows and columns of its weight: (out, in).
    #[must_use]
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

/// What an adapter is like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraOptions {
    /// r, the thin side of A and B.
    pub rank: usize,
    /// The correction is scaled by alpha / rank.
    pub alpha: f64,
    /// Share of a layer's input that the correction does not see in training.
    pub dropout: f64,
    /// Which layers are corrected.
    pub targets: Vec<Projection>,
}

impl Default for LoraOptions {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 16.0,
            dropout: 0.05,
            targets: Projection::ALL.to_vec(),
        }
    }
}

/// An adapter with its parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraAdapter {
    options: LoraOptions,
    layers: usize,
    /// Of the targets, in their order: (out, in).
    shapes: Vec<(usize, usize)>,
    /// Layer by layer, target by target, A `[rank, in]` then B `[out, rank]`.
    pub parameters: Vec<f32>,
}

impl LoraAdapter {
    /// As PEFT starts it: A uniform within ±1/√in, B zero, so that nothing is corrected yet.
    ///
    /// # Errors
    /// [`Error::Input`] for a rank of 0 or no targets.
    pub fn new(config: &LlamaConfig, options: LoraOptions, seed: u64) -> Result<Self> {
        if options.rank == 0 || options.targets.is_empty() {
            return Err(Error::Input("LoRA needs a rank of at least 1 and a target".into()));
        }
        let shapes: Vec<_> = options.targets.iter().map(|target| target.shape(config)).collect();
        let mut adapter = Self {
            layers: config.num_hidden_layers,
            shapes,
            options,
            parameters: Vec::new(),
        };
        adapter.parameters = vec![0.0; adapter.layers * adapter.layer_len()];
        for layer in 0..adapter.layers {
            for (target, (a, _)) in adapter.ranges(layer).into_iter().enumerate() {
                let key = key(&[seed, layer as u64, target as u64]);
                let bound = 1.0 / (adapter.shapes[target].1 as f32).sqrt();
                for (value, index) in adapter.parameters[a].iter_mut().zip(0..) {
                    *value = bound * (2.0 * uniform(key, index) - 1.0);
                }
            }
        }
        Ok(adapter)
    }

    /// What it is like.
    #[must_use]
    pub const fn options(&self) -> &LoraOptions {
        &self.options
    }

    /// How many decoder layers it corrects.
    #[must_use]
    pub const fn layers(&self) -> usize {
        self.layers
    }

    /// Where a layer's parameters lie.
    #[must_use]
    pub fn layer_range(&self, layer: usize) -> Range<usize> {
        layer * self.layer_len()..(layer + 1) * self.layer_len()
    }

    fn layer_len(&self) -> usize {
        let widths = self.shapes.iter().map(|(outer, inner)| outer + inner);
        self.options.rank * widths.sum::<usize>()
    }

    /// Where A and B of each of a layer's targets lie.
    fn ranges(&self, layer: usize) -> Vec<(Range<usize>, Range<usize>)> {
        let mut at = self.layer_range(layer).start;
        let mut next = |len: usize| {
            at += len;
            at - len..at
        };
        let rank = self.options.rank;
        self.shapes
            .iter()
            .map(|(outer, inner)| (next(rank * inner), next(rank * outer)))
            .collect()
    }

    /// PEFT's name, shape and place of each tensor.
    #[must_use]
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

    /// The parameters as tensors of a file.
    #[must_use]
    pub fn tensors(&self) -> Vec<tensor_file::Tensor<'_>> {
        self.tensor_places()
            .into_iter()
            .map(|(name, shape, place)| (name, shape, Values::F32(&self.parameters[place])))
            .collect()
    }

    /// Takes the parameters from a file that holds them under PEFT's names and nothing else that is LoRA's.
    ///
    /// # Errors
    /// [`Error::Model`] naming the first tensor that is missing, misshapen or not expected.
    pub fn read(&mut self, file: &TensorFile<'_>) -> Result<()> {
        let places = self.tensor_places();
        for (name, expected, place) in &places {
            let (found, values) = file.f32(name)?;
            if found != *expected {
                return Err(file.error(format!(
                    "tensor `{name}` has shape {found:?}, the decoder and the adapter's rank ask for {expected:?}"
                )));
            }
            self.parameters[place.clone()].copy_from_slice(&values);
        }
        let unexpected = |name: &&str| name.contains("lora_") && !places.iter().any(|(known, ..)| known == name);
        match file.names().filter(unexpected).min() {
            Some(name) => Err(file.error(format!("tensor `{name}` belongs to no layer that the adapter corrects"))),
            None => Ok(()),
        }
    }

    /// The corrections of all layers, where and in what the model computes.
    pub(crate) fn on(&self, place: &AdapterPlace<'_>) -> Result<Vec<LayerAdapter>> {
        self.layers_of(&self.parameters_on(place.device)?, place, None)
    }

    /// The parameters [n] on a device, f32.
    pub(crate) fn parameters_on(&self, device: &Device) -> Result<Tensor> {
        Ok(Tensor::from_slice(&self.parameters, self.parameters.len(), device)?)
    }

    /// The corrections of all layers, of parameters [n] that are on the device already. `dropout` is for training.
    pub(crate) fn layers_of(
        &self,
        parameters: &Tensor,
        place: &AdapterPlace<'_>,
        dropout: Option<&RowDropout<'_>>,
    ) -> Result<Vec<LayerAdapter>> {
        let parameters = parameters.to_dtype(place.dtype)?;
        (0..self.layers)
            .map(|layer| self.layer(layer, &parameters, place, dropout))
            .collect()
    }

    fn layer(
        &self,
        layer: usize,
        parameters: &Tensor,
        place: &AdapterPlace<'_>,
        dropout: Option<&RowDropout<'_>>,
    ) -> Result<LayerAdapter> {
        let rank = self.options.rank;
        let mut adapter = LayerAdapter {
            corrections: [const { None }; 7],
        };
        let start = self.layer_range(layer).start;
        let targets = self.options.targets.iter().zip(&self.shapes);
        for ((target, (outer, inner)), (a, b)) in targets.zip(self.ranges(layer)) {
            let masks = dropout.map(|dropout| {
                let keys = dropout.keys.iter();
                let row = |row: &u64| dropout.dropout.row(key(&[*row, layer as u64, *target as u64]));
                RowMasks::new(keys.map(row).collect(), place.device)
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

/// Where and in what an adapter's corrections are computed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdapterPlace<'a> {
    pub(crate) dtype: DType,
    pub(crate) device: &'a Device,
}

/// Dropout of one training step, and a key for each of the rows it falls on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowDropout<'a> {
    pub(crate) dropout: Dropout,
    pub(crate) keys: &'a [u64],
}

/// One layer's corrections, and where in the layer's parameters each begins.
pub(crate) struct LayerAdapter {
    corrections: [Option<(LowRank, usize)>; 7],
}

impl LayerAdapter {
    /// The correction of one linear layer, if it has one.
    pub(crate) fn get(&self, projection: Projection) -> Option<&(LowRank, usize)> {
        self.corrections[projection as usize].as_ref()
    }
}
