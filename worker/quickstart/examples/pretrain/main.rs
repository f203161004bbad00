//! Tiny models that know the sample grammar, trained from scratch: an encoder whose vector holds what a Khmer sentence says, and
//! a decoder that says English, follows instructions about it, holds a sentence in its teacher vector and reads soft slots. They stand
//! in for XLM-R and Llama where those are too large: in trials, tests and the quickstart.
//!
//! Neither sees the other's language paired with its own: only Stage A and Stage B bring them together.
//!
//!     cargo run --release -p llink-quickstart --example pretrain -- worker/quickstart/assets
#![allow(clippy::print_stdout)]

mod decoder;
mod documents;
mod encoder;
mod optimize;
mod reconstruction;
mod share;
mod variables;

use std::path::{Path, PathBuf};

use candle_core::{D, DType, Device, Tensor};
use clap::Parser;
use llink_quickstart::models::{self, Shape};
use llink_worker::models::{Decoder, Encoder, TEACHER_TOKENS, TextLimits};
use llink_worker::{Error, Result};

use decoder::TrainableDecoder;
use documents::{Document, Given, Kind, Texts, drawn};
use encoder::TrainableEncoder;
use optimize::Optimizer;
use reconstruction::{Asked, Reconstruction};
use share::{Share, shares};
use variables::{Padded, Variables};

/// Rows of the sample corpus that nothing is trained on have this seed.
const HELD_OUT_SEED: u64 = 0x0048_454C_444F_5554;
/// Steps from one look at held-out text to the next.
const LOOK_EVERY: u64 = 100;
/// Held-out texts that are looked at.
const LOOKED_AT: u64 = 256;

/// Trains tiny models that know the sample grammar, from scratch.
#[derive(Debug, Clone, Parser)]
struct Options {
    /// The folder for `encoder/` and `decoder/`.
    dir: PathBuf,
    /// The seed of the initial weights, the texts and the batches.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of sentences of the sample corpus to train on.
    #[arg(long, default_value_t = 60_000)]
    sentences: u64,
    /// Sentences in a step.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Number of the encoder's steps.
    #[arg(long, default_value_t = 3_000)]
    encoder_steps: u64,
    /// Number of the decoder's steps.
    #[arg(long, default_value_t = 2_500)]
    decoder_steps: u64,
    /// Number of threads, each with its share of a batch; by default one for each core.
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, usize::from))]
    threads: usize,
}

/// What a model can do with text that it was not trained on.
#[derive(Debug, Clone, Copy)]
struct Look {
    /// Of the batch that was just trained on.
    loss: f64,
    /// Share of tokens that are told right.
    tokens: f64,
    /// Share of texts with every token right.
    texts: f64,
}

fn main() -> Result<()> {
    pretrain(&Options::parse(), &mut |model, step, Look { loss, tokens, texts }| {
        println!(
            "{model} step {step}: loss {loss:.4}, of held-out texts {tokens:.3} of the tokens and {texts:.3} whole"
        );
    })
}

/// Trains both models and writes them to `dir/encoder` and `dir/decoder` in Hugging Face layout, weights in bf16. `told` is
/// given the model's name, the step and what was found each time that held-out text is looked at.
fn pretrain(options: &Options, told: Told<'_>) -> Result<()> {
    let texts = Texts::new(options.sentences, options.seed);
    let foreign = || texts.pairs.iter().map(|(_, foreign)| foreign.clone());
    let told_of = texts.instructions.iter().map(|e| format!("{} {}", e.instruction, e.answer));
    let english: Vec<String> =
        texts.pairs.iter().map(|(english, _)| english.clone()).zip(told_of).flat_map(|(a, b)| [a, b]).collect();
    let (encoder, decoder) = (options.dir.join("encoder"), options.dir.join("decoder"));
    let untrained = models::random_encoder(foreign(), options.seed, Shape::PRETRAINED_ENCODER)?;
    models::write(&encoder, &untrained)?;
    let untrained = models::random_decoder(english.into_iter(), options.seed, Shape::PRETRAINED_DECODER)?;
    models::write(&decoder, &untrained)?;
    let held_out = Texts::new(10 * LOOKED_AT, options.seed ^ HELD_OUT_SEED);
    train_encoder(&encoder, &texts, &held_out, options, told)?;
    train_decoder(&decoder, &texts, &held_out, options, told)
}

/// The encoder's vector is asked for every so manyth token: the loss of half of them teaches as much.
const TOKENS_SKIPPED: usize = 2;
/// Peak learning rates.
const ENCODER_RATE: f64 = 3e-3;
const DECODER_RATE: f64 = 3e-3;

/// Gets the model's name, the step, and what was found.
type Told<'a> = &'a mut dyn FnMut(&str, u64, Look);

fn train_encoder(dir: &Path, texts: &Texts, held_out: &Texts, options: &Options, told: Told<'_>) -> Result<()> {
    let tokenizer = Encoder::load(dir, &Device::Cpu, DType::F32)?;
    let model = TrainableEncoder::read(dir)?;
    let head = Reconstruction::new(model.config.hidden_size, model.config.max_tokens(), options.seed)?;
    let limits = TextLimits { max_chars: 256, max_tokens: model.config.max_tokens() };
    let tokenized = |texts: &Texts, numbers: &mut dyn Iterator<Item = u64>| {
        let texts: Vec<&str> = numbers.map(|number| texts.foreign(number)).collect();
        tokenizer.tokenize(&texts, limits)
    };
    let pad = model.config.pad_token_id;
    let looked_at = Padded::new(&tokenized(held_out, &mut (0..LOOKED_AT).map(|n| 8 * n + 1))?, pad)?;
    let variables = model.variables.all().chain(head.variables.all()).cloned().collect();
    let mut optimizer = Optimizer::new(variables, options.encoder_steps, ENCODER_RATE)?;
    let told_by = |batch: &Padded, every: usize| {
        let asked = Asked::new(batch, batch.lengths.iter().map(|length| 0..*length).enumerate(), every);
        let logits = head.logits(&model.vectors(batch)?, model.words()?, &asked)?;
        Ok::<_, Error>((logits, asked.wanted(batch)?))
    };
    for step in 0..options.encoder_steps {
        let ids = tokenized(texts, &mut drawn(options.seed, step, options.batch))?;
        let documents: Vec<Document> = ids.into_iter().map(|ids| Document::plain(ids, 0)).collect();
        let shares = shares(&documents, pad)?;
        let loss = optimizer.step(step, &shares, options.threads, |share| {
            let (logits, wanted) = told_by(&share.batch, TOKENS_SKIPPED)?;
            Ok(candle_nn::loss::cross_entropy(&logits, &wanted)?)
        })?;
        if is_looked_at(step, options.encoder_steps) {
            let (logits, wanted) = told_by(&looked_at, 1)?;
            told("encoder", step + 1, looked(loss, &logits, &wanted, &looked_at.lengths)?);
        }
    }
    write(dir, &model.variables)
}

fn train_decoder(dir: &Path, texts: &Texts, held_out: &Texts, options: &Options, told: Told<'_>) -> Result<()> {
    let tokenizer = Decoder::load(dir, &Device::Cpu, DType::F32)?;
    let slot = tokenizer.teacher_slot();
    let model = TrainableDecoder::read(dir)?;
    let head = Reconstruction::new(model.config.hidden_size, TEACHER_TOKENS, options.seed)?;
    let looked_at = |kind: Kind| -> Result<Share> {
        let documents = (0..LOOKED_AT).map(|number| held_out.document_of(&tokenizer, kind, number));
        let documents: Vec<Document> = documents.collect::<Result<_>>()?;
        Share::new(&documents.iter().collect::<Vec<_>>(), 0)
    };
    let said = [
        ("decoder, from tokens", looked_at(Kind::SayAgain(Given::Tokens))?),
        ("decoder, from slots", looked_at(Kind::SayAgain(Given::Slots))?),
    ];
    let remembered = looked_at(Kind::Teacher)?;
    let variables = model.variables.all().chain(head.variables.all()).cloned().collect();
    let mut optimizer = Optimizer::new(variables, options.decoder_steps, DECODER_RATE)?;
    for step in 0..options.decoder_steps {
        let drawn = drawn(options.seed ^ 1, step, options.batch);
        let mut documents =
            drawn.map(|number| texts.document(&tokenizer, number)).collect::<Result<Vec<Document>>>()?;
        // What is given teaches English too.
        documents.iter_mut().for_each(|document| document.given = 1);
        let shares = shares(&documents, 0)?;
        let loss = optimizer.step(step, &shares, options.threads, |share| {
            let states = model.states(share)?;
            let (logits, wanted) = next_tokens(&model, &states, share)?;
            let loss = candle_nn::loss::cross_entropy(&logits, &wanted)?;
            match taught(&model, &head, &states, &share.batch, slot, TOKENS_SKIPPED)? {
                None => Ok(loss),
                Some((logits, wanted, part)) => {
                    let teacher = candle_nn::loss::cross_entropy(&logits, &wanted)?;
                    Ok((loss + (teacher * part)?)?)
                }
            }
        })?;
        if is_looked_at(step, options.decoder_steps) {
            for (name, share) in &said {
                let (logits, wanted) = next_tokens(&model, &model.states(share)?, share)?;
                let each = share.batch.lengths.iter().zip(&share.given);
                let lengths: Vec<usize> = each.map(|(all, given)| all - given).collect();
                told(name, step + 1, looked(loss, &logits, &wanted, &lengths)?);
            }
            let batch = &remembered.batch;
            if let Some((logits, wanted, _)) = taught(&model, &head, &model.states(&remembered)?, batch, slot, 1)? {
                let lengths: Vec<usize> = batch.lengths.iter().map(|length| length - 2).collect();
                told("teacher vector", step + 1, looked(loss, &logits, &wanted, &lengths)?);
            }
        }
    }
    write(dir, &model.variables)
}

/// What the teacher vectors of the batch's sequences that end in the slot tell of their texts: logits, tokens, and the share of
/// the batch's sequences that have one. None where no sequence does.
fn taught(
    model: &TrainableDecoder,
    head: &Reconstruction,
    states: &Tensor,
    batch: &Padded,
    slot: u32,
    every: usize,
) -> Result<Option<(Tensor, Tensor, f64)>> {
    let ends = |(_, last): &(usize, &u32)| **last == slot;
    let sequences: Vec<usize> = batch.last.iter().enumerate().filter(ends).map(|(at, _)| at).collect();
    if sequences.is_empty() {
        return Ok(None);
    }
    let rows = sequences.iter().map(|at| (at * batch.shape.1 + batch.lengths[*at] - 1) as u32);
    let vectors = states.index_select(&Tensor::from_iter(rows, &Device::Cpu)?, 0)?;
    // Between the beginning of text and the slot.
    let texts = sequences.iter().map(|at| (*at, 1..batch.lengths[*at] - 1));
    let asked = Asked::new(batch, texts, every);
    let logits = head.logits(&vectors, model.words()?, &asked)?;
    let share = sequences.len() as f64 / batch.lengths.len() as f64;
    Ok(Some((logits, asked.wanted(batch)?, share)))
}

/// Logits and tokens of each sequence behind what is given of it.
fn next_tokens(model: &TrainableDecoder, states: &Tensor, share: &Share) -> Result<(Tensor, Tensor)> {
    let wanted = share.batch.rows_from(&share.given);
    let before: Vec<u32> = wanted.iter().map(|row| row - 1).collect();
    let wanted = Tensor::new(wanted, &Device::Cpu)?;
    Ok((model.logits(states, &before)?, share.batch.ids.index_select(&wanted, 0)?))
}

fn is_looked_at(step: u64, steps: u64) -> bool {
    (step + 1).is_multiple_of(LOOK_EVERY) || step + 1 == steps
}

/// How many of the tokens are the likeliest ones; texts lie end to end, `lengths` tokens each.
fn looked(loss: f64, logits: &Tensor, wanted: &Tensor, lengths: &[usize]) -> Result<Look> {
    let said = logits.argmax(D::Minus1)?.to_vec1::<u32>()?;
    let right: Vec<bool> = said.iter().zip(wanted.to_vec1::<u32>()?).map(|(a, b)| *a == b).collect();
    let mut rest = right.as_slice();
    let whole = lengths.iter().filter(|length| {
        let (text, after) = rest.split_at(**length);
        rest = after;
        text.iter().all(|right| *right)
    });
    Ok(Look {
        loss,
        texts: whole.count() as f64 / lengths.len().max(1) as f64,
        tokens: right.iter().filter(|right| **right).count() as f64 / right.len().max(1) as f64,
    })
}

/// Replaces the folder's random weights, in bf16.
fn write(dir: &Path, variables: &Variables) -> Result<()> {
    variables.write_bf16(&dir.join("model.safetensors"))?;
    let path = dir.join("config.json");
    let failed = Error::io(&path);
    let text = std::fs::read_to_string(&path).map_err(failed)?;
    let mut config: serde_json::Value = serde_json::from_str(&text).map_err(|error| failed(error.into()))?;
    config["dtype"] = "bfloat16".into();
    std::fs::write(&path, format!("{config:#}\n")).map_err(failed)
}

#[cfg(test)]
mod tests;
