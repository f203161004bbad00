//! The method: projector, losses, negatives, retrieval.
//!
//! Stage A's arithmetic is f32 over flat row-major buffers with gradients derived by hand: [`projector`] maps encoder
//! vectors, [`align_losses`] compares them with the teacher's and with [`hard_negatives`] from the [`teacher_queue`].
//! Beyond the paper, both are compared in the metric of a [`whitening`], which [`statistics`] fits on the training split's [`moments`].
//! Stage B is in tensors, also with gradients derived by hand: it expands a projected vector into slots with the [`slot_expander`], and
//! adds [`slot_losses`] and the [`usage_contrast`] to the [`next_token_loss`]. [`matrix`] and [`kernels`] are the matrix products and
//! the loops beneath.

pub mod align_losses;
pub mod answers;
pub mod chrf;
pub mod hard_negatives;
pub mod kernels;
mod layers;
pub mod matrix;
pub(crate) mod mlp;
pub mod moments;
pub mod next_token_loss;
mod parameters;
pub mod projector;
pub mod retrieval;
pub(crate) mod rows;
pub mod slot_expander;
pub mod slot_losses;
mod softmax;
pub mod statistics;
pub mod teacher_queue;
pub mod usage_contrast;
pub(crate) mod vectorized;
pub mod whitening;
