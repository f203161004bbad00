//! The frozen models and their tokenizers: XLM-R reads the foreign sentence, Llama gives the teacher vectors.

mod batches;
pub mod bench;
pub mod config;
mod decoder;
mod encoder;
mod fingerprint;
mod llama;
mod llama_layer;
pub mod lora;
mod ops;
mod random;
pub mod tiny;
mod tokenizer;
mod training_pass;
mod weights;
mod xlm_roberta;

pub use batches::token_batches;
pub use decoder::{Decoder, TEACHER_SLOT, TEACHER_TOKENS, slot_tokens};
pub use encoder::{Encoder, TextLimits};
pub use fingerprint::fingerprint;
pub use llama::Llama;
pub use tokenizer::{SpecialTokens, Tokenizer};
pub use training_pass::{Activations, TrainingBatch, TrainingPass};
pub use weights::weight_files;
