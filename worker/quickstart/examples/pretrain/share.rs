//! A batch in parts that go through a model one by one.

use candle_core::{DType, Device, Tensor};

use super::documents::Document;
use super::variables::Padded;
use llink_worker::Result;
use llink_worker::llink::slot_expander::median_embedding_norm;
use llink_worker::models::replaced_rows;
use llink_worker::models::token_batches;

/// Tokens, padding included, that go through a model at once.
pub(super) const SHARE_TOKENS: usize = 1_536;

/// Documents of about the same length.
pub(super) struct Share {
    pub(super) batch: Padded,
    /// The tokens that are given of each, and not learnt.
    pub(super) given: Vec<usize>,
    pub(super) packed: Packed,
}

impl Share {
    /// Of documents in their order; the short ones are padded at their end.
    pub(super) fn new(documents: &[&Document], pad: u32) -> Result<Self> {
        let ids: Vec<Vec<u32>> = documents.iter().map(|document| document.ids.clone()).collect();
        let batch = Padded::new(&ids, pad)?;
        Ok(Self {
            given: documents.iter().map(|document| document.given).collect(),
            packed: Packed::new(documents, batch.shape.1),
            batch,
        })
    }

    pub(super) fn tokens(&self) -> usize {
        let each = self.batch.lengths.iter().zip(&self.given);
        each.map(|(length, given)| length - given).sum()
    }
}

/// Documents in shares of texts of about the same length, so that little of them is padding, each with the number of its tokens that
/// are not given.
pub(super) fn shares(documents: &[Document], pad: u32) -> Result<Vec<(Share, usize)>> {
    let lengths: Vec<usize> = documents.iter().map(|document| document.ids.len()).collect();
    let share = |indices: Vec<usize>| {
        let of: Vec<&Document> = indices.iter().map(|index| &documents[*index]).collect();
        let share = Share::new(&of, pad)?;
        let tokens = share.tokens();
        Ok((share, tokens))
    };
    token_batches(&lengths, SHARE_TOKENS).into_iter().map(share).collect()
}

/// Places of a batch that hold several tokens at once: the mean of their embeddings, as long as embeddings usually are. So soft slots
/// look to a decoder.
pub(super) struct Packed {
    /// Of [B·T].
    rows: Vec<usize>,
    /// The tokens of all of them, one after another.
    tokens: Vec<u32>,
    /// How many each holds.
    counts: Vec<usize>,
}

impl Packed {
    fn new(documents: &[&Document], longest: usize) -> Self {
        let (mut rows, mut tokens, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        for (index, document) in documents.iter().enumerate() {
            for (place, held) in &document.packed {
                rows.push(index * longest + place);
                counts.push(held.len());
                tokens.extend(held);
            }
        }
        Self { rows, tokens, counts }
    }

    /// `embedded` [B·T, d], with means of rows of `words` [vocab, d] in their places.
    pub(super) fn placed(&self, embedded: Tensor, words: &Tensor) -> Result<Tensor> {
        if self.rows.is_empty() {
            return Ok(embedded);
        }
        let (count, width) = (self.rows.len(), words.dim(1)?);
        let mut weights = vec![0f32; count * self.tokens.len()];
        let mut first = 0;
        for (row, held) in weights.chunks_exact_mut(self.tokens.len()).zip(&self.counts) {
            row[first..first + held].fill(1.0 / *held as f32);
            first += held;
        }
        let weights = Tensor::from_vec(weights, (count, self.tokens.len()), &Device::Cpu)?;
        let tokens = Tensor::new(self.tokens.as_slice(), &Device::Cpu)?;
        let means = weights.matmul(&words.index_select(&tokens, 0)?)?;
        let norms = (means.sqr()?.sum_keepdim(1)?.sqrt()? + 1e-6)?;
        let usual = words.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let usual = f64::from(median_embedding_norm(&usual, width)?);
        let packed = (means.broadcast_div(&norms)? * usual)?;
        replaced_rows(&embedded, &packed, &self.rows, |slot| slot)
    }
}
