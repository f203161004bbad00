//! Continuations token by token: greedy or sampled, with or without an adapter and slots.

use candle_core::{DType, Tensor};

use super::batches::Packed;
use super::chat::ChatPrompt;
use super::continuations::{Continuations, Step};
use super::llama::{Llama, Rows};
use super::lora::{LayerAdapter, LoraAdapter};
use crate::numerics::random::{key, uniform};
use crate::{Error, Result};

/// The choice of the next token.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Sampling {
    /// The token with the largest logit. Of equal logits the lowest id wins.
    #[default]
    Greedy,
    /// A random token with probability proportional to e^(logit / temperature), among the likeliest tokens whose share
    /// is `top_p`.
    Nucleus {
        /// The temperature, above 0.
        temperature: f32,
        /// The share of the likeliest tokens, in (0, 1].
        top_p: f32,
        /// The seed. The same seed gives the same continuation.
        seed: u64,
    },
}

impl Sampling {
    /// Returns the choice at a temperature among the likeliest tokens whose share is `top_p`. Temperature 0 is greedy.
    /// Without a temperature it is 1 if there is a share, and otherwise 0.
    pub fn of(temperature: Option<f32>, top_p: Option<f32>, seed: u64) -> Self {
        // A share of the probability only has an effect with sampling.
        match temperature.unwrap_or(if top_p.is_some() { 1.0 } else { 0.0 }) {
            0.0 => Self::Greedy,
            temperature => Self::Nucleus { temperature, top_p: top_p.unwrap_or(1.0), seed },
        }
    }
}

/// The limits of a continuation, and the choice of its tokens.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// The largest number of tokens.
    pub max_tokens: usize,
    /// The tokens before the first of which the continuation ends.
    pub stop: Vec<u32>,
    /// The choice of the next token.
    pub sampling: Sampling,
}

/// An adapter on a device, ready for generation.
#[derive(Default)]
pub struct LoadedAdapter(pub(super) Vec<LayerAdapter>);

impl LoadedAdapter {
    /// Copies an adapter's matrices to the model's device.
    pub fn new(adapter: &LoraAdapter, model: &Llama) -> Result<Self> {
        let (device, dtype) = model.activations();
        Ok(Self(adapter.layers_of(&adapter.parameters_on(device)?, dtype, None)?))
    }
}

impl Llama {
    /// Returns the continuation of `prompt`. Its slots are `slots` `[K, hidden]`, or the prompt's own tokens if `None`.
    ///
    /// # Errors
    /// [`Error::Input`] for ids outside the vocabulary, a prompt that is too long, or a number of slots that does not
    /// match the prompt.
    pub fn generate(
        &self,
        prompt: &ChatPrompt,
        slots: Option<&[f32]>,
        adapter: &LoadedAdapter,
        options: &GenerateOptions,
    ) -> Result<Vec<u32>> {
        let mut continuations = Continuations::new(1);
        continuations.add(self, prompt, slots.map(<[f32]>::to_vec), options.clone())?;
        let mut generated = Vec::new();
        while !continuations.is_empty() {
            for (_, step) in continuations.step(self, adapter)? {
                if let Step::Token(token) = step {
                    generated.push(token);
                }
            }
        }
        Ok(generated)
    }

    /// Returns the logits of the token after `prompt`, `[vocab]`.
    pub fn next_logits(&self, prompt: &ChatPrompt, slots: Option<&[f32]>, adapter: &LoadedAdapter) -> Result<Vec<f32>> {
        self.check(&[prompt.ids.as_slice()])?;
        self.check_slots(prompt, slots)?;
        let places = slots.map_or(&[][..], |_| &prompt.slots);
        let embeddings = self.embed_with(&prompt.ids, places, slots.unwrap_or_default())?;
        let packed = Packed::new([prompt.ids.as_slice()]);
        let hidden = self.forward_from(embeddings, &packed, &mut [], Rows::LastOfEach, &adapter.0)?;
        Ok(self.logits(&hidden)?.to_dtype(DType::F32)?.get(0)?.to_vec1()?)
    }

    /// Refuses slots `[K, hidden]` that do not fit the prompt.
    pub(super) fn check_slots(&self, prompt: &ChatPrompt, slots: Option<&[f32]>) -> Result<()> {
        let (width, places) = (self.config().hidden_size, prompt.slots.len());
        if let Some(slots) = slots.filter(|slots| slots.len() != places * width) {
            let found = slots.len() / width;
            return Err(Error::Input(format!("{found} slots for a prompt with {places} places")));
        }
        Ok(())
    }

    /// Returns the embeddings of `ids`, with `slots` `[K, hidden]` in their `places`.
    pub(super) fn embed_with(&self, ids: &[u32], places: &[usize], slots: &[f32]) -> Result<Tensor> {
        let embeddings = self.embed(ids)?;
        if places.is_empty() {
            return Ok(embeddings);
        }
        let (device, dtype) = self.activations();
        let slots = Tensor::from_slice(slots, (places.len(), self.config().hidden_size), device)?.to_dtype(dtype)?;
        replaced_rows(&embeddings, &slots, places, |slot| slot)
    }
}

/// Returns `tokens` `[T, d]` with its `rows` replaced by rows of `others`. `of` gives the row of `others` for the n-th
/// of them.
pub fn replaced_rows(tokens: &Tensor, others: &Tensor, rows: &[usize], of: impl Fn(usize) -> usize) -> Result<Tensor> {
    let count = tokens.dim(0)?;
    let mut from: Vec<u32> = (0..count as u32).collect();
    for (n, row) in rows.iter().enumerate() {
        from[*row] = (count + of(n)) as u32;
    }
    let both = Tensor::cat(&[tokens, others], 0)?;
    Ok(both.index_select(&Tensor::from_vec(from, count, tokens.device())?, 0)?)
}

/// Returns the next token of a continuation that has `place` tokens.
pub(super) fn choose(logits: &[f32], sampling: Sampling, place: u64) -> u32 {
    match sampling {
        Sampling::Greedy => argmax(logits),
        Sampling::Nucleus { temperature, top_p, seed } => {
            nucleus(logits, temperature, top_p, uniform(key(&[seed]), place))
        }
    }
}

/// Returns the lowest index of the largest value.
fn argmax(values: &[f32]) -> u32 {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    best as u32
}

/// Draws from the likeliest tokens whose share is `top_p`. `chance` is uniform in [0, 1).
fn nucleus(logits: &[f32], temperature: f32, top_p: f32, chance: f32) -> u32 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut weights: Vec<(u32, f32)> =
        (0..).zip(logits).map(|(token, logit)| (token, ((logit - top) / temperature).exp())).collect();
    weights.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let total: f32 = weights.iter().map(|(_, weight)| weight).sum();
    let mut kept = 0.0;
    let count = weights
        .iter()
        .position(|(_, weight)| {
            kept += weight;
            kept >= top_p * total
        })
        .map_or(weights.len(), |last| last + 1);
    let mut left = chance * weights[..count].iter().map(|(_, weight)| weight).sum::<f32>();
    for (token, weight) in &weights[..count] {
        left -= weight;
        if left < 0.0 {
            return *token;
        }
    }
    weights[count - 1].0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_equals_the_lowest_id_wins() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), 1);
    }

    #[test]
    fn the_nucleus_holds_what_is_likely_and_draws_in_proportion() {
        let logits = [0.0_f32, 2.0_f32.ln(), 5.0_f32.ln(), 0.0]; // weights 1, 2, 5, 1 of 9
        let draw = |top_p, chance| nucleus(&logits, 1.0, top_p, chance);
        assert!((0..100).all(|i| draw(0.5, i as f32 / 100.0) == 2), "5 of 9 are enough for half");
        let counted = (0..900).filter(|i| draw(1.0, *i as f32 / 900.0) == 1).count();
        assert!((198..=202).contains(&counted), "{counted} of 900, not 200");
        assert_eq!(draw(0.75, 0.99), 1, "the last of the nucleus");
        assert!((0..100).all(|i| nucleus(&logits, 0.01, 1.0, i as f32 / 100.0) == 2), "cold is greedy");
    }
}
