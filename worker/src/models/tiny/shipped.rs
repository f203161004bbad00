//! The tiny models that come with llink, which know the grammar of the sample corpus. `llink-worker pretrain-tiny` made them.

use std::path::Path;

use crate::Result;

/// A model folder's files, by name.
pub type Files = [(&'static str, &'static [u8])];

/// The encoder of `llink-worker pretrain-tiny worker/assets/tiny`.
pub const SHIPPED_ENCODER: [(&str, &[u8]); 3] = [
    (
        "config.json",
        include_bytes!("../../../assets/tiny/encoder/config.json"),
    ),
    (
        "model.safetensors",
        include_bytes!("../../../assets/tiny/encoder/model.safetensors"),
    ),
    (
        "tokenizer.json",
        include_bytes!("../../../assets/tiny/encoder/tokenizer.json"),
    ),
];

/// The decoder of the same command.
pub const SHIPPED_DECODER: [(&str, &[u8]); 4] = [
    (
        "config.json",
        include_bytes!("../../../assets/tiny/decoder/config.json"),
    ),
    (
        "model.safetensors",
        include_bytes!("../../../assets/tiny/decoder/model.safetensors"),
    ),
    (
        "tokenizer.json",
        include_bytes!("../../../assets/tiny/decoder/tokenizer.json"),
    ),
    (
        "tokenizer_config.json",
        include_bytes!("../../../assets/tiny/decoder/tokenizer_config.json"),
    ),
];

/// Writes a shipped model into a folder, which is made.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) when a file can't be written.
pub fn write_shipped(dir: &Path, files: &Files) -> Result<()> {
    super::make_folder(dir)?;
    files
        .iter()
        .try_for_each(|(name, content)| super::write(&dir.join(name), content))
}
