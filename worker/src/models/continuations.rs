//! Continuations of several prompts at once. Each pass computes the next token of all of them.
//!
//! Sequences lie end to end without padding, and each has its own cache and its own positions. A new one may join
//! between any two passes. Its whole prompt is then in the next pass, beside the single tokens of the others.

use std::collections::VecDeque;

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::batches::Packed;
use super::cache::Cache;
use super::chat::ChatPrompt;
use super::generate::{GenerateOptions, LoadedAdapter, choose};
use super::llama::{Llama, Rows};
use crate::Result;

/// The most tokens of new prompts in a pass with several of them. The others wait one pass, so that none takes long.
const PASS_TOKENS: usize = 1_024;

/// A part of a continuation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The next token.
    Token(u32),
    /// The end, at a token of [`GenerateOptions::stop`].
    Stopped,
    /// The end, because of [`GenerateOptions::max_tokens`] or the model's last position.
    AtLimit,
}

/// The continuations of several prompts.
pub struct Continuations {
    head: Head,
    at_once: usize,
    next: usize,
    waiting: VecDeque<Row>,
    running: Vec<Row>,
}

/// The tokens with which prompts begin, and their keys and values.
#[derive(Default)]
struct Head {
    ids: Vec<u32>,
    cache: Cache,
}

struct Row {
    id: usize,
    cache: Cache,
    /// The tokens that the next pass reads.
    unread: Vec<u32>,
    /// The places of the slots among them, and the slots `[K, hidden]`.
    slots: Option<(Vec<usize>, Vec<f32>)>,
    generated: usize,
    options: GenerateOptions,
}

impl Continuations {
    /// Returns continuations without any prompt, of which at most `at_once` are computed at once.
    pub fn new(at_once: usize) -> Self {
        Self { head: Head::default(), at_once: at_once.max(1), next: 0, waiting: VecDeque::new(), running: Vec::new() }
    }

    /// Reads the tokens with which many prompts will begin. Such prompts do not compute them again.
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input) for tokens that the model cannot read.
    pub fn begin_with(mut self, ids: &[u32], model: &Llama, adapter: &LoadedAdapter) -> Result<Self> {
        if !ids.is_empty() {
            model.check(&[ids])?;
            let mut cache = Cache::default();
            let embeddings = model.embed(ids)?;
            let packed = Packed::new([ids]);
            model.forward_from(embeddings, &packed, &mut [&mut cache], Rows::LastOfEach, &adapter.0)?;
            let ids = ids.to_vec();
            self.head = Head { ids, cache };
        }
        Ok(self)
    }

    /// Adds a prompt with its slots `[K, hidden]`; `None` leaves the prompt's own tokens in their places. Returns the
    /// number of its continuation, counted from 0.
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input) for ids outside the vocabulary, a prompt that is too long, or a number of
    /// slots that does not match the prompt.
    pub fn add(
        &mut self,
        model: &Llama,
        prompt: &ChatPrompt,
        slots: Option<Vec<f32>>,
        options: GenerateOptions,
    ) -> Result<usize> {
        model.check(&[prompt.ids.as_slice()])?;
        model.check_slots(prompt, slots.as_deref())?;
        let head = self.head.ids.len();
        let begins_so = prompt.ids.len() > head
            && prompt.ids.starts_with(&self.head.ids)
            && prompt.slots.first().is_none_or(|first| *first >= head);
        let (cache, read) = if begins_so { (self.head.cache.copy()?, head) } else { (Cache::default(), 0) };
        let places = prompt.slots.iter().map(|place| place - read).collect();
        let id = self.next;
        self.next += 1;
        self.waiting.push_back(Row {
            id,
            cache,
            unread: prompt.ids[read..].to_vec(),
            slots: slots.map(|slots| (places, slots)),
            generated: 0,
            options,
        });
        Ok(id)
    }

    /// Ends a continuation early.
    pub fn drop_one(&mut self, id: usize) {
        self.waiting.retain(|row| row.id != id);
        self.running.retain(|row| row.id != id);
    }

    /// Returns whether no continuation is left.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Computes the next token of each continuation that is running. Returns the new parts with their continuations'
    /// numbers. The model and the adapter are the same in each call.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) when the device fails. The continuations that were running cannot go on.
    pub fn step(&mut self, model: &Llama, adapter: &LoadedAdapter) -> Result<Vec<(usize, Step)>> {
        let mut steps = Vec::new();
        self.admit(model, &mut steps);
        if self.running.is_empty() {
            return Ok(steps);
        }
        let mut running = std::mem::take(&mut self.running);
        // On a thread of the pool, because every parallel loop of another thread would wait for one to wake up.
        let tokens = rayon::scope(|_| pass(&mut running, model, adapter))?;
        for (mut row, token) in running.into_iter().zip(tokens) {
            if row.options.stop.contains(&token) {
                steps.push((row.id, Step::Stopped));
                continue;
            }
            steps.push((row.id, Step::Token(token)));
            row.generated += 1;
            row.unread = vec![token];
            row.slots = None;
            if row.is_at_limit(model) { steps.push((row.id, Step::AtLimit)) } else { self.running.push(row) }
        }
        Ok(steps)
    }

    /// Moves prompts from the queue into the next pass.
    fn admit(&mut self, model: &Llama, steps: &mut Vec<(usize, Step)>) {
        let mut tokens = 0;
        while self.running.len() < self.at_once
            && let Some(next) = self.waiting.front()
            && (tokens == 0 || tokens + next.unread.len() <= PASS_TOKENS)
            && let Some(row) = self.waiting.pop_front()
        {
            if row.is_at_limit(model) {
                steps.push((row.id, Step::AtLimit));
                continue;
            }
            tokens += row.unread.len();
            self.running.push(row);
        }
    }
}

impl Row {
    fn is_at_limit(&self, model: &Llama) -> bool {
        let longest = model.config().max_position_embeddings;
        self.generated >= self.options.max_tokens || self.cache.tokens() + self.unread.len() > longest
    }
}

/// Returns the token after the unread ones of each row.
fn pass(rows: &mut [Row], model: &Llama, adapter: &LoadedAdapter) -> Result<Vec<u32>> {
    let packed = Packed::new(rows.iter().map(|row| row.unread.as_slice()));
    let (mut places, mut slots) = (Vec::new(), Vec::new());
    for (row, start) in rows.iter().zip(&packed.offsets) {
        if let Some((own_places, own_slots)) = &row.slots {
            places.extend(own_places.iter().map(|place| start + place));
            slots.extend_from_slice(own_slots);
        }
    }
    let embeddings: Tensor = model.embed_with(&packed.ids, &places, &slots)?;
    let mut caches: Vec<&mut Cache> = rows.iter_mut().map(|row| &mut row.cache).collect();
    let hidden = model.forward_from(embeddings, &packed, &mut caches, Rows::LastOfEach, &adapter.0)?;
    let logits: Vec<f32> = model.logits(&hidden)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    let each = rows.par_iter().zip(logits.par_chunks(logits.len() / rows.len()));
    Ok(each.map(|(row, logits)| choose(logits, row.options.sampling, row.generated as u64)).collect())
}

/// Returns the tokens with which all prompts begin, before any slot. One prompt alone shares nothing.
pub fn common_head(prompts: &[ChatPrompt]) -> &[u32] {
    let [first, others @ ..] = prompts else { return &[] };
    if others.is_empty() {
        return &[];
    }
    let own = |prompt: &ChatPrompt| {
        let before_slots = prompt.slots.first().copied().unwrap_or(prompt.ids.len());
        before_slots.min(prompt.ids.len().saturating_sub(1))
    };
    let shared = others.iter().fold(own(first), |shared, other| {
        let pairs = first.ids[..shared].iter().zip(&other.ids[..own(other)]);
        pairs.take_while(|(a, b)| a == b).count()
    });
    &first.ids[..shared]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_common_head_ends_before_slots_and_before_a_whole_prompt() {
        let prompt = |ids: &[u32], slots: &[usize]| ChatPrompt { ids: ids.to_vec(), slots: slots.to_vec() };
        let head = |prompts: &[ChatPrompt]| common_head(prompts).to_vec();
        assert_eq!(head(&[]), [0u32; 0]);
        assert_eq!(head(&[prompt(&[1, 2], &[])]), [0u32; 0]);
        assert_eq!(head(&[prompt(&[1, 2, 3], &[]), prompt(&[1, 2, 4], &[])]), [1, 2]);
        assert_eq!(head(&[prompt(&[1, 2], &[]), prompt(&[1, 2], &[])]), [1]);
        assert_eq!(head(&[prompt(&[1, 2, 9, 3], &[2]), prompt(&[1, 2, 9, 3], &[2])]), [1, 2]);
        assert_eq!(head(&[prompt(&[1, 2, 9, 3], &[2]), prompt(&[7], &[])]), [0u32; 0]);
    }
}
