//! XLM-R as a graph to train: what [`llink_worker::models::Encoder`] computes of a folder's weights, with a gradient for each.

use std::path::Path;

use candle_core::{Device, Tensor};

use super::variables::{Padded, Variables, attend, heads};
use llink_worker::Result;
use llink_worker::models::config::EncoderConfig;

pub(super) struct TrainableEncoder {
    pub(super) config: EncoderConfig,
    pub(super) variables: Variables,
}

impl TrainableEncoder {
    pub(super) fn read(dir: &Path) -> Result<Self> {
        Ok(Self { config: EncoderConfig::load(dir)?, variables: Variables::read(&dir.join("model.safetensors"))? })
    }

    /// The word embeddings, [vocab, hidden].
    pub(super) fn words(&self) -> Result<&Tensor> {
        self.variables.get("embeddings.word_embeddings.weight")
    }

    /// The vector of each sequence, [B, hidden]: the mean of its last hidden states.
    pub(super) fn vectors(&self, batch: &Padded) -> Result<Tensor> {
        let (sequences, longest) = batch.shape;
        let hidden = self.config.hidden_size;
        let states = self.hidden_states(batch)?.reshape((sequences, longest, hidden))?;
        let shares = batch.lengths.iter().flat_map(|length| {
            let share = 1.0 / *length as f32;
            (0..longest).map(move |at| if at < *length { share } else { 0.0 })
        });
        let shares = Tensor::from_vec(shares.collect::<Vec<_>>(), (sequences, 1, longest), &Device::Cpu)?;
        Ok(shares.matmul(&states)?.squeeze(1)?)
    }

    /// The last hidden states, [B·T, hidden].
    fn hidden_states(&self, batch: &Padded) -> Result<Tensor> {
        let (v, eps) = (&self.variables, self.config.layer_norm_eps);
        let first = self.config.first_position();
        let positions = (0..batch.shape.0).flat_map(|_| (first..first + batch.shape.1).map(|p| p as u32));
        let positions = Tensor::from_iter(positions, &Device::Cpu)?;
        let x = self.words()?.index_select(&batch.ids, 0)?;
        let x = (x + v.get("embeddings.position_embeddings.weight")?.index_select(&positions, 0)?)?;
        let x = x.broadcast_add(&v.get("embeddings.token_type_embeddings.weight")?.narrow(0, 0, 1)?)?;
        let mut x = v.layer_norm("embeddings.LayerNorm", &x, eps)?;
        let bias = batch.attention_bias(false)?;
        for layer in 0..self.config.num_hidden_layers {
            x = self.layer(layer, &x, batch.shape, &bias)?;
        }
        Ok(x)
    }

    fn layer(&self, layer: usize, x: &Tensor, shape: (usize, usize), bias: &Tensor) -> Result<Tensor> {
        let (v, eps) = (&self.variables, self.config.layer_norm_eps);
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        let of = |part: &str| {
            let rows = v.linear(&name(&format!("attention.self.{part}")), x)?;
            heads(&rows, shape, self.config.num_attention_heads)
        };
        let mixed = attend(&of("query")?, &of("key")?, &of("value")?, bias)?;
        let attended = (x + v.linear(&name("attention.output.dense"), &mixed)?)?;
        let x = v.layer_norm(&name("attention.output.LayerNorm"), &attended, eps)?;
        let inner = v.linear(&name("intermediate.dense"), &x)?.gelu_erf()?;
        let sum = (&x + v.linear(&name("output.dense"), &inner)?)?;
        v.layer_norm(&name("output.LayerNorm"), &sum, eps)
    }
}
