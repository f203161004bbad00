//! Stage B's state between two steps, as one safetensors file.

use serde::{Deserialize, Serialize};

use super::options::InstructOptions;
use crate::Result;
use crate::llink::projector::Projector;
use crate::llink::slot_expander::SlotExpander;
use crate::models::config::LlamaConfig;
use crate::models::lora::LoraAdapter;
use crate::numerics::tensor_file::{TensorFile, Values};
use crate::train::checkpoint;
use crate::train::optimizer::{AdamWOptions, AdamWState};

const EXPANDER: &str = "expander.";
const PROJECTOR: &str = "projector.";
const GROUPS: [&str; 4] = ["lora", "expander", "scale", "projector"];

/// Everything that a step changes, and the options of the training. It does not depend on the number of ranks.
#[derive(Debug, Clone, PartialEq)]
pub struct InstructState {
    /// The options of the run.
    pub options: InstructOptions,
    /// The next step.
    pub step: u64,
    /// The parts that a step changes.
    pub parts: InstructParts,
}

/// The parts that a step changes, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct InstructParts {
    /// The LoRA adapter so far.
    pub adapter: LoraAdapter,
    /// The slot expander so far.
    pub expander: SlotExpander,
    /// The projector so far, if Stage B trains it. By default it is frozen.
    pub projector: Option<Projector>,
    /// The optimizers of LoRA, the expander without its scale, the scale, and the projector if Stage B trains it.
    pub optimizers: Vec<AdamWState>,
}

impl InstructParts {
    /// Returns the parts before the first step. The weight decay of `options` applies to LoRA, the expander and the
    /// projector. The scale has none.
    pub fn new(
        adapter: LoraAdapter,
        expander: SlotExpander,
        projector: Option<Projector>,
        options: AdamWOptions,
    ) -> Self {
        let without_decay = AdamWOptions { weight_decay: 0.0, ..options };
        let mut optimizers = vec![
            AdamWState::new(options, adapter.parameters.len()),
            AdamWState::new(options, expander.parameters.len() - 1),
            AdamWState::new(without_decay, 1),
        ];
        optimizers.extend(projector.as_ref().map(|projector| AdamWState::new(options, projector.parameters.len())));
        Self { adapter, expander, projector, optimizers }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    options: InstructOptions,
    step: u64,
    median_norm: f32,
    /// The number of optimizer steps of each group.
    optimizer_steps: Vec<u64>,
}

impl InstructState {
    /// Returns the state as a file.
    ///
    /// # Errors
    /// None that the parts' invariants allow.
    pub fn to_safetensors(&self) -> Result<Vec<u8>> {
        let InstructParts { adapter, expander, projector, optimizers } = &self.parts;
        let mut tensors = adapter.tensors();
        tensors.extend(expander.tensors(EXPANDER));
        tensors.extend(projector.iter().flat_map(|projector| projector.tensors(PROJECTOR)));
        for (group, optimizer) in GROUPS.iter().zip(optimizers) {
            for (moment, values) in [("first", &optimizer.first_moment), ("second", &optimizer.second_moment)] {
                tensors.push((format!("optimizer.{group}.{moment}_moment"), vec![values.len()], Values::F32(values)));
            }
        }
        let metadata = Metadata {
            options: self.options.clone(),
            step: self.step,
            median_norm: expander.median_norm(),
            optimizer_steps: optimizers.iter().map(|optimizer| optimizer.steps).collect(),
        };
        checkpoint::write(&tensors, &metadata)
    }

    /// Reads the checkpoint `name` with content `bytes`, for a decoder of this shape.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) when it is not such a file, or its parts do not match each other or the
    /// decoder.
    pub fn from_safetensors(config: &LlamaConfig, name: &str, bytes: &[u8]) -> Result<Self> {
        let file = TensorFile::new(name, bytes)?;
        let metadata: Metadata = checkpoint::metadata(&file)?;
        let mut adapter = LoraAdapter::new(config, (&metadata.options.settings).into(), 0)?;
        adapter.read(&file)?;
        let expander = SlotExpander::from_tensors(&file, EXPANDER, metadata.median_norm)?;
        let moves = metadata.options.moves_projector();
        let projector = moves.then(|| Projector::from_tensors(&file, PROJECTOR)).transpose()?;
        let mut parts = InstructParts::new(adapter, expander, projector, metadata.options.adamw());
        let mut steps = metadata.optimizer_steps.into_iter();
        for (group, optimizer) in GROUPS.iter().zip(&mut parts.optimizers) {
            optimizer.steps =
                steps.next().ok_or_else(|| file.error(format!("it does not say how many steps `{group}` took")))?;
            for (moment, values) in [("first", &mut optimizer.first_moment), ("second", &mut optimizer.second_moment)] {
                let tensor = format!("optimizer.{group}.{moment}_moment");
                let (shape, found) = file.f32(&tensor)?;
                if found.len() != values.len() {
                    return Err(file.error(format!("{tensor} has shape {shape:?}, not [{}]", values.len())));
                }
                *values = found;
            }
        }
        Ok(Self { options: metadata.options, step: metadata.step, parts })
    }
}
