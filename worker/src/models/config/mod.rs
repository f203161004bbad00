//! The `config.json` of the supported architectures, checked once. Errors name what is not supported.

mod encoder;
mod llama;

use serde_json::Value;

use super::json::JsonFile;
use crate::Result;

pub use encoder::{EncoderConfig, EncoderFamily};
pub use llama::{Biases, LlamaConfig, RopeScaling};

impl JsonFile {
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
