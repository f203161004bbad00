//! The frozen models and their tokenizers: XLM-R reads the foreign sentence, Llama gives the teacher vectors.

mod batches;
pub mod config;
mod fingerprint;
mod llama;
mod ops;
mod random;
pub mod tiny;
mod tokenizer;
mod weights;
mod xlm_roberta;

pub use batches::{Packed, token_batches};
pub use fingerprint::fingerprint;
pub use llama::{Decoder, TEACHER_SLOT, TEACHER_TOKENS, slot_tokens};
pub use tokenizer::{SpecialTokens, Tokenizer};
pub use weights::{Weights, weight_files};
pub use xlm_roberta::{Encoder, TextLimits};

use candle_core::Device;

use crate::{Error, Result};

/// On the CPU larger batches than this many rows only spill the caches.
const CPU_ROWS: usize = 1_024;

/// The token budget that suits the device: the caller's, but no more than the CPU's caches like.
fn cpu_rows(device: &Device, token_budget: usize) -> usize {
    if device.is_cpu() {
        token_budget.min(CPU_ROWS)
    } else {
        token_budget
    }
}

/// Refuses sequences that a model can't read.
fn check_ids(
    ids: &[impl AsRef<[u32]>],
    vocab_size: usize,
    max_tokens: usize,
    path: &str,
) -> Result<()> {
    for (index, ids) in ids.iter().enumerate() {
        let ids = ids.as_ref();
        if ids.len() > max_tokens {
            let tokens = ids.len();
            return Err(Error::Input(format!(
                "sequence {index} has {tokens} tokens, {path} has positions for {max_tokens}"
            )));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(Error::Input(format!(
                "sequence {index}: token id {id} is outside {path}'s {vocab_size}"
            )));
        }
    }
    Ok(())
}
