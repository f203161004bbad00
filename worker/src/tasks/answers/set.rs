//! The evaluation set of a job: sentences to translate that come from outside its corpus.

use std::collections::HashSet;

use half::f16;
use llink_datasets::instructions::InstructionRow;
use llink_datasets::pairs::{Language, read_texts};
use llink_datasets::read::read_raw_pairs;
use llink_datasets::text::{ZeroWidth, clean_line, comparison_key};
use llink_proto::{Artifact, EvaluationSet};

use super::super::shard::source;
use super::super::{OpenContext, TaskContext};
use super::{TextReader, TextVectors};
use crate::{Error, Result};

/// Sentences per call of the encoder, between which the order to stop is checked.
const CHUNK: usize = 256;

/// Reads the rows of the set, cleaned as all texts are. The second result is the number of rows that cannot be used.
pub(super) fn read(context: &TaskContext, set: &EvaluationSet) -> Result<(Vec<InstructionRow>, u64)> {
    let (mut rows, mut unusable) = (Vec::new(), 0);
    for file in &set.sources {
        for url in std::iter::once(&file.url).chain(&file.foreign_url) {
            context.admit(url)?;
        }
        let (pairs, unread) = context.wait(read_raw_pairs(&source(file)?))?;
        unusable += unread;
        for (english, foreign) in pairs {
            let [english, foreign] = [english, foreign].map(|text| clean_line(&text, ZeroWidth::Keep));
            if english.is_empty() || foreign.is_empty() {
                unusable += 1;
                continue;
            }
            rows.push(InstructionRow {
                id: comparison_key(&foreign),
                task: "translate".into(),
                instruction: set.instruction.clone(),
                foreign,
                english_ref: english.clone(),
                answer: english,
            });
        }
    }
    if rows.is_empty() {
        return Err(Error::Input("`evaluate.set`: holds no pair of sentences".into()));
    }
    Ok((rows, unusable))
}

/// Returns the encoder's vectors of the foreign texts, rounded as cached ones are.
pub(super) fn vectors(context: &TaskContext, reader: &TextReader, rows: &[InstructionRow]) -> Result<TextVectors> {
    let mut found = TextVectors { width: (1 + reader.windows) * reader.encoder.width(), ..TextVectors::default() };
    let mut before = 0;
    for rows in rows.chunks(CHUNK) {
        context.control.check()?;
        let texts: Vec<&str> = rows.iter().map(|row| row.foreign.as_str()).collect();
        for sentences in reader.embed(&texts)? {
            found.rows.push(before..before + sentences.len());
            before += sentences.len();
            found.values.extend(sentences.iter().flatten().map(|x| f16::from_f32(*x).to_f32()));
        }
    }
    Ok(found)
}

/// Returns the number of rows whose foreign text is among the training rows.
pub(super) fn trained_on(context: &OpenContext<'_>, rows: &[InstructionRow], trained: &[Artifact]) -> Result<usize> {
    let mut unseen: HashSet<u64> = rows.iter().map(|row| row.id).collect();
    for shard in trained {
        context.control.check()?;
        let content = context.read(shard)?;
        for text in read_texts(&context.describe(shard), content, Language::Foreign)?.texts {
            unseen.remove(&comparison_key(&text));
        }
    }
    Ok(rows.iter().filter(|row| !unseen.contains(&row.id)).count())
}
