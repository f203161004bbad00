//! A training's state between two steps, as one safetensors file: named tensors, and a JSON object of everything else.

use std::collections::HashMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::tensor_file::{self, Tensor, TensorFile};
use crate::{Error, Result};

/// The one string among the file's metadata.
const METADATA: &str = "training";

/// A checkpoint's file of these tensors, and of what `metadata` says.
///
/// # Errors
/// [`Error::Input`] when a tensor's shape does not fit its numbers, or the metadata are no JSON.
pub fn write(tensors: &[Tensor<'_>], metadata: &impl Serialize) -> Result<Vec<u8>> {
    let json =
        serde_json::to_string(metadata).map_err(|error| Error::Input(format!("writing a checkpoint: {error}")))?;
    tensor_file::write(tensors, HashMap::from([(METADATA.to_owned(), json)]))
}

/// What a checkpoint's file says beside its tensors.
///
/// # Errors
/// [`Error::Model`] when it says something else than is looked for.
pub fn metadata<T: DeserializeOwned>(file: &TensorFile<'_>) -> Result<T> {
    serde_json::from_str(file.text(METADATA)?)
        .map_err(|error| file.error(format!("its metadata can't be read: {error}")))
}
