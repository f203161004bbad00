//! Describes each stage from the job file alone, for a plan that is shown before anything has run.

use llink_datasets::measured::thousands;
use llink_proto::settings::{InstructSettings, TextParts};

use super::StageName;
use crate::job::{InstructionsSection, JobFile, SourceEntry, Sources, SynthesizeSection};

/// The most sources that are named; the rest is counted.
const SOURCES_NAMED: usize = 4;

/// Returns what is known of `stage` before it is planned, one item on each line.
pub fn outline(stage: StageName, job: &JobFile) -> Vec<String> {
    match stage {
        StageName::Shard => {
            let pairs = &job.corpus;
            let instructions = job.instructions.as_ref();
            let pairs = format!(
                "pairs: {}, {} held out, from {}",
                training_rows(pairs.train_pairs),
                thousands(pairs.holdout_pairs),
                listed(&pairs.source)
            );
            std::iter::once(pairs).chain(instructions.map(instruction_rows)).collect()
        }
        StageName::Synthesize => job.synthesize.iter().map(synthesized).collect(),
        StageName::Models => {
            vec![format!("encoder: {}", job.models.encoder.path), format!("decoder: {}", job.models.decoder.path)]
        }
        StageName::Embed => vec![embedded(job), format!("teacher: {}", job.embed.teacher)],
        StageName::Baseline => vec!["English sentences through the encoder, as a baseline for retrieval".to_owned()],
        StageName::Windows => super::windows::wanted(job).into_iter().map(parts).collect(),
        StageName::Align => {
            let a = &job.align;
            let margin = job.cleaning.margin;
            let margin = margin.map(|least| format!("training pairs with a margin below {least} are left out"));
            let training = [
                format!(
                    "{} steps of {} pairs, {} hard negatives from a queue of {}",
                    thousands(a.steps),
                    thousands(a.batch.into()),
                    thousands(a.hard_negatives.into()),
                    thousands(a.queue.into())
                ),
                format!("recipe: {}", job.recipe),
            ];
            margin.into_iter().chain(training).collect()
        }
        StageName::Instruct => job.instruct.iter().map(|section| trained(section, job)).collect(),
        StageName::Evaluate => measured(job),
        StageName::Export => vec![match job.instruct {
            Some(_) => "projector, slots and adapter as a bundle, with a model card".to_owned(),
            None => "the projector as a bundle, with a model card".to_owned(),
        }],
    }
}

fn parts(TextParts { windows, sentences }: TextParts) -> String {
    let of = match sentences {
        0 => "each instruction's foreign text".to_owned(),
        most => format!("up to {most} sentences of each instruction's foreign text"),
    };
    match windows {
        0 => format!("{of} through the encoder"),
        windows => format!("{windows} windows of {of} through the encoder"),
    }
}

fn training_rows(rows: u64) -> String {
    match rows {
        0 => "all there are to train on".to_owned(),
        rows => format!("{} to train on", thousands(rows)),
    }
}

fn listed(sources: &Sources) -> String {
    let sources = sources.as_slice();
    let named: Vec<&str> = sources.iter().take(SOURCES_NAMED).map(SourceEntry::name).collect();
    let more = sources.len() - named.len();
    match more {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

fn instruction_rows(section: &InstructionsSection) -> String {
    format!(
        "instructions: {}, {} for validation, from {}",
        training_rows(section.train),
        thousands(section.validation),
        listed(&section.source)
    )
}

fn synthesized(section: &SynthesizeSection) -> String {
    format!(
        "{} examples to train on and {} for validation, by {}",
        thousands(section.train),
        thousands(section.validation),
        section.model
    )
}

fn instructions(job: &JobFile) -> Option<(u64, u64)> {
    job.instruct.as_ref()?;
    match (&job.synthesize, &job.instructions) {
        (Some(section), _) => Some((section.train, section.validation)),
        (None, Some(section)) => Some((section.train, section.validation)),
        (None, None) => None,
    }
}

fn embedded(job: &JobFile) -> String {
    let (train, holdout) = (job.corpus.train_pairs, job.corpus.holdout_pairs);
    let (examples, validation) = instructions(job).unwrap_or_default();
    let examples_are_counted = examples > 0 || instructions(job).is_none();
    if train == 0 || !examples_are_counted {
        return "every sentence through encoder and teacher; how many there are is not known yet".to_owned();
    }
    let sentences = train + holdout + examples + validation;
    format!("at most {} sentences through the encoder and as many through the teacher", thousands(sentences))
}

fn trained(section: &InstructSettings, job: &JobFile) -> String {
    let batch = thousands(section.batch.into());
    let rows = instructions(job).map_or(0, |(train, _)| train);
    let epochs = match section.epochs {
        1.0 => "1 epoch".to_owned(),
        epochs => format!("{epochs} epochs"),
    };
    let steps = match (section.steps, rows) {
        (None, 0) => format!("{epochs} in steps of {batch} examples"),
        (None, rows) => format!(
            "at most {} steps of {batch} examples: {epochs} of {}",
            thousands(section.steps_for(rows)),
            thousands(rows)
        ),
        (Some(steps), _) => format!("{} steps of {batch} examples", thousands(steps)),
    };
    match section.mode.arms().len() {
        1 if section.from.is_some() => format!("{steps}, from the parts of a bundle"),
        1 => steps,
        arms => format!("{steps}, {arms} times: with slots, then on the text itself"),
    }
}

fn measured(job: &JobFile) -> Vec<String> {
    let evaluate = &job.evaluate;
    let pairs = evaluate.benchmark_pairs.min(job.corpus.holdout_pairs);
    let mut lines = vec![format!("retrieval among {} held-out pairs", thousands(pairs))];
    if let Some((_, validation)) = instructions(job).filter(|_| evaluate.answers > 0) {
        let answers = u64::from(evaluate.answers).min(validation);
        lines.push(format!("answers to {} held-out instructions", thousands(answers)));
    }
    if let Some(set) = &evaluate.set {
        lines.push(format!("translations of {}", listed(set)));
    }
    if let Some(judge) = &evaluate.judge {
        lines.push(format!("answers compared by {}", judge.model));
    }
    lines
}
