//! The `instruct` stage, and what `evaluate` needs of its results.

use llink_proto::task::Kind;
use llink_proto::{Answers, Artifact, Instruct, InstructOptions, ModelRole, TaskResult, Upkeep};

use super::embed::model_ref;
use super::train::{one_task, the_one};
use super::{
    Inputs, Phase, PlanError, Ranks, StageName, content, content_of, earlier, fact, instructions_of, json, manifest_of,
    with_role,
};
use crate::job::{InstructArm, InstructMode, InstructSection};

const STAGE: StageName = StageName::Instruct;

fn section<'a>(inputs: &Inputs<'a>) -> Result<&'a InstructSection, PlanError> {
    inputs.job.instruct.as_ref().ok_or_else(|| PlanError {
        stage: STAGE,
        reason: "the job has no [instruct]".into(),
    })
}

pub(super) fn key_parts(inputs: &Inputs<'_>) -> Result<Vec<String>, PlanError> {
    // The checkpoint and validation intervals and the number of ranks change the result only by rounding.
    let standard = InstructSection::default();
    let section = InstructSection {
        token_budget: standard.token_budget,
        recompute: standard.recompute,
        checkpoint_every: standard.checkpoint_every,
        checkpoint_minutes: standard.checkpoint_minutes,
        checkpoints_kept: standard.checkpoints_kept,
        validate_every: standard.validate_every,
        validation_examples: standard.validation_examples,
        step_timeout_s: standard.step_timeout_s,
        min_ranks: standard.min_ranks,
        max_ranks: standard.max_ranks,
        ..section(inputs)?.clone()
    };
    Ok(vec![
        content(instructions_of(STAGE, inputs)?),
        fact(STAGE, earlier(STAGE, StageName::Models, inputs)?, "decoder.fingerprint")?.into(),
        content(earlier(STAGE, StageName::Embed, inputs)?),
        content_of(earlier(STAGE, StageName::Align, inputs)?, "projector"),
        json(&section),
        format!("seed {}", inputs.job.seed),
    ])
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
    let instructions = with_role(instructions_of(STAGE, inputs)?, "instructions/train");
    let rows: u64 = instructions.iter().map(|a| a.rows).sum();
    let steps = section.steps_for(rows);
    let held_out = |manifest, role: &str| match section.validate_every {
        0 => Vec::new(),
        _ => with_role(manifest, role),
    };
    let kind = Kind::Instruct(Instruct {
        encoder_vectors: with_role(embed, "embeddings/encoder/instructions-train"),
        teacher_vectors: with_role(embed, "embeddings/teacher/instructions-train"),
        instructions,
        projector: Some(the_one(STAGE, earlier(STAGE, StageName::Align, inputs)?, "projector")?),
        decoder: Some(model_ref(STAGE, inputs, "decoder", ModelRole::Decoder)?),
        options: Some(options(section, *arm, steps, inputs.job.seed)),
        directory: match is_second(*arm, section.mode) {
            true => format!("{}/direct", inputs.directory(STAGE, key)),
            false => inputs.directory(STAGE, key),
        },
        upkeep: Some(Upkeep {
            checkpoint_steps: section.checkpoint_every,
            checkpoint_seconds: section.checkpoint_minutes * 60.0,
            checkpoints_kept: section.checkpoints_kept,
            validate_steps: section.validate_every,
            step_timeout_s: section.step_timeout_s,
        }),
        held_out_instructions: held_out(instructions_of(STAGE, inputs)?, "instructions/validation"),
        held_out_encoder_vectors: held_out(embed, "embeddings/encoder/instructions-validation"),
        held_out_teacher_vectors: held_out(embed, "embeddings/teacher/instructions-validation"),
        validation_examples: match section.validate_every {
            0 => 0,
            _ => section.validation_examples,
        },
        token_budget: section.token_budget,
        recompute: section.recompute,
        max_tokens: section.max_tokens,
    });
    let ranks = Ranks {
        min: section.min_ranks,
        max: section.max_ranks,
    };
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
        result
            .artifacts
            .iter_mut()
            .for_each(|artifact| artifact.role.insert_str(0, "direct-"));
        let figures = result.figures.into_iter();
        result.figures = figures.map(|(name, value)| (format!("direct.{name}"), value)).collect();
    }
    result
}

fn options(section: &InstructSection, arm: InstructArm, steps: u64, seed: u64) -> InstructOptions {
    InstructOptions {
        seed,
        steps,
        batch: section.batch,
        direct: arm == InstructArm::Direct,
        slots: section.slots,
        expander_hidden: section.expander_hidden,
        lora_rank: section.lora_rank,
        lora_alpha: section.lora_alpha,
        lora_dropout: section.lora_dropout,
        learning_rate: section.learning_rate,
        expander_learning_rate: section.expander_learning_rate,
        scale_learning_rate: section.scale_learning_rate,
        projector_learning_rate: section.projector_learning_rate,
        warmup_share: section.warmup_share,
        weight_decay: section.weight_decay,
        beta1: section.beta1,
        beta2: section.beta2,
        gradient_clip: section.gradient_clip,
        usage_every: section.usage_every,
        usage_weight: section.usage_weight,
        cosine_weight: section.cosine_weight,
        info_nce_weight: section.info_nce_weight,
        info_nce_temperature: section.info_nce_temperature,
    }
}

/// Returns the projector from which Stage B's slots are expanded: Stage B's own if it trained one, otherwise Stage A's.
pub(super) fn projector(stage: StageName, inputs: &Inputs<'_>) -> Result<Artifact, PlanError> {
    let own = match inputs.job.instruct {
        Some(_) => with_role(earlier(stage, STAGE, inputs)?, "projector")
            .into_iter()
            .next(),
        None => None,
    };
    match own {
        Some(projector) => Ok(projector),
        None => the_one(stage, earlier(stage, StageName::Align, inputs)?, "projector"),
    }
}

/// Returns the results of Stage B that `evaluate` reads, as text for its key.
pub(super) fn evaluated(inputs: &Inputs<'_>) -> Result<String, PlanError> {
    if inputs.job.instruct.is_none() {
        return Ok(String::new());
    }
    let manifest = earlier(StageName::Evaluate, STAGE, inputs)?;
    let roles = [
        "adapter-config",
        "adapter",
        "slots",
        "projector",
        "direct-adapter-config",
        "direct-adapter",
    ];
    Ok(roles.map(|role| content_of(manifest, role)).join("\n"))
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
    let embed = earlier(stage, StageName::Embed, inputs)?;
    let second = |role: &str| match section.mode {
        InstructMode::Both => the_one(stage, trained, role).map(Some),
        InstructMode::Slots | InstructMode::Direct => Ok(None),
    };
    Ok(Some(Answers {
        instructions: with_role(instructions_of(stage, inputs)?, "instructions/validation"),
        encoder_vectors: with_role(embed, "embeddings/encoder/instructions-validation"),
        adapter: Some(the_one(stage, trained, "adapter")?),
        adapter_config: Some(the_one(stage, trained, "adapter-config")?),
        slots: match section.mode {
            InstructMode::Slots | InstructMode::Both => Some(the_one(stage, trained, "slots")?),
            InstructMode::Direct => None,
        },
        projector: with_role(trained, "projector").into_iter().next(),
        direct_adapter: second("direct-adapter")?,
        direct_adapter_config: second("direct-adapter-config")?,
        examples: evaluate.answers,
        max_answer_tokens: evaluate.max_answer_tokens,
        max_tokens: section.max_tokens,
        path: format!("{directory}/answers.jsonl"),
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
