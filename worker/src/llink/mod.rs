//! The method: projector, losses, negatives, retrieval.
//!
//! Stage A's arithmetic is f32 over flat row-major buffers with gradients derived by hand: [`projector`] maps encoder
//! vectors, [`align_losses`] compares them with the teacher's and with [`hard_negatives`] from the [`teacher_queue`].
//! [`matrix`] and [`kernels`] are the matrix products and the loops beneath.

pub mod align_losses;
pub mod hard_negatives;
pub mod kernels;
mod layers;
pub mod matrix;
pub mod projector;
pub mod retrieval;
mod softmax;
pub mod teacher_queue;
pub(crate) mod vectorized;
