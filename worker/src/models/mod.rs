//! The frozen models and their tokenizers. An encoder (XLM-R, BERT) reads the foreign sentence, and Llama computes the
//! teacher vectors.

mod backend;
mod batches;
mod bert;
mod chat;
mod check;
pub mod config;
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
pub(crate) mod ops;
pub mod peft;
mod placeholder;
mod sentence;
mod tokenizer;
mod training_pass;
mod weights;

pub use backend::Backend;
pub use batches::token_batches;
pub use bert::Bert;
pub use chat::{Chat, ChatPrompt, PromptForm};
pub use check::check;
pub use decoder::{Decoder, TEACHER_TOKENS, TeacherLayer};
pub use encoder::{Encoder, TextLimits};
pub use fetch::ModelPlace;
pub use fingerprint::fingerprint;
pub use generate::{GenerateOptions, LoadedAdapter, Sampling, replaced_rows};
pub use gguf::is_gguf;
pub use llama::Llama;
pub use model_files::check_gguf;
pub(crate) use ops::{RowMasks, bf16_on_cpu, edit, fused};
pub use sentence::{FolderReading, Pooling, Reading, ReadingWishes};
pub use tokenizer::{NO_TOKEN, SpecialTokens, Tokenizer};
pub use training_pass::{Activations, Adapter, TrainingBatch, TrainingPass};
pub use weights::weight_files;
