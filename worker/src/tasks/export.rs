//! Writes the trained parts as a bundle, and loads it again before the task ends.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use llink_datasets::numbers::Rules;
use llink_datasets::role::{Part, Role};
use llink_datasets::text::SentenceRules;
use llink_proto::{Artifact, Export, ModelRef, TaskResult};

use super::instruct::{read_projector, read_rows};
use super::models::{folder, reading_of};
use super::{OpenContext, TaskContext, given};
use crate::bundle::config::{
    AdapterEntry, BUNDLE_VERSION, CARD, CONFIG, DecoderEntry, EncoderEntry, MERGED, MODEL_TYPE, PROJECTOR,
    ProjectorEntry, PromptEntry, SLOTS, STATISTICS, SlotsEntry, StatisticsEntry,
};
use crate::bundle::{Bundle, BundleConfig, BundleFolder};
use crate::llink::projector::Projector;
use crate::llink::slot_expander::SlotExpander;
use crate::llink::statistics::Statistics;
use crate::models::lora::LoraAdapter;
use crate::models::merged::MergedWeights;
use crate::models::{Decoder, LoadedAdapter, peft};
use crate::numerics::random::uniform;
use crate::{Error, Result};

/// The most bytes of merged weights in one file, and so in memory, but for a single tensor that is larger.
const MERGED_FILE_BYTES: usize = 512 << 20;
/// The largest difference between loaded and trained numbers, relative to the largest number.
const TOLERANCE: f32 = 1e-6;
/// An instruction is usual if at least one in this many examples of its task has it.
const USUAL: usize = 10;
/// The text on which the adapters are compared.
const PROBE: &str = "Translate the following text into English.";

/// The trained parts of the earlier stages.
struct Trained {
    projector: Projector,
    projector_file: Bytes,
    /// The statistics; none if Stage A fitted nothing.
    statistics: Option<(Statistics, Bytes)>,
    /// The adapter; none without Stage B.
    adapter: Option<(LoraAdapter, Bytes)>,
    /// The slot expander; none in direct mode.
    slots: Option<(SlotExpander, Bytes)>,
}

pub(super) fn run(context: &TaskContext, task: &Export) -> Result<TaskResult> {
    let model = given(&task.decoder, "an export task without its decoder")?;
    let encoder = given(&task.encoder, "an export task without its encoder")?;
    let projector = given(&task.projector, "an export task without its projector")?;
    let context = &context.opened()?;
    let decoder = context.models.decoder(context, model)?;
    let trained = read_trained(context, task, projector, &decoder)?;
    let instructions = instructions(context, task)?;
    let config = config(task, &trained, encoder, model, &decoder, instructions)?;

    let mut result = TaskResult::default();
    let mut put = |name: &str, part: Part, content: Bytes| -> Result<()> {
        context.control.check()?;
        let path = format!("{}/{name}", task.directory);
        result.artifacts.push(context.write(&path, Role::Bundle(part), 0, content)?);
        Ok(())
    };
    put(CONFIG, Part::Config, config.text().into())?;
    put(PROJECTOR, Part::Projector, trained.projector_file.clone())?;
    if let Some((_, file)) = &trained.statistics {
        put(STATISTICS, Part::Statistics, file.clone())?;
    }
    if let Some((_, file)) = &trained.slots {
        put(SLOTS, Part::Slots, file.clone())?;
    }
    if let Some((adapter, file)) = &trained.adapter {
        let options = peft::config_json(adapter.options(), &task.decoder_name);
        put(peft::ADAPTER_CONFIG, Part::AdapterConfig, options.into())?;
        put(peft::ADAPTER_MODEL, Part::Adapter, file.clone())?;
    }
    if task.merged {
        let (adapter, _) = given(&trained.adapter, "an export task without its adapter")?;
        put_merged(&folder(context, model)?, adapter, &mut put)?;
    }
    put(CARD, Part::Card, task.model_card.clone().into())?;

    let folder = BundleFolder::of(&context.store, &context.runtime, &task.directory, &result.artifacts);
    check(&Bundle::read(&folder)?, &trained, &decoder, &folder)?;
    context.control.advance(1, 1);
    Ok(result)
}

/// Writes the decoder in `decoder` with the adapter folded in, and its other files as they are.
fn put_merged(
    decoder: &Path,
    adapter: &LoraAdapter,
    put: &mut dyn FnMut(&str, Part, Bytes) -> Result<()>,
) -> Result<()> {
    let mut put = |name: &str, content: Bytes| put(&format!("{MERGED}/{name}"), Part::Merged, content);
    let weights = MergedWeights::open(decoder, adapter)?;
    let files = weights.files(MERGED_FILE_BYTES);
    for (file, names) in &files {
        put(file, weights.content(names)?.into())?;
    }
    if files.len() > 1 {
        let (name, index) = weights.index(&files);
        put(name, index.into())?;
    }
    let io = |path: &Path| {
        let path = path.display().to_string();
        move |source| Error::Io { path, source }
    };
    let entries = std::fs::read_dir(decoder).map_err(io(decoder))?;
    let paths = entries.map(|entry| Ok(entry.map_err(io(decoder))?.path()));
    let mut paths = paths.collect::<Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if is_description(name) && path.is_file() {
            put(name, std::fs::read(&path).map_err(io(&path))?.into())?;
        }
    }
    Ok(())
}

/// Whether a decoder's file describes the model or its tokenizer, or is its license.
fn is_description(name: &str) -> bool {
    let is_text = [".json", ".jinja", ".txt", ".model"].iter().any(|end| name.ends_with(end));
    let is_license = name.starts_with("LICENSE") || name.starts_with("NOTICE");
    (is_text || is_license) && !name.ends_with(".index.json") && !name.starts_with('.')
}

fn read_trained(context: &OpenContext<'_>, task: &Export, projector: &Artifact, decoder: &Decoder) -> Result<Trained> {
    let adapter = match (&task.adapter, &task.adapter_config) {
        (Some(weights), Some(options)) => {
            let name = context.describe(weights);
            let (options, weights) = (context.read(options)?, context.read(weights)?);
            let adapter = peft::read(decoder.config(), &name, &options, &weights)?;
            Some((adapter, weights))
        }
        _ => None,
    };
    Ok(Trained {
        statistics: read_part(context, &task.statistics, Statistics::from_safetensors)?,
        projector: read_projector(context, projector)?,
        projector_file: context.read(projector)?,
        adapter,
        slots: read_part(context, &task.slots, SlotExpander::from_safetensors)?,
    })
}

/// Reads a part and its file, if there is one.
fn read_part<T>(
    context: &OpenContext<'_>,
    artifact: &Option<Artifact>,
    parse: impl FnOnce(&str, &[u8]) -> Result<T>,
) -> Result<Option<(T, Bytes)>> {
    let Some(artifact) = artifact else { return Ok(None) };
    let content = context.read(artifact)?;
    Ok(Some((parse(&context.describe(artifact), &content)?, content)))
}

/// Returns the most frequent instruction of each task; of equally frequent ones, the first in order. A task whose
/// examples all have their own instruction, like questions, has none.
fn instructions(context: &OpenContext<'_>, task: &Export) -> Result<BTreeMap<String, String>> {
    let mut tasks: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    for row in read_rows(context, &task.instructions, usize::MAX)? {
        *tasks.entry(row.task).or_default().entry(row.instruction).or_default() += 1;
    }
    let usual = |counts: BTreeMap<String, usize>| {
        let examples: usize = counts.values().sum();
        let most = counts.into_iter().rev().max_by_key(|(_, count)| *count)?;
        (most.1 * USUAL >= examples).then_some(most.0)
    };
    let named = tasks.into_iter().filter_map(|(task, counts)| Some((task, usual(counts)?)));
    Ok(named.collect())
}

fn config(
    task: &Export,
    trained: &Trained,
    encoder: &ModelRef,
    decoder: &ModelRef,
    loaded: &Decoder,
    instructions: BTreeMap<String, String>,
) -> Result<BundleConfig> {
    let shape = trained.projector.shape();
    let slots = trained.slots.as_ref().map(|(expander, _)| {
        let shape = expander.shape();
        SlotsEntry {
            file: SLOTS.into(),
            count: shape.slots,
            hidden_size: shape.hidden,
            ids: loaded.chat().slot_ids(shape.slots).to_vec(),
            median_norm: expander.median_norm(),
            windows: task.windows as usize,
            sentences: (task.sentences > 0).then(|| SentenceRules::new(task.sentences as usize)),
        }
    });
    let adapter = trained.adapter.as_ref().map(|(adapter, _)| AdapterEntry {
        config: peft::ADAPTER_CONFIG.into(),
        file: peft::ADAPTER_MODEL.into(),
        rank: adapter.options().rank,
        alpha: adapter.options().alpha,
    });
    let direct = slots.is_none();
    Ok(BundleConfig {
        model_type: MODEL_TYPE.into(),
        bundle_version: BUNDLE_VERSION,
        llink_version: env!("CARGO_PKG_VERSION").into(),
        encoder: EncoderEntry {
            name: task.encoder_name.clone(),
            source: task.encoder_source.clone(),
            fingerprint: encoder.fingerprint.clone(),
            hidden_size: shape.input,
            max_chars: task.max_chars as usize,
            max_tokens: task.max_tokens as usize,
            reading: reading_of(encoder)?,
        },
        decoder: DecoderEntry {
            name: task.decoder_name.clone(),
            source: task.decoder_source.clone(),
            fingerprint: decoder.fingerprint.clone(),
            hidden_size: shape.output,
        },
        projector: ProjectorEntry { file: PROJECTOR.into(), hidden_size: shape.hidden },
        statistics: trained
            .statistics
            .as_ref()
            .map(|(statistics, _)| StatisticsEntry { file: STATISTICS.into(), metric: statistics.metric() }),
        prompt: adapter.as_ref().map(|_| PromptEntry {
            form: loaded.chat().form().text(if direct { "{text}" } else { "{slots}" }),
            stop: loaded.chat().stop().to_vec(),
            text_tokens: if direct { task.text_tokens as usize } else { 0 },
            numbers: task.numbers.then(Rules::default),
            instructions,
        }),
        slots,
        adapter,
    })
}

/// Checks that the loaded parts give the same vector, slots and logits as the trained ones for the same input.
fn check(bundle: &Bundle, trained: &Trained, decoder: &Decoder, folder: &BundleFolder) -> Result<()> {
    let windows = bundle.config.slots.as_ref().map_or(0, |slots| slots.windows);
    let count = (1 + windows) * trained.projector.shape().input;
    let input: Vec<f32> = (0..count as u64).map(|i| 2.0 * uniform(1, i) - 1.0).collect();
    let differ = |file: &str, what: &str| Error::Model {
        path: folder.describe(file),
        reason: format!("gives other {what} than the trained parts do: the bundle is wrong"),
    };
    let projected = trained.projector.project(&input)?;
    if !agree(&bundle.projector.project(&input)?, &projected) {
        return Err(differ(PROJECTOR, "vectors"));
    }
    if trained.statistics.as_ref().is_some_and(|(statistics, _)| bundle.statistics != *statistics) {
        return Err(differ(STATISTICS, "statistics"));
    }
    let slots = |expander: &SlotExpander| expander.expand(&projected, windows);
    let expected = trained.slots.as_ref().map(|(expander, _)| slots(expander)).transpose()?;
    let found = bundle.expander.as_ref().map(slots).transpose()?;
    let same = match (&found, &expected) {
        (Some(found), Some(expected)) => agree(found, expected),
        (found, expected) => found.is_none() && expected.is_none(),
    };
    if !same {
        return Err(differ(SLOTS, "slots"));
    }
    let Some((adapter, _)) = &trained.adapter else {
        return Ok(());
    };
    let prompt = match &trained.slots {
        Some((expander, _)) => decoder.slot_prompt(PROBE, expander.shape().slots)?,
        None => decoder.direct_prompt(PROBE, PROBE, usize::MAX)?,
    };
    let logits = |adapter: &LoraAdapter| {
        let adapter = LoadedAdapter::new(adapter, decoder.model())?;
        decoder.model().next_logits(&prompt, expected.as_deref(), &adapter)
    };
    if !agree(&logits(&bundle.adapter(decoder.config())?)?, &logits(adapter)?) {
        return Err(differ(peft::ADAPTER_MODEL, "logits"));
    }
    Ok(())
}

fn agree(found: &[f32], expected: &[f32]) -> bool {
    let largest = expected.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    let near = |(a, b): (&f32, &f32)| (a - b).abs() <= TOLERANCE * largest;
    found.len() == expected.len() && found.iter().zip(expected).all(near)
}
