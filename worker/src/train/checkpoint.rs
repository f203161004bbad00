//! A training's state between two steps as one safetensors file. It holds named tensors and a JSON object of everything
//! else.

use std::collections::HashMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::numerics::tensor_file::{self, Tensor, TensorFile};
use crate::{Error, Result};

/// The key of the JSON object in the file's metadata.
const METADATA: &str = "training";

/// Returns the file of a checkpoint with these tensors and this metadata.
///
/// # Errors
/// [`Error::Input`] when a tensor's shape does not match its values, or the metadata cannot be written as JSON.
pub fn write(tensors: &[Tensor<'_>], metadata: &impl Serialize) -> Result<Vec<u8>> {
    let json =
        serde_json::to_string(metadata).map_err(|error| Error::Input(format!("writing a checkpoint: {error}")))?;
    tensor_file::write(tensors, HashMap::from([(METADATA.to_owned(), json)]))
}

/// Reads the metadata of a checkpoint's file.
///
/// # Errors
/// [`Error::Model`] when the metadata is missing or has another form.
pub fn metadata<T: DeserializeOwned>(file: &TensorFile<'_>) -> Result<T> {
    serde_json::from_str(file.text(METADATA)?).map_err(|error| {
        file.error(format!(
            "its metadata can't be read: {error}. If another version of llink wrote it, remove its folder, and the training starts anew"
        ))
    })
}
