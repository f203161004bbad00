//! What the encoder is trained for: that its vector of a sentence tells which token stood where.
//!
//! A head that is thrown away afterwards reads the vector and a place and says the token, by the encoder's own embedding. So
//! everything that the sentence says must be in the mean of its hidden states, in a form that a small network can read.

use candle_core::{Device, Tensor};

use super::encoder::TrainableEncoder;
use super::variables::{Padded, Variables};
use crate::Result;

/// Width inside the head.
const INNER: usize = 384;

pub(super) struct Reconstruction {
    pub(super) variables: Variables,
}

impl Reconstruction {
    /// A head for vectors of this width and sentences of up to `places` tokens.
    pub(super) fn new(width: usize, places: usize, seed: u64) -> Result<Self> {
        let fan = |width: usize| (1.0 / width as f64).sqrt();
        let variables = Variables::random(
            seed,
            &[
                ("read.weight", &[INNER, width], fan(width)),
                ("read.bias", &[INNER], 0.0),
                ("places", &[places, INNER], 0.5),
                ("mix.weight", &[INNER, INNER], fan(INNER)),
                ("mix.bias", &[INNER], 0.0),
                ("say.weight", &[width, INNER], fan(INNER)),
                ("say.bias", &[width], 0.0),
            ],
        )?;
        Ok(Self { variables })
    }

    /// For each token of the batch, or each `every`th: logits [n, vocab] from its sentence's vector and its place, and the token
    /// itself [n].
    pub(super) fn logits(&self, encoder: &TrainableEncoder, batch: &Padded, every: usize) -> Result<(Tensor, Tensor)> {
        let v = &self.variables;
        let rows = batch.rows_from(&vec![0; batch.lengths.len()]);
        let rows: Vec<u32> = rows.into_iter().step_by(every).collect();
        let longest = batch.shape.1 as u32;
        let sentence = Tensor::from_iter(rows.iter().map(|row| row / longest), &Device::Cpu)?;
        let place = Tensor::from_iter(rows.iter().map(|row| row % longest), &Device::Cpu)?;
        let read = v.linear("read", &encoder.vectors(batch)?)?.index_select(&sentence, 0)?;
        let inner = (read + v.get("places")?.index_select(&place, 0)?)?.gelu_erf()?;
        let said = v.linear("say", &v.linear("mix", &inner)?.gelu_erf()?)?;
        let rows = Tensor::new(rows, &Device::Cpu)?;
        Ok((said.matmul(&encoder.words()?.t()?)?, batch.ids.index_select(&rows, 0)?))
    }
}
