//! Continuations token by token: greedy or sampled, with or without an adapter and slots.

use std::ops::ControlFlow;

use candle_core::{DType, Tensor};

use super::batches::Packed;
use super::chat::ChatPrompt;
use super::llama::{Cache, Llama, Rows};
use super::lora::{LayerAdapter, LoraAdapter};
use crate::train::random::{key, uniform};
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
pub struct LoadedAdapter(Vec<LayerAdapter>);

impl LoadedAdapter {
    /// Copies an adapter's matrices to the model's device.
    ///
    /// # Errors
    /// [`Error::Tensor`] when the device fails.
    pub fn new(adapter: &LoraAdapter, model: &Llama) -> Result<Self> {
        Ok(Self(adapter.on(&model.adapter_place())?))
    }
}

impl Llama {
    /// Returns the continuation of `prompt`. Its slots are `slots` `[K, hidden]`, or the prompt's own tokens if `None`.
    /// `told` gets each token and may end the continuation.
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
        told: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Vec<u32>> {
        self.check(&[prompt.ids.as_slice()])?;
        let longest = self.config().max_position_embeddings;
        let mut cache = Cache::default();
        let mut packed = Packed::new([prompt.ids.as_slice()]);
        let mut embeddings = match slots {
            Some(slots) => self.with_slots(prompt, slots)?,
            None => self.embed(&prompt.ids)?,
        };
        let mut generated = Vec::new();
        while generated.len() < options.max_tokens && cache.tokens() + packed.ids.len() <= longest {
            let hidden = self.forward_from(embeddings, &packed, Some(&mut cache), Rows::LastOfEach, &adapter.0)?;
            let logits = self.logits(&hidden)?.to_dtype(DType::F32)?.get(0)?.to_vec1::<f32>()?;
            let token = choose(&logits, options.sampling, generated.len() as u64);
            if options.stop.contains(&token) {
                break;
            }
            generated.push(token);
            if told(token).is_break() {
                break;
            }
            packed = Packed::new([&[token][..]]);
            embeddings = self.embed(&[token])?;
        }
        Ok(generated)
    }

    /// Returns the logits of the token after `prompt`, `[vocab]`.
    ///
    /// # Errors
    /// Those of [`Llama::generate`].
    pub fn next_logits(&self, prompt: &ChatPrompt, slots: Option<&[f32]>, adapter: &LoadedAdapter) -> Result<Vec<f32>> {
        self.check(&[prompt.ids.as_slice()])?;
        let embeddings = match slots {
            Some(slots) => self.with_slots(prompt, slots)?,
            None => self.embed(&prompt.ids)?,
        };
        let packed = Packed::new([prompt.ids.as_slice()]);
        let hidden = self.forward_from(embeddings, &packed, None, Rows::LastOfEach, &adapter.0)?;
        Ok(self.logits(&hidden)?.to_dtype(DType::F32)?.get(0)?.to_vec1()?)
    }

    fn with_slots(&self, prompt: &ChatPrompt, slots: &[f32]) -> Result<Tensor> {
        let (width, (device, dtype)) = (self.config().hidden_size, self.activations());
        if slots.len() != prompt.slots.len() * width {
            let (found, places) = (slots.len() / width, prompt.slots.len());
            return Err(Error::Input(format!("{found} slots for a prompt with {places} places")));
        }
        let slots = Tensor::from_slice(slots, (prompt.slots.len(), width), device)?.to_dtype(dtype)?;
        replaced_rows(&self.embed(&prompt.ids)?, &slots, &prompt.slots, |slot| slot)
    }
}

/// Returns `tokens` `[T, d]` with its `rows` replaced by rows of `others`. `of` gives the row of `others` for the n-th
/// of them.
///
/// # Errors
/// Those of the device.
pub fn replaced_rows(tokens: &Tensor, others: &Tensor, rows: &[usize], of: impl Fn(usize) -> usize) -> Result<Tensor> {
    let count = tokens.dim(0)?;
    let mut from: Vec<u32> = (0..count as u32).collect();
    for (n, row) in rows.iter().enumerate() {
        from[*row] = (count + of(n)) as u32;
    }
    let both = Tensor::cat(&[tokens, others], 0)?;
    Ok(both.index_select(&Tensor::from_vec(from, count, tokens.device())?, 0)?)
}

fn choose(logits: &[f32], sampling: Sampling, place: u64) -> u32 {
    match sampling {
        Sampling::Greedy => argmax(logits),
        Sampling::Nucleus {
            temperature,
            top_p,
            seed,
        } => nucleus(logits, temperature, top_p, uniform(key(&[seed]), place)),
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
    let mut weights: Vec<(u32, f32)> = (0..)
        .zip(logits)
        .map(|(token, logit)| (token, ((logit - top) / temperature).exp()))
        .collect();
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
        assert!(
            (0..100).all(|i| draw(0.5, i as f32 / 100.0) == 2),
            "5 of 9 are enough for half"
        );
        let counted = (0..900).filter(|i| draw(1.0, *i as f32 / 900.0) == 1).count();
        assert!((198..=202).contains(&counted), "{counted} of 900, not 200");
        assert_eq!(draw(0.75, 0.99), 1, "the last of the nucleus");
        assert!(
            (0..100).all(|i| nucleus(&logits, 0.01, 1.0, i as f32 / 100.0) == 2),
            "cold is greedy"
        );
    }
}
