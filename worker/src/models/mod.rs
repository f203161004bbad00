//! The frozen models and their tokenizers: XLM-R reads the foreign sentence, Llama gives the teacher vectors.

mod backend;
mod batches;
pub mod bench;
mod chat;
pub mod config;
mod decoder;
mod encoder;
mod fetch;
mod fingerprint;
mod generate;
mod llama;
mod llama_layer;
pub mod lora;
mod ops;
pub mod peft;
mod random;
pub mod tiny;
mod tokenizer;
mod training_pass;
mod weights;
mod xlm_roberta;

pub use backend::Backend;
pub use batches::token_batches;
pub use chat::{ChatPrompt, END_OF_TURN, FIRST_SLOT, prompt_form};
pub use decoder::{Decoder, TEACHER_SLOT, TEACHER_TOKENS, slot_tokens};
pub use encoder::{Encoder, TextLimits};
pub use fetch::fetch;
pub use fingerprint::fingerprint;
pub use generate::{GenerateOptions, LoadedAdapter, Sampling};
pub use llama::Llama;
pub(crate) use ops::{Form, RowMasks};
pub(crate) use random::Normal;
pub use tokenizer::{SpecialTokens, Tokenizer};
pub(crate) use training_pass::Adapter;
pub use training_pass::{Activations, TrainingBatch, TrainingPass};
pub use weights::weight_files;
