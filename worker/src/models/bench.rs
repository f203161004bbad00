//! How fast the models are on this machine, reported in the fields of the PyTorch baseline.

use std::path::Path;
use std::time::Instant;

use candle_core::{DType, Device};
use serde_json::{Value, json};

use super::batches::token_batches;
use super::llama::Llama;
use super::xlm_roberta::XlmRoberta;
use crate::{Error, Result};

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Encoder vectors of `encoder_ids.json` with the model in `encoder/`.
    Embed,
    /// Teacher vectors of `decoder_ids.json` with the model in `decoder/`.
    Teacher,
}

/// Measures `job` on the first `n` sequences of `dir`, after one batch to warm up; loading is not counted.
///
/// The folder holds `encoder_ids.json` and `decoder_ids.json`, lists of token-id lists, beside the two models.
///
/// # Errors
/// [`Error::Io`] or [`Error::Model`] when something in `dir` is missing or not supported; [`Error::Tensor`] when the
/// device fails.
pub fn run(job: Job, dir: &Path, n: usize, token_budget: usize, dtype: DType, device: &Device) -> Result<Value> {
    let (name, model) = match job {
        Job::Embed => (
            "embed",
            Model::Encoder(XlmRoberta::load(&dir.join("encoder"), device, dtype)?),
        ),
        Job::Teacher => (
            "teacher",
            Model::Decoder(Llama::load(&dir.join("decoder"), device, dtype)?),
        ),
    };
    let ids = read_ids(
        &dir.join(if job == Job::Embed {
            "encoder_ids.json"
        } else {
            "decoder_ids.json"
        }),
        n,
    )?;
    let lengths: Vec<usize> = ids.iter().map(Vec::len).collect();
    if let Some(first) = token_batches(&lengths, token_budget).first() {
        let warm_up: Vec<Vec<u32>> = first.iter().map(|&index| ids[index].clone()).collect();
        model.vectors(&warm_up, token_budget)?;
    }
    let start = Instant::now();
    model.vectors(&ids, token_budget)?;
    let seconds = start.elapsed().as_secs_f64();
    let tokens: usize = lengths.iter().sum();
    Ok(json!({
        "job": name,
        "engine": concat!("llink ", env!("CARGO_PKG_VERSION")),
        "device": if device.is_cpu() { "cpu" } else { "cuda" },
        "dtype": match dtype { DType::F32 => "f32", DType::BF16 => "bf16", _ => dtype.as_str() },
        "threads": rayon::current_num_threads(),
        "sentences": ids.len(),
        "tokens": tokens,
        "seconds": rounded(seconds),
        "sentences_per_s": rounded(ids.len() as f64 / seconds),
        "tokens_per_s": rounded(tokens as f64 / seconds),
        "peak_rss_mib": peak_rss_mib(),
    }))
}

enum Model {
    Encoder(XlmRoberta),
    Decoder(Llama),
}

impl Model {
    fn vectors(&self, ids: &[Vec<u32>], token_budget: usize) -> Result<Vec<Vec<f32>>> {
        match self {
            Self::Encoder(model) => model.vectors(ids, token_budget, &mut |_| {}),
            Self::Decoder(model) => model.vectors(ids, token_budget, &mut |_| {}),
        }
    }
}

fn read_ids(path: &Path, n: usize) -> Result<Vec<Vec<u32>>> {
    let name = || path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|source| Error::Io { path: name(), source })?;
    let mut ids: Vec<Vec<u32>> = serde_json::from_str(&text).map_err(|error| Error::Model {
        path: name(),
        reason: error.to_string(),
    })?;
    ids.truncate(n);
    Ok(ids)
}

fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// The most memory this process has held, where the system says.
pub(crate) fn peak_rss_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace()
        .nth(1)?
        .parse::<u64>()
        .ok()
        .map(|kib| kib / 1024)
}
