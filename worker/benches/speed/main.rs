//! Times the compute-heavy operations of a worker, and prints one JSON line with the fields of `bench_reference.py`:
//!
//!     cargo bench -p llink-worker --bench speed -- embed|teacher|align|instruct|tokenize|ring DIR
#![allow(clippy::print_stdout)]

mod align;
#[path = "../../tests/it/common/gang.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod gang;
mod instruct;
mod ring;
mod tokenize;
mod vectors;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use llink_worker::device::{Arithmetic, Compute, DeviceChoice};
use llink_worker::models::Backend;

/// The operation to time, and its settings.
#[derive(Debug, Clone, Parser)]
struct Options {
    /// The operation to time.
    #[arg(value_enum)]
    job: Job,
    /// A folder with `encoder/`, `decoder/`, `encoder_ids.json` and `decoder_ids.json`, or for `tokenize` with `tokenizer.json` and
    /// `texts.txt`; `align` and `ring` make their own inputs.
    dir: PathBuf,
    /// Number of sentences, for `embed`, `teacher` and `tokenize`, or of values that `ring` sums.
    #[arg(long, default_value_t = 256)]
    n: usize,
    /// Tokens in a batch, for `embed` and `teacher`.
    #[arg(long, default_value_t = 4096)]
    budget: usize,
    /// The device to compute on.
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceChoice::Cpu)]
    device: DeviceChoice,
    /// The number format of products with frozen weights, as for `llink-worker --compute`; on the CPU `align` always uses f32.
    #[arg(long, value_name = "FORMAT", default_value_t = Arithmetic::F32)]
    dtype: Arithmetic,
    /// Hold weights in tensors on the CPU too, as on a GPU; `align` always does.
    #[arg(long)]
    tensors: bool,
    /// A safetensors file to write the vectors to, for `embed` and `teacher`.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Pairs in a step of `align` (128 by default) or examples in one of `instruct` (4).
    #[arg(long)]
    batch: Option<usize>,
    /// Number of steps, for `align` and `instruct`, or of sums, for `ring`.
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// Keep only the input of each layer and run the layer again in the backward pass, for `instruct`.
    #[arg(long)]
    recompute: bool,
    /// Number of ranks that share a step of `instruct`, and this machine's threads.
    #[arg(long, default_value_t = 1)]
    ranks: usize,
    /// The addresses `host:port` of all ranks, for `ring`.
    #[arg(long, value_delimiter = ',')]
    addresses: Vec<String>,
    /// This process's rank, for `ring`.
    #[arg(long, default_value_t = 0)]
    rank: usize,
    /// Encrypt what the ranks send, for `ring`.
    #[arg(long)]
    sealed: bool,
    /// `cargo bench` passes this.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Job {
    /// Embed sentences with the encoder.
    Embed,
    /// Embed sentences with the decoder.
    Teacher,
    /// Run steps of Stage A.
    Align,
    /// Run steps of Stage B.
    Instruct,
    /// Tokenize sentences.
    Tokenize,
    /// Sum values over the ranks of a ring.
    Ring,
}

fn main() -> llink_worker::Result<()> {
    let options = Options::parse();
    let compute = Compute::open(options.device, options.dtype)?;
    let backend = match options.tensors {
        true => Backend::of_tensors(&compute.device, compute.dtype),
        false => Backend::new(&compute.device, compute.dtype),
    };
    let mut figures = match options.job {
        Job::Embed | Job::Teacher => vectors::measure(&options, &backend)?,
        Job::Align => align::measure(&options, &compute.training_backend())?,
        Job::Instruct => instruct::measure(&options, &backend)?,
        Job::Tokenize => tokenize::measure(&options)?,
        Job::Ring => ring::measure(&options)?,
    };
    figures["job"] = format!("{:?}", options.job).to_lowercase().into();
    figures["engine"] = concat!("llink ", env!("CARGO_PKG_VERSION")).into();
    figures["device"] = if compute.device.is_cpu() { "cpu" } else { "cuda" }.into();
    figures["threads"] = rayon::current_num_threads().into();
    figures["peak_rss_mib"] = memory_mib("VmHWM:").into();
    figures["private_rss_mib"] = memory_mib("RssAnon:").into();
    println!("{figures}");
    Ok(())
}

/// Returns a figure of this process's memory, where the system says.
fn memory_mib(figure: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(figure))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024)
}
