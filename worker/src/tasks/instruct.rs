//! The task of Stage B: gives this rank's instructions, vectors, decoder and checkpoints to the training loop.

use std::collections::HashMap;

use candle_core::DType;
use llink_datasets::instructions::{InstructionRow, read_instructions};
use llink_datasets::role::Part;
use llink_datasets::shown::ShownUrl;
use llink_proto::settings::InstructSettings;
use llink_proto::{Artifact, Instruct, ModelRef, TaskResult};

use super::training::{self, read_first};
use super::{OpenContext, TaskContext, given};
use crate::bundle::{Bundle, BundleFolder};
use crate::collective::Collective;
use crate::llink::projector::Projector;
use crate::llink::slot_expander::median_embedding_norm;
use crate::models::{Decoder, peft};
use crate::train::instruct::data::InstructData;
use crate::train::instruct::options::{InstructArm, InstructOptions};
use crate::train::instruct::state::InstructState;
use crate::train::instruct::{InstructRun, InstructStart, InstructTrained, instruct};
use crate::train::upkeep::Upkeep;
use crate::{Error, Result};

pub(super) fn run(context: &TaskContext, task: &Instruct) -> Result<TaskResult> {
    let settings: InstructSettings = training::settings(&task.settings)?;
    let options = InstructOptions {
        seed: task.seed,
        steps: settings.steps_for(task.instructions.iter().map(|shard| shard.rows).sum()),
        arm: match task.direct {
            true => InstructArm::Direct,
            false => InstructArm::Slots,
        },
        settings,
    };
    let settings = &options.settings;
    let model = given(&task.decoder, "an instruct task without its decoder")?;
    let projector = given(&task.projector, "an instruct task without its projector")?;
    let context = &context.opened()?;
    let decoder = context.models.decoder(context, model)?;
    let projector = read_projector(context, projector)?;
    let data = |shards: &[Artifact], encoder: &[Artifact], teacher: &[Artifact], at_most: usize| {
        let rows = read_rows(context, shards, at_most)?;
        let encoder = read_first(context, encoder, at_most)?;
        let teacher = read_first(context, teacher, at_most)?;
        InstructData::new(&decoder, &options, &rows, encoder, teacher, projector.clone())
    };
    let train = data(&task.instructions, &task.encoder_vectors, &task.teacher_vectors, usize::MAX)?;
    let examples = settings.validation_examples as usize;
    let (encoder, teacher) = (&task.held_out_encoder_vectors, &task.held_out_teacher_vectors);
    let held_out = |_| data(&task.held_out_instructions, encoder, teacher, examples);
    let held_out = settings.validate_every.filter(|_| examples > 0).map(held_out).transpose()?;

    let upkeep = Upkeep::from(settings);
    let (mut collective, mut run, restored) = training::begin(context, &task.directory, upkeep, options.steps)?;
    let resume = restored.map(|r| InstructState::from_safetensors(decoder.config(), &r.name, &r.state)).transpose()?;
    let start = match (&resume, settings.from.as_deref()) {
        (None, Some(url)) => Some(start(context, url, model, &decoder)?),
        _ => None,
    };
    let work = InstructRun {
        options: &options,
        decoder: &decoder,
        median_norm: median_norm(&decoder)?,
        data: &train,
        start,
        resume,
        validation: held_out.as_ref(),
    };
    let trained = instruct(work, &mut collective, &mut run).map_err(|error| run.explain(error))?;

    if collective.rank() > 0 {
        return Ok(TaskResult::default());
    }
    let directory = training::own_directory(context, &task.directory);
    let numbers = (trained.last.as_ref(), ["loss", "sft", "cosine"]);
    let mut result = training::result(context, &directory, run.finish()?, collective.world_size(), numbers)?;
    let artifacts = write(context, &directory, &options, &trained, &model.url)?;
    result.artifacts.splice(0..0, artifacts);
    if train.too_long > 0 {
        result.warnings.push(format!(
            "{} instructions have more than {} tokens and were left out (instruct.max_tokens)",
            train.too_long, settings.max_tokens
        ));
    }
    Ok(result)
}

/// Reads the parts of the bundle at `url`, from which the training starts.
fn start(context: &TaskContext, url: &str, model: &ModelRef, decoder: &Decoder) -> Result<InstructStart> {
    context.admit(url)?;
    let bundle = Bundle::read(&BundleFolder::open(url, &context.runtime)?)?;
    let name = ShownUrl::of(url).to_string();
    let entry = &bundle.config.decoder;
    if entry.fingerprint != model.fingerprint {
        return Err(Error::Input(format!(
            "`instruct.from`: the bundle {name} was made with another decoder ({}, fingerprint {}) than the job's, {}",
            entry.name, entry.fingerprint, model.fingerprint
        )));
    }
    let adapter = bundle.adapter(decoder.config())?;
    let expander = bundle.expander.ok_or_else(|| {
        Error::Input(format!("`instruct.from`: the bundle {name} has no slots, because it was trained in direct mode"))
    })?;
    let windows = bundle.config.slots.as_ref().map_or(0, |slots| slots.windows);
    Ok(InstructStart { bundle: name, adapter, expander, projector: bundle.projector, windows })
}

fn write(
    context: &OpenContext<'_>,
    directory: &str,
    options: &InstructOptions,
    trained: &InstructTrained,
    base_model: &str,
) -> Result<Vec<Artifact>> {
    let put = |name: &str, part: Part, content: Vec<u8>| {
        context.write(&format!("{directory}/{name}"), part, 0, content.into())
    };
    let config = peft::config_json(trained.adapter.options(), base_model);
    let mut artifacts = vec![
        put(peft::ADAPTER_CONFIG, Part::AdapterConfig, config.into_bytes())?,
        put(peft::ADAPTER_MODEL, Part::Adapter, peft::weights(&trained.adapter)?)?,
    ];
    if options.arm == InstructArm::Slots {
        let slots = trained.expander.to_safetensors(HashMap::new())?;
        artifacts.push(put("slots.safetensors", Part::Slots, slots)?);
    }
    if let Some(projector) = &trained.projector {
        let projector = projector.to_safetensors(HashMap::new())?;
        artifacts.push(put("projector.safetensors", Part::Projector, projector)?);
    }
    Ok(artifacts)
}

pub(super) fn read_projector(context: &OpenContext<'_>, artifact: &Artifact) -> Result<Projector> {
    let content = context.read(artifact)?;
    Projector::from_safetensors(&context.describe(artifact), &content)
}

/// Reads the first rows of several shards of instructions.
pub(super) fn read_rows(context: &OpenContext<'_>, shards: &[Artifact], at_most: usize) -> Result<Vec<InstructionRow>> {
    let mut rows = Vec::new();
    for shard in shards {
        if rows.len() >= at_most {
            break;
        }
        context.control.check()?;
        rows.extend(read_instructions(&context.describe(shard), context.read(shard)?)?);
    }
    rows.truncate(at_most);
    Ok(rows)
}

/// Returns the lower median of the norms of the decoder's token embeddings.
fn median_norm(decoder: &Decoder) -> Result<f32> {
    let embedding = decoder.embedding()?;
    if embedding.device().is_cpu() {
        let values = embedding.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        return median_embedding_norm(&values, decoder.hidden_size());
    }
    // The norms are computed on the device.
    let norms = embedding.to_dtype(DType::F32)?.sqr()?.sum(1)?.sqrt()?;
    median_embedding_norm(&norms.to_vec1()?, 1)
}
