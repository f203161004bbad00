//! The paper's modules and losses: the projector, the losses, the hard negatives and retrieval.
//!
//! Both stages are in tensors, with gradients derived by hand. In Stage A the [`projector`] maps encoder vectors.
//! [`align_losses`] compares them with the teacher's vectors and with [`hard_negatives`] from the [`teacher_queue`].
//! Beyond the paper, both can be compared in the metric of a [`whitening`]. [`statistics`] fits it on the [`moments`]
//! of the training split.
//!
//! Stage B expands a projected vector into slots with the [`slot_expander`]. It adds [`slot_losses`] and the
//! [`usage_contrast`] to the [`next_token_loss`].

pub mod align_losses;
pub mod answers;
pub mod bleu;
pub mod chrf;
pub mod hard_negatives;
mod info_nce;
pub mod margin;
pub(crate) mod mlp;
pub mod moments;
pub mod next_token_loss;
mod parameters;
pub mod projector;
pub mod retrieval;
pub mod slot_expander;
pub mod slot_losses;
pub mod statistics;
pub mod teacher_queue;
pub mod usage_contrast;
pub mod whitening;
