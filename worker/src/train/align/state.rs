//! Stage A's state between two steps, as one safetensors file. Training that continues from it on the same number of
//! ranks gives the same bits.

use serde::{Deserialize, Serialize};

use super::options::AlignOptions;
use crate::Result;
use crate::llink::projector::Projector;
use crate::llink::statistics::Statistics;
use crate::llink::teacher_queue::StoredQueue;
use crate::numerics::tensor_file::{TensorFile, Values};
use crate::train::checkpoint;
use crate::train::optimizer::AdamWState;

const STATISTICS: &str = "statistics.";

/// Everything that a step changes, and the options of the training. It does not depend on the number of ranks.
#[derive(Debug, Clone, PartialEq)]
pub struct AlignState {
    /// The options of the run.
    pub options: AlignOptions,
    /// The next step.
    pub step: u64,
    /// The statistics that were fitted before the first step.
    pub statistics: Statistics,
    /// The projector so far. Its input is standardized if the training standardizes it.
    pub projector: Projector,
    /// The moments of AdamW.
    pub optimizer: AdamWState,
    /// The teacher queue.
    pub queue: StoredQueue,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    options: AlignOptions,
    step: u64,
    optimizer_steps: u64,
    queue_next: usize,
}

impl AlignState {
    /// Returns the state as a file.
    ///
    /// # Errors
    /// None that the parts' invariants allow.
    pub fn to_safetensors(&self) -> Result<Vec<u8>> {
        let Self { options, step, statistics, projector, optimizer, queue } = self;
        let count = vec![projector.parameters.len()];
        let mut tensors = projector.tensors("projector.");
        tensors.extend(statistics.tensors(STATISTICS));
        tensors.extend([
            ("optimizer.first_moment".into(), count.clone(), Values::F32(&optimizer.first_moment)),
            ("optimizer.second_moment".into(), count, Values::F32(&optimizer.second_moment)),
            ("queue.vectors".into(), vec![queue.len(), queue.width()], Values::F16(queue.vectors())),
            ("queue.ids".into(), vec![queue.len()], Values::U64(queue.ids())),
        ]);
        let (options, optimizer_steps, queue_next) = (options.clone(), optimizer.steps, queue.next());
        checkpoint::write(&tensors, &Metadata { options, step: *step, optimizer_steps, queue_next })
    }

    /// Reads the checkpoint `name` with content `bytes`.
    ///
    /// # Errors
    /// [`Error::Model`] when it is not such a file, or its parts do not match.
    pub fn from_safetensors(name: &str, bytes: &[u8]) -> Result<Self> {
        let file = TensorFile::new(name, bytes)?;
        let Metadata { options, step, optimizer_steps, queue_next } = checkpoint::metadata(&file)?;
        let projector = Projector::from_tensors(&file, "projector.")?;
        let statistics = Statistics::from_tensors(&file, STATISTICS)?;
        let moments = |name: &str| -> Result<Vec<f32>> {
            let (shape, values) = file.f32(name)?;
            if values.len() != projector.parameters.len() {
                return Err(file.error(format!("{name} has shape {shape:?}, but the projector has another")));
            }
            Ok(values)
        };
        let optimizer = AdamWState {
            options: options.adamw(),
            steps: optimizer_steps,
            first_moment: moments("optimizer.first_moment")?,
            second_moment: moments("optimizer.second_moment")?,
        };
        let width = projector.shape().output;
        let (vectors, ids) = (file.f16("queue.vectors")?.1, file.u64("queue.ids")?.1);
        let queue = StoredQueue::restore(options.settings.queue as usize, width, vectors, ids, queue_next)
            .map_err(|error| file.error(error.to_string()))?;
        Ok(Self { step, options, statistics, projector, optimizer, queue })
    }
}
