//! Asks a large model over an OpenAI-compatible endpoint, for instruction examples and for a judge's verdicts.
//!
//! [`Client`] sends the requests and retries. Only `completion` decides what a complete, final answer is.

mod client;
mod completion;
mod dialect;
mod prompt;
mod refusal;
mod retry_after;
mod said;
mod thoughts;

pub use client::Client;
pub use completion::{Answer, Unusable};
pub use prompt::Request;
pub use refusal::is_refusal;
