//! A bundle: what a job learnt, as a folder that other programs load.
//!
//! `config.json` ([`config`]) says how the parts fit together and which models they belong to; beside it lie the projector, the
//! slots and the adapter, the last in PEFT's layout, and a model card. [`folder`] reads the files and holds them to the
//! manifest's hashes, [`parts`] loads them strictly: no tensor may be missing and none may be there that is not asked for.
//! [`generator`] answers questions with them; [`sources`] finds the models, [`vectors`] remembers what the encoder read.

pub mod config;
pub mod folder;
pub mod generator;
pub mod parts;
pub mod sources;
pub mod vectors;

pub use config::BundleConfig;
pub use folder::BundleFolder;
pub use generator::{Answering, Generator, Opening, Sentence};
pub use parts::Bundle;
