//! The frozen models and their tokenizers. An encoder (XLM-R, BERT) reads the foreign sentence, and Llama computes the
//! teacher vectors.

mod batches;
mod bert;
mod cache;
mod chat;
mod check;
pub mod config;
mod continuations;
mod conventions;
mod decoder;
mod encoder;
mod fetch;
mod fingerprint;
mod generate;
mod gguf;
mod json;
mod llama;
mod llama_layer;
pub mod lora;
pub(crate) mod merged;
mod model_files;
pub mod peft;
mod placeholder;
mod sentence;
mod tokenizer;
mod training_pass;
mod weights;

pub use crate::ops::{Backend, NO_TOKEN};
pub use batches::{Progress, Vectors, token_batches};
pub use bert::Bert;
pub use chat::{Chat, ChatPrompt, Part, Passages, PromptForm, Turn};
pub use check::check;
pub use continuations::{Continuations, Step, common_head};
pub use decoder::{Decoder, TEACHER_TOKENS, layer_number};
pub use encoder::{Encoder, TextLimits};
pub use fetch::ModelPlace;
pub use fingerprint::fingerprint;
pub use generate::{GenerateOptions, LoadedAdapter, Sampling, replaced_rows};
pub use gguf::is_gguf;
pub use llama::Llama;
pub use llink_proto::settings::TeacherLayer;
pub use model_files::check_gguf;
pub use sentence::{FolderReading, Pooling, Reading, ReadingWishes};
pub use tokenizer::{SpecialTokens, Tokenizer};
pub use training_pass::{Activations, Adapter, TrainingBatch, TrainingPass};
pub use weights::weight_files;
