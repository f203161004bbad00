//! The `config.json` of the supported architectures, checked once. Errors name what is not supported.

mod encoder;
mod llama;

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::json;
use crate::{Error, Result};

pub use encoder::{EncoderConfig, EncoderFamily};
pub use llama::{Biases, LlamaConfig, RopeScaling};

/// A `config.json` and its path for errors.
pub(super) struct ConfigFile {
    path: String,
    value: Value,
}

impl ConfigFile {
    /// Reads `dir/config.json` as Python does; see [`json`]. A key with the value null counts as missing.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let value = json::read(&path)?;
        Ok(Self { path: path.display().to_string(), value })
    }

    fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T> {
        json::parse(&self.value).map_err(|reason| self.refuse(reason))
    }

    fn refuse(&self, reason: impl Into<String>) -> Error {
        Error::Model { path: self.path.clone(), reason: reason.into() }
    }

    fn refuse_unless(&self, supported: &[&str], key: &str, value: &str) -> Result<()> {
        if supported.contains(&value) {
            return Ok(());
        }
        Err(self.refuse(format!("{key} {value:?} is not supported (supported: {})", supported.join(", "))))
    }

    fn refuse_quantized(&self, quantization: &Option<Value>) -> Result<()> {
        let Some(quantization) = quantization else {
            return Ok(());
        };
        let method = quantization.get("quant_method").and_then(|m| m.as_str()).unwrap_or("unknown");
        Err(self.refuse(format!("quantized weights (quant_method {method:?}) are not supported")))
    }

    fn check_divides(&self, key: &str, divisor: usize, of: &str, value: usize) -> Result<()> {
        if divisor > 0 && value > 0 && value.is_multiple_of(divisor) {
            return Ok(());
        }
        Err(self.refuse(format!("{of} {value} is not a multiple of {key} {divisor}")))
    }
}
