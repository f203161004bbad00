//! How fast texts become token ids.

use std::time::Instant;

use llink_worker::models::{SpecialTokens, Tokenizer};
use llink_worker::{Error, Result};
use serde_json::{Value, json};

use super::Options;

/// The number of texts that a worker tokenizes at once on a CPU.
const CHUNK: usize = 4_096;

/// Times the tokenizer of the folder, guarded like a decoder's, on the lines of the folder's `texts.txt`.
pub(super) fn measure(options: &Options) -> Result<Value> {
    let tokenizer = Tokenizer::load(&options.dir)?.guarded()?;
    let file = options.dir.join("texts.txt");
    let read = std::fs::read_to_string(&file);
    let text = read.map_err(|source| Error::Io { path: file.display().to_string(), source })?;
    let texts: Vec<&str> = text.lines().take(options.n).collect();
    let start = Instant::now();
    let mut tokens = 0;
    for chunk in texts.chunks(CHUNK) {
        tokens += tokenizer.encode_batch(chunk, SpecialTokens::Add)?.iter().map(Vec::len).sum::<usize>();
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(json!({
        "texts": texts.len(),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_s": tokens as f64 / seconds,
        "mb_per_s": texts.iter().map(|text| text.len()).sum::<usize>() as f64 / seconds / 1e6,
    }))
}
