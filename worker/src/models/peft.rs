//! PEFT's layout of an adapter: `adapter_config.json` beside `adapter_model.safetensors`.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::json;
use strum::VariantArray as _;

use super::config::LlamaConfig;
use super::lora::{LoraAdapter, LoraOptions, Projection};
use crate::numerics::tensor_file::{self, TensorFile};
use crate::{Error, Result};

/// The name of the file with the options.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// The name of the file with the weights.
pub const ADAPTER_MODEL: &str = "adapter_model.safetensors";

/// Returns an adapter's options as PEFT reads them. `base_model` names the model that the adapter was trained on.
pub fn config_json(options: &LoraOptions, base_model: &str) -> String {
    let targets: Vec<&str> = options.targets.iter().map(AsRef::as_ref).collect();
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": options.rank,
        "lora_alpha": options.alpha,
        "lora_dropout": options.dropout,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "use_rslora": false,
        "use_dora": false,
    });
    format!("{config:#}\n")
}

/// Returns an adapter's weights under PEFT's names.
pub fn weights(adapter: &LoraAdapter) -> Result<Vec<u8>> {
    // Transformers refuses a file without this entry.
    tensor_file::write(&adapter.tensors(), HashMap::from([("format".to_owned(), "pt".to_owned())]))
}

/// Reads the adapter of a decoder with this shape. Errors call its folder `name`.
///
/// # Errors
/// [`Error::Model`] naming an option that is not supported, or the first tensor that is missing, unexpected or of
/// another shape.
pub fn read(decoder: &LlamaConfig, name: &str, config: &[u8], weights: &[u8]) -> Result<LoraAdapter> {
    let options = read_options(&format!("{name}/{ADAPTER_CONFIG}"), config)?;
    let mut adapter = LoraAdapter::new(decoder, options, 0)?;
    adapter.read(&TensorFile::new(&format!("{name}/{ADAPTER_MODEL}"), weights)?)?;
    Ok(adapter)
}

/// The options in PEFT's file that matter after training.
#[derive(Deserialize)]
struct Raw {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    target_modules: Vec<String>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    bias: Option<String>,
    #[serde(default)]
    rank_pattern: HashMap<String, usize>,
    #[serde(default)]
    alpha_pattern: HashMap<String, f64>,
    #[serde(default)]
    modules_to_save: Option<Vec<String>>,
}

fn read_options(name: &str, bytes: &[u8]) -> Result<LoraOptions> {
    let refuse = |reason: String| Error::model(name, reason);
    let raw: Raw = serde_json::from_slice(bytes).map_err(|error| refuse(error.to_string()))?;
    let unsupported = [
        ("peft_type", raw.peft_type != "LORA"),
        ("use_dora", raw.use_dora),
        ("fan_in_fan_out", raw.fan_in_fan_out),
        ("bias", raw.bias.as_deref().is_some_and(|bias| bias != "none")),
        ("rank_pattern", !raw.rank_pattern.is_empty()),
        ("alpha_pattern", !raw.alpha_pattern.is_empty()),
        ("modules_to_save", raw.modules_to_save.is_some_and(|modules| !modules.is_empty())),
    ];
    if let Some((key, _)) = unsupported.iter().find(|(_, asked)| *asked) {
        return Err(refuse(format!("`{key}` is not supported: only plain LoRA is")));
    }
    let known = |target: &Projection| raw.target_modules.iter().any(|name| name == target.as_ref());
    let targets: Vec<Projection> = Projection::VARIANTS.iter().copied().filter(known).collect();
    let unknown = |name: &&String| !targets.iter().any(|target| target.as_ref() == *name);
    if let Some(other) = raw.target_modules.iter().find(unknown) {
        return Err(refuse(format!("`target_modules` names {other}, which is not a layer of the decoder")));
    }
    // rsLoRA scales by alpha / √rank.
    let alpha = if raw.use_rslora { raw.lora_alpha * (raw.r as f64).sqrt() } else { raw.lora_alpha };
    Ok(LoraOptions { rank: raw.r, alpha, dropout: raw.lora_dropout, targets })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoder() -> LlamaConfig {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden/seed8/decoder");
        LlamaConfig::load(std::path::Path::new(dir)).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let adapter = LoraAdapter::new(&decoder(), LoraOptions::default(), 3).unwrap();
        let config = config_json(adapter.options(), "tiny");
        let weights = weights(&adapter).unwrap();
        assert_eq!(read(&decoder(), "x", config.as_bytes(), &weights).unwrap(), adapter);
    }

    #[test]
    fn other_adapters_are_refused_by_name() {
        let adapter = LoraAdapter::new(&decoder(), LoraOptions::default(), 3).unwrap();
        let weights = weights(&adapter).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config_json(adapter.options(), "tiny")).unwrap();
        for (key, value) in [
            ("peft_type", json!("IA3")),
            ("use_dora", json!(true)),
            ("bias", json!("all")),
            ("target_modules", json!(["q_proj", "lm_head"])),
            ("modules_to_save", json!(["embed_tokens"])),
        ] {
            let mut changed = config.clone();
            changed[key] = value;
            let error = read(&decoder(), "x", changed.to_string().as_bytes(), &weights).unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
        }
        let mut fewer = config.clone();
        fewer["target_modules"] = json!(["q_proj"]);
        let error = read(&decoder(), "x", fewer.to_string().as_bytes(), &weights).unwrap_err().to_string();
        assert!(error.contains("lora_A") && error.contains("does not belong to a layer"), "{error}");
        let mut wider = config;
        wider["r"] = json!(8);
        let error = read(&decoder(), "x", wider.to_string().as_bytes(), &weights).unwrap_err().to_string();
        assert!(error.contains("q_proj.lora_A") && error.contains('8'), "{error}");
    }
}
