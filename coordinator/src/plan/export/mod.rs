//! The `export` stage writes the trained parts as a folder that other programs load.

mod card;

use llink_datasets::role::{Corpus, Part, Role, Side};
use llink_proto::settings::{InstructArm, TextParts};
use llink_proto::task::Kind;
use llink_proto::{Export, ModelRole};

use super::embed::{max_tokens, model_ref, reading_key};
use super::train::{one_task, statistics, the_one};
use super::{
    Inputs, Phase, PlanError, Ranks, StageName, content_of, earlier, fact, instructions_of, json, short_hash, with_role,
};
use crate::job::{JobFile, model_name};

const STAGE: StageName = StageName::Export;
/// The examples that show the usual instruction of each task.
const INSTRUCTIONS: Role = Role::Shard(Corpus::Instructions, Side::Train);

pub(super) fn key_parts(inputs: &Inputs<'_>) -> Result<Vec<String>, PlanError> {
    let models = earlier(STAGE, StageName::Models, inputs)?;
    let embed = &inputs.job.embed;
    let mut parts = vec![
        content_of(earlier(STAGE, StageName::Align, inputs)?, Part::Projector),
        content_of(earlier(STAGE, StageName::Align, inputs)?, Part::Statistics),
        fact(STAGE, models, "encoder.fingerprint")?.into(),
        fact(STAGE, models, "decoder.fingerprint")?.into(),
        // The bundle records the locations of the models.
        json(&(source("encoder", "export/key", inputs)?, source("decoder", "export/key", inputs)?)),
        json(&names(inputs)),
        json(&(embed.max_chars, max_tokens(STAGE, inputs)?)),
        reading_key(STAGE, inputs)?,
        format!("card {}", short_hash(&card::card(inputs)?)),
    ];
    if let Some(section) = &inputs.job.instruct {
        let trained = earlier(STAGE, StageName::Instruct, inputs)?;
        let read = [Part::AdapterConfig, Part::Adapter, Part::Slots, Part::Projector];
        parts.extend(read.map(|part| content_of(trained, part)));
        parts.push(content_of(instructions_of(STAGE, inputs)?, INSTRUCTIONS));
        parts.push(json(&(section.mode, section.max_tokens)));
        if inputs.job.export.merged {
            parts.push("merged".into());
        }
    }
    Ok(parts)
}

pub(super) fn phase(key: &str, inputs: &Inputs<'_>) -> Result<Phase, PlanError> {
    let (encoder_name, decoder_name) = names(inputs);
    let directory = inputs.directory(STAGE, key);
    let mut export = Export {
        directory: directory.clone(),
        projector: Some(super::instruct::projector(STAGE, inputs)?),
        statistics: statistics(STAGE, inputs)?,
        encoder: Some(model_ref(STAGE, inputs, "encoder", ModelRole::Encoder)?),
        decoder: Some(model_ref(STAGE, inputs, "decoder", ModelRole::Decoder)?),
        encoder_name,
        decoder_name,
        encoder_source: source("encoder", &directory, inputs)?,
        decoder_source: source("decoder", &directory, inputs)?,
        max_chars: inputs.job.embed.max_chars,
        max_tokens: max_tokens(STAGE, inputs)?,
        model_card: card::card(inputs)?,
        merged: inputs.job.export.merged,
        ..Export::default()
    };
    if let Some(section) = &inputs.job.instruct {
        let trained = earlier(STAGE, StageName::Instruct, inputs)?;
        export.adapter = Some(the_one(STAGE, trained, Part::Adapter)?);
        export.adapter_config = Some(the_one(STAGE, trained, Part::AdapterConfig)?);
        export.instructions = with_role(instructions_of(STAGE, inputs)?, INSTRUCTIONS);
        match arm(inputs.job) {
            Some(InstructArm::Slots) => {
                export.slots = Some(the_one(STAGE, trained, Part::Slots)?);
                export.numbers = section.numbers;
                TextParts { windows: export.windows, sentences: export.sentences } =
                    section.text_parts().unwrap_or_default();
            }
            Some(InstructArm::Direct) | None => export.text_tokens = section.max_tokens,
        }
    }
    let kind = Kind::Export(export);
    Ok(one_task("write", kind, 1, Ranks::ONE, inputs, "write the bundle"))
}

/// Returns the arm of Stage B that is exported: the first one. The others are only compared with it.
fn arm(job: &JobFile) -> Option<InstructArm> {
    job.instruct.as_ref()?.mode.arms().first().copied()
}

fn names(inputs: &Inputs<'_>) -> (String, String) {
    let (section, models) = (&inputs.job.export, &inputs.job.models);
    let name = |given: &Option<String>, source: &str, role: &str| match (given, source) {
        (Some(given), _) => given.clone(),
        (None, "tiny") => format!("tiny-{role}"),
        (None, source) => model_name(source),
    };
    (name(&section.encoder, &models.encoder.path, "encoder"), name(&section.decoder, &models.decoder.path, "decoder"))
}

/// Returns the location of a model. A model in the job's own output gets a path relative to the bundle's `directory`,
/// so that the output can be moved.
fn source(name: &str, directory: &str, inputs: &Inputs<'_>) -> Result<String, PlanError> {
    let models = earlier(STAGE, StageName::Models, inputs)?;
    let url = fact(STAGE, models, &format!("{name}.url"))?;
    let output = format!("{}/", inputs.job.output.trim_end_matches('/'));
    Ok(match url.strip_prefix(&output) {
        Some(inside) => format!("{}{inside}", "../".repeat(directory.split('/').count())),
        None => url.to_owned(),
    })
}
