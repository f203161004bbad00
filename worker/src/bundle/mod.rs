//! A bundle is the trained result of a job, as a folder that other programs load.
//!
//! `config.json` ([`config`]) says how the parts fit together and which models they need. Beside it are the projector,
//! the slots, the adapter in PEFT's format, and a model card. [`folder`] reads the files and checks the manifest's
//! hashes. [`parts`] loads them strictly: no tensor may be missing or unexpected. [`generator`] reads texts, [`answers`] answers,
//! [`reply_text`] gives their text out piece by piece, [`sources`] finds the models, and [`vectors`] caches the encoder's
//! vectors.

pub mod answers;
pub mod config;
pub mod folder;
pub mod generator;
pub mod parts;
pub mod reply_text;
pub mod sources;
pub mod vectors;

pub use answers::Prepared;
pub use config::BundleConfig;
pub use folder::BundleFolder;
pub use generator::{Answering, Generator, Opening, Sentence};
pub use parts::Bundle;
pub use reply_text::ReplyText;
