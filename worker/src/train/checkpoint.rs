//! Stage A's state between two steps, as one safetensors file: whoever goes on from it computes what would have been computed.

use std::collections::HashMap;

use super::align_options::AlignOptions;
use super::optimizer::AdamW;
use super::tensor_file::{self, TensorFile, Values};
use crate::llink::projector::Projector;
use crate::llink::teacher_queue::TeacherQueue;
use crate::{Error, Result};

/// All that a step changes, and what it was trained with. It does not depend on the number of ranks.
#[derive(Debug, Clone, PartialEq)]
pub struct AlignState {
    /// The options of the run.
    pub options: AlignOptions,
    /// The step to take next.
    pub step: u64,
    /// The projector so far.
    pub projector: Projector,
    /// AdamW's moments.
    pub optimizer: AdamW,
    /// The teacher queue.
    pub queue: TeacherQueue,
}

/// [`AlignState`] as a file, from borrowed parts.
///
/// # Errors
/// None that the parts' invariants allow.
pub fn to_safetensors(
    options: &AlignOptions,
    step: u64,
    projector: &Projector,
    optimizer: &AdamW,
    queue: &TeacherQueue,
) -> Result<Vec<u8>> {
    let count = projector.parameters.len();
    let mut tensors = projector.tensors("projector.");
    tensors.push((
        "optimizer.first_moment".into(),
        vec![count],
        Values::F32(&optimizer.first_moment),
    ));
    tensors.push((
        "optimizer.second_moment".into(),
        vec![count],
        Values::F32(&optimizer.second_moment),
    ));
    tensors.push((
        "queue.vectors".into(),
        vec![queue.len(), queue.width()],
        Values::F16(queue.vectors()),
    ));
    tensors.push(("queue.ids".into(), vec![queue.len()], Values::U64(queue.ids())));
    let options =
        serde_json::to_string(options).map_err(|error| Error::Input(format!("writing a checkpoint: {error}")))?;
    let metadata = HashMap::from([
        ("options".to_owned(), options),
        ("step".to_owned(), step.to_string()),
        ("optimizer.steps".to_owned(), optimizer.steps.to_string()),
        ("queue.next".to_owned(), queue.next().to_string()),
    ]);
    tensor_file::write(&tensors, metadata)
}

impl AlignState {
    /// From the checkpoint `name`, whose content is `bytes`.
    ///
    /// # Errors
    /// [`Error::Model`] when it is no such file, or its parts do not fit each other.
    pub fn from_safetensors(name: &str, bytes: &[u8]) -> Result<Self> {
        let file = TensorFile::new(name, bytes)?;
        let number = |key: &str| -> Result<u64> {
            let text = file.text(key)?;
            text.parse()
                .map_err(|_| file.error(format!("`{key}` is `{text}`, not a number")))
        };
        let options: AlignOptions = serde_json::from_str(file.text("options")?)
            .map_err(|error| file.error(format!("its options can't be read: {error}")))?;
        let projector = Projector::from_tensors(&file, "projector.")?;
        let moments = |name: &str| -> Result<Vec<f32>> {
            let (shape, values) = file.f32(name)?;
            if values.len() != projector.parameters.len() {
                return Err(file.error(format!("{name} has shape {shape:?}, the projector another")));
            }
            Ok(values)
        };
        let mut optimizer = AdamW::new(options.adamw(), 0);
        optimizer.steps = number("optimizer.steps")?;
        optimizer.first_moment = moments("optimizer.first_moment")?;
        optimizer.second_moment = moments("optimizer.second_moment")?;
        let width = projector.shape().output;
        let (vectors, ids) = (file.f16("queue.vectors")?.1, file.u64("queue.ids")?.1);
        let queue = TeacherQueue::restore(
            options.queue_capacity,
            width,
            vectors,
            ids,
            number("queue.next")? as usize,
        )
        .map_err(|error| file.error(error.to_string()))?;
        Ok(Self {
            step: number("step")?,
            options,
            projector,
            optimizer,
            queue,
        })
    }
}
