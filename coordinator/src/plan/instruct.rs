//! The `instruct` stage, and what `evaluate` needs of its results.

use llink_datasets::role::{Corpus, Part, Role, Side, Tower};
use llink_proto::settings::{InstructArm, InstructMode, InstructSettings};
use llink_proto::task::Kind;
use llink_proto::{Answers, Artifact, EvaluationSet, Instruct, ModelRole, TaskResult};

use super::embed::{model_ref, settings};
use super::train::{one_task, the_one};
use super::windows::of_instructions;
use super::{
    Inputs, Phase, PlanError, Ranks, StageName, content, content_of, content_where, earlier, fact, instructions_of,
    json, manifest_of, with_role,
};
use crate::job::SourceEntry;

const STAGE: StageName = StageName::Instruct;

fn section<'a>(inputs: &Inputs<'a>) -> Result<&'a InstructSettings, PlanError> {
    inputs.job.instruct.as_ref().ok_or_else(|| PlanError { stage: STAGE, reason: "the job has no [instruct]".into() })
}

pub(super) fn key_parts(inputs: &Inputs<'_>) -> Result<Vec<String>, PlanError> {
    let section = section(inputs)?;
    let mut parts = vec![
        content(instructions_of(STAGE, inputs)?),
        fact(STAGE, earlier(STAGE, StageName::Models, inputs)?, "decoder.fingerprint")?.into(),
        content(earlier(STAGE, StageName::Embed, inputs)?),
        content_of(earlier(STAGE, StageName::Align, inputs)?, Part::Projector),
        json(&section.deciding()),
        format!("seed {}", inputs.job.seed),
    ];
    if section.text_parts().is_some() {
        // The stage's other vectors are of pairs, which only `evaluate` reads.
        let windows = earlier(STAGE, StageName::Windows, inputs)?;
        parts.push(content_where(windows, |role| role.contains("/instructions-")));
    }
    if let Some(url) = &section.from {
        let stamp = inputs.stamps.get(url).map_or("", String::as_str);
        parts.push(format!("from {stamp}"));
    }
    Ok(parts)
}

pub(super) fn phase(key: &str, inputs: &Inputs<'_>, results: &[Vec<TaskResult>]) -> Result<Phase, PlanError> {
    let section = section(inputs)?;
    let arms = section.mode.arms();
    let Some(arm) = arms.get(results.len()) else {
        let trained = results.iter().flatten().zip(arms);
        let trained: Vec<TaskResult> = trained.map(|(result, arm)| named(result, *arm, section.mode)).collect();
        return Ok(Phase::Complete(manifest_of(STAGE, key, &trained)));
    };
    let embed = earlier(STAGE, StageName::Embed, inputs)?;
    let align = earlier(STAGE, StageName::Align, inputs)?;
    let all = instructions_of(STAGE, inputs)?;
    let encoder = |side| of_instructions(STAGE, inputs, side);
    let teacher = |side| with_role(embed, Role::Vectors(Tower::Teacher, Corpus::Instructions, side));
    let instructions = with_role(all, Role::Shard(Corpus::Instructions, Side::Train));
    let rows: u64 = instructions.iter().map(|a| a.rows).sum();
    let steps = section.steps_for(rows);
    let held_out = |artifacts| match section.validate_every {
        None => Vec::new(),
        Some(_) => artifacts,
    };
    let kind = Kind::Instruct(Instruct {
        encoder_vectors: encoder(Side::Train)?,
        teacher_vectors: teacher(Side::Train),
        instructions,
        projector: Some(the_one(STAGE, align, Part::Projector)?),
        decoder: Some(model_ref(STAGE, inputs, "decoder", ModelRole::Decoder)?),
        settings: json(section),
        seed: inputs.job.seed,
        direct: *arm == InstructArm::Direct,
        directory: match is_second(*arm, section.mode) {
            true => format!("{}/direct", inputs.directory(STAGE, key)),
            false => inputs.directory(STAGE, key),
        },
        held_out_instructions: held_out(with_role(all, Role::Shard(Corpus::Instructions, Side::Holdout))),
        held_out_encoder_vectors: held_out(encoder(Side::Holdout)?),
        held_out_teacher_vectors: held_out(teacher(Side::Holdout)),
    });
    let ranks = Ranks { min: section.min_ranks, max: section.max_ranks };
    let (phase, label) = match arm {
        InstructArm::Slots => ("slots", "train slots and adapter"),
        InstructArm::Direct => ("direct", "train an adapter on the foreign text itself"),
    };
    Ok(one_task(phase, kind, steps, ranks, inputs, label))
}

/// Returns true if this arm is trained in addition to the slots of a job.
fn is_second(arm: InstructArm, mode: InstructMode) -> bool {
    arm == InstructArm::Direct && mode == InstructMode::Both
}

/// Renames the result of an arm as in the stage's manifest: the names of a second arm begin with `direct`.
fn named(result: &TaskResult, arm: InstructArm, mode: InstructMode) -> TaskResult {
    let mut result = result.clone();
    if is_second(arm, mode) {
        for artifact in &mut result.artifacts {
            if let Role::Trained(part) = artifact.role.as_str().into() {
                artifact.role = Role::Direct(part).into();
            }
        }
        let figures = result.figures.into_iter();
        result.figures = figures.map(|(name, value)| (format!("direct.{name}"), value)).collect();
    }
    result
}

/// Returns the projector from which Stage B's slots are expanded: Stage B's own if it trained one, otherwise Stage A's.
pub(super) fn projector(stage: StageName, inputs: &Inputs<'_>) -> Result<Artifact, PlanError> {
    let own = match inputs.job.instruct {
        Some(_) => with_role(earlier(stage, STAGE, inputs)?, Part::Projector).into_iter().next(),
        None => None,
    };
    match own {
        Some(projector) => Ok(projector),
        None => the_one(stage, earlier(stage, StageName::Align, inputs)?, Part::Projector),
    }
}

/// Returns the results of Stage B that `evaluate` reads, as text for its key.
pub(super) fn evaluated(inputs: &Inputs<'_>) -> Result<String, PlanError> {
    if inputs.job.instruct.is_none() {
        return Ok(String::new());
    }
    let manifest = earlier(StageName::Evaluate, STAGE, inputs)?;
    let first = [Part::AdapterConfig, Part::Adapter, Part::Slots, Part::Projector].map(Role::Trained);
    let second = [Part::AdapterConfig, Part::Adapter].map(Role::Direct);
    let roles = first.into_iter().chain(second);
    let contents: Vec<String> = roles.map(|role| content_of(manifest, role)).collect();
    Ok(contents.join("\n"))
}

/// Returns the task for the answers that `evaluate` generates into `directory`.
pub(super) fn answers(directory: &str, inputs: &Inputs<'_>) -> Result<Option<Answers>, PlanError> {
    let stage = StageName::Evaluate;
    let Some(section) = &inputs.job.instruct else {
        return Ok(None);
    };
    let evaluate = &inputs.job.evaluate;
    if evaluate.answers == 0 {
        return Ok(None);
    }
    let trained = earlier(stage, STAGE, inputs)?;
    let (all, side) = (instructions_of(stage, inputs)?, Side::Holdout);
    let second = |part| match section.mode {
        InstructMode::Both => the_one(stage, trained, Role::Direct(part)).map(Some),
        InstructMode::Slots | InstructMode::Direct => Ok(None),
    };
    Ok(Some(Answers {
        instructions: with_role(all, Role::Shard(Corpus::Instructions, side)),
        encoder_vectors: of_instructions(stage, inputs, side)?,
        adapter: Some(the_one(stage, trained, Part::Adapter)?),
        adapter_config: Some(the_one(stage, trained, Part::AdapterConfig)?),
        slots: match section.mode {
            InstructMode::Slots | InstructMode::Both => Some(the_one(stage, trained, Part::Slots)?),
            InstructMode::Direct => None,
        },
        projector: with_role(trained, Part::Projector).into_iter().next(),
        direct_adapter: second(Part::Adapter)?,
        direct_adapter_config: second(Part::AdapterConfig)?,
        examples: evaluate.answers,
        max_answer_tokens: evaluate.max_answer_tokens,
        max_tokens: section.max_tokens,
        numbers: section.numbers,
        sentences: section.text_parts().unwrap_or_default().sentences,
        base: evaluate.base,
        path: format!("{directory}/answers.jsonl"),
        set: set(directory, inputs)?,
        encoder: match section.mode {
            InstructMode::Slots | InstructMode::Both => Some(model_ref(stage, inputs, "encoder", ModelRole::Encoder)?),
            InstructMode::Direct => None,
        },
        embed_settings: settings(stage, inputs)?,
        trained_as_pairs: match inputs.job.synthesize {
            // Synthesized validation examples are made from held-out pairs.
            Some(_) => 0,
            None => {
                let counts = &earlier(stage, StageName::Shard, inputs)?.counts;
                counts.get("instructions.split.trained_as_pairs").copied().unwrap_or(0)
            }
        },
    }))
}

fn set(directory: &str, inputs: &Inputs<'_>) -> Result<Option<EvaluationSet>, PlanError> {
    let stage = StageName::Evaluate;
    let evaluate = &inputs.job.evaluate;
    let Some(sources) = &evaluate.set else {
        return Ok(None);
    };
    let train = |manifest, corpus| with_role(manifest, Role::Shard(corpus, Side::Train));
    let pairs = train(earlier(stage, StageName::Shard, inputs)?, Corpus::Pairs);
    let instructions = train(instructions_of(stage, inputs)?, Corpus::Instructions);
    let source = |entry: &SourceEntry| super::shard::source(entry, &SourceEntry::default(), entry.name());
    Ok(Some(EvaluationSet {
        sources: sources.as_slice().iter().map(source).collect(),
        instruction: evaluate.set_instruction.clone(),
        path: format!("{directory}/set-answers.jsonl"),
        trained: pairs.into_iter().chain(instructions).collect(),
    }))
}
