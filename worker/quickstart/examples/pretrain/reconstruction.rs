//! What makes a sentence's vector tell which token stood where.
//!
//! A head that is thrown away afterwards reads the vector and a place and says the token, by the model's own embedding. So
//! everything that the sentence says must be in the encoder's mean, or in the decoder's teacher vector, in a form that a small
//! network can read. Large models' vectors hold that much without being told to; tiny ones' don't.

use std::ops::Range;

use candle_core::{Device, Tensor};

use super::variables::{Padded, Variables};
use llink_worker::Result;

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

    /// Logits [n, vocab] for each token that is asked for, from its sentence's vector and its place. `vectors` [S, width] are the
    /// sentences', `words` [vocab, width] the embedding that tokens are told by.
    pub(super) fn logits(&self, vectors: &Tensor, words: &Tensor, asked: &Asked) -> Result<Tensor> {
        let v = &self.variables;
        let sentence = Tensor::new(asked.sentence.as_slice(), &Device::Cpu)?;
        let place = Tensor::new(asked.place.as_slice(), &Device::Cpu)?;
        let read = v.linear("read", vectors)?.index_select(&sentence, 0)?;
        let inner = (read + v.get("places")?.index_select(&place, 0)?)?.gelu_erf()?;
        let said = v.linear("say", &v.linear("mix", &inner)?.gelu_erf()?)?;
        Ok(said.matmul(&words.t()?)?)
    }
}

/// Tokens that are asked for.
#[derive(Default)]
pub(super) struct Asked {
    /// Whose vector is asked, by its row.
    sentence: Vec<u32>,
    /// Where in its text the token stands.
    place: Vec<u32>,
    /// Where in the batch's [B·T] ids.
    row: Vec<u32>,
}

impl Asked {
    /// Of each `(sequence, tokens)`, a sequence of the batch and some of its tokens, every `every`th. The first pair's vector is
    /// the first row, and so on.
    pub(super) fn new(batch: &Padded, each: impl Iterator<Item = (usize, Range<usize>)>, every: usize) -> Self {
        let mut asked = Self::default();
        let tokens = each.enumerate().flat_map(|(sentence, (sequence, tokens))| {
            let start = tokens.start;
            tokens.map(move |at| (sentence, at - start, sequence * batch.shape.1 + at))
        });
        for (sentence, place, row) in tokens.step_by(every) {
            asked.sentence.push(sentence as u32);
            asked.place.push(place as u32);
            asked.row.push(row as u32);
        }
        asked
    }

    /// The tokens themselves, [n].
    pub(super) fn wanted(&self, batch: &Padded) -> Result<Tensor> {
        let rows = Tensor::new(self.row.as_slice(), &Device::Cpu)?;
        Ok(batch.ids.index_select(&rows, 0)?)
    }
}
