//! A corpus and models for jobs without data: what the quickstart needs and no other job.
//!
//! [`sample`] makes up English-Khmer sentences and instructions about them. [`models`] holds tiny models that know these
//! sentences, and makes models with random weights. `examples/pretrain` trained the tiny models. The programs hand
//! [`Quickstart`] to their workers.

pub mod models;
pub mod normal;
pub mod sample;

use std::fmt::Display;

use llink_datasets::built_in::{BuiltIn, MadeRows, ModelFiles};
use llink_datasets::read::RawRow;
use llink_datasets::rows::Corpus;
use llink_datasets::{Error, Result};

use models::Shape;

/// The models that come with llink and know the grammar of the sample corpus.
const TINY: &str = "tiny";
/// The models with random weights, whose tokenizers are learned from the job's text.
const RANDOM: &str = "random";

/// The sample corpus, and the models `tiny` and `random`.
#[derive(Debug, Clone, Copy)]
pub struct Quickstart;

impl BuiltIn for Quickstart {
    fn rows(&self, corpus: Corpus, rows: u64, seed: u64) -> Result<MadeRows> {
        let most = match corpus {
            Corpus::Pairs => sample::most_pairs(),
            Corpus::Instructions => sample::most_instructions(),
        };
        if rows == 0 || rows > most {
            let reason = format!("can make 1 to {most} distinct rows, not {rows}");
            return Err(refused(sample::SOURCE, reason));
        }
        Ok(match corpus {
            Corpus::Pairs => {
                let pairs = sample::pairs(most, seed);
                Box::new(pairs.map(|(english, foreign)| RawRow::Pair { english, foreign }))
            }
            Corpus::Instructions => Box::new(sample::instructions(most, seed).map(RawRow::Instruction)),
        })
    }

    fn encoder(&self, name: &str, texts: Vec<String>, seed: u64) -> Result<ModelFiles> {
        match name {
            TINY => Ok(models::tiny_encoder()),
            RANDOM => models::random_encoder(texts.into_iter(), seed, Shape::ENCODER),
            _ => Err(unknown(name)),
        }
    }

    fn decoder(&self, name: &str, texts: Vec<String>, seed: u64) -> Result<ModelFiles> {
        match name {
            TINY => Ok(models::tiny_decoder()),
            RANDOM => models::random_decoder(texts.into_iter(), seed, Shape::DECODER),
            _ => Err(unknown(name)),
        }
    }
}

fn unknown(name: &str) -> Error {
    refused(name, "no model that llink makes has this name")
}

fn refused(name: &str, reason: impl Display) -> Error {
    Error::Content { path: name.to_owned(), reason: reason.to_string() }
}
