//! Instruction examples made by a large model: it reads the English side of a pair and answers, and the answer is kept
//! with the foreign side as the text that the example is about.

mod client;
mod prompt;

pub use client::{Answer, Client, Endpoint, Patience};
pub use prompt::{Prompt, Request, is_refusal};
