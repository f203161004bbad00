//! Stage B's state between two steps, as one safetensors file.

use serde::{Deserialize, Serialize};

use super::checkpoint;
use super::instruct_options::InstructOptions;
use super::instruct_step::InstructTrainer;
use super::moving_projector::MovingProjector;
use super::optimizer::AdamW;
use super::tensor_file::{TensorFile, Values};
use crate::Result;
use crate::llink::projector::Projector;
use crate::llink::slot_expander::SlotExpander;
use crate::models::config::LlamaConfig;
use crate::models::lora::LoraAdapter;

const EXPANDER: &str = "expander.";
const PROJECTOR: &str = "projector.";
const GROUPS: [&str; 4] = ["lora", "expander", "scale", "projector"];

/// All that a step changes, and what it was trained with. It does not depend on the number of ranks.
#[derive(Debug, Clone, PartialEq)]
pub struct InstructState {
    /// The options of the run.
    pub options: InstructOptions,
    /// The step to take next.
    pub step: u64,
    /// LoRA so far.
    pub adapter: LoraAdapter,
    /// The slot expander so far.
    pub expander: SlotExpander,
    /// Of the three groups.
    pub optimizers: [AdamW; 3],
    /// The projector so far, where it moves.
    pub projector: Option<MovingProjector>,
}

/// What is in the file beside the tensors.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    options: InstructOptions,
    step: u64,
    median_norm: f32,
    /// Of each group.
    optimizer_steps: Vec<u64>,
}

/// The state after `step` steps as a file, from borrowed parts.
///
/// # Errors
/// None that the parts' invariants allow.
pub fn to_safetensors(
    options: &InstructOptions,
    step: u64,
    adapter: &LoraAdapter,
    expander: &SlotExpander,
    optimizers: &[AdamW; 3],
    projector: Option<&MovingProjector>,
) -> Result<Vec<u8>> {
    let mut tensors = adapter.tensors();
    tensors.extend(expander.tensors(EXPANDER));
    if let Some(MovingProjector { projector, .. }) = projector {
        tensors.extend(projector.tensors(PROJECTOR));
    }
    let optimizers = || optimizers.iter().chain(projector.map(|moving| &moving.optimizer));
    for (group, optimizer) in GROUPS.iter().zip(optimizers()) {
        for (moment, values) in [("first", &optimizer.first_moment), ("second", &optimizer.second_moment)] {
            tensors.push((
                format!("optimizer.{group}.{moment}_moment"),
                vec![values.len()],
                Values::F32(values),
            ));
        }
    }
    let metadata = Metadata {
        options: options.clone(),
        step,
        median_norm: expander.median_norm(),
        optimizer_steps: optimizers().map(|optimizer| optimizer.steps).collect(),
    };
    checkpoint::write(&tensors, &metadata)
}

impl InstructState {
    /// From the checkpoint `name`, whose content is `bytes`, for a decoder of this shape.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) when it is no such file, or its parts do not fit each other or the decoder.
    pub fn from_safetensors(config: &LlamaConfig, name: &str, bytes: &[u8]) -> Result<Self> {
        let file = TensorFile::new(name, bytes)?;
        let metadata: Metadata = checkpoint::metadata(&file)?;
        let mut adapter = LoraAdapter::new(config, metadata.options.lora.clone(), 0)?;
        adapter.read(&file)?;
        let expander = SlotExpander::from_tensors(&file, EXPANDER, metadata.median_norm)?;
        let mut optimizers = InstructTrainer::optimizers(&adapter, &expander, metadata.options.adamw());
        let mut projector = match metadata.options.moves_projector() {
            true => Some(MovingProjector::new(
                Projector::from_tensors(&file, PROJECTOR)?,
                metadata.options.adamw(),
            )),
            false => None,
        };
        let of_projector = projector.as_mut().map(|moving| &mut moving.optimizer);
        let mut steps = metadata.optimizer_steps.into_iter();
        for (group, optimizer) in GROUPS.iter().zip(optimizers.iter_mut().chain(of_projector)) {
            optimizer.steps = steps
                .next()
                .ok_or_else(|| file.error(format!("it does not say how many steps `{group}` took")))?;
            for (moment, values) in [
                ("first", &mut optimizer.first_moment),
                ("second", &mut optimizer.second_moment),
            ] {
                let tensor = format!("optimizer.{group}.{moment}_moment");
                let (shape, found) = file.f32(&tensor)?;
                if found.len() != values.len() {
                    return Err(file.error(format!("{tensor} has shape {shape:?}, not [{}]", values.len())));
                }
                *values = found;
            }
        }
        Ok(Self {
            options: metadata.options,
            step: metadata.step,
            adapter,
            expander,
            optimizers,
            projector,
        })
    }
}
