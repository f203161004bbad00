//! Loads the parts of a bundle strictly.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::config::{BundleConfig, CONFIG, SlotsEntry};
use super::folder::BundleFolder;
use crate::llink::projector::Projector;
use crate::llink::slot_expander::SlotExpander;
use crate::llink::statistics::Statistics;
use crate::models::config::LlamaConfig;
use crate::models::lora::LoraAdapter;
use crate::models::peft;
use crate::numerics::tensor_file::TensorFile;
use crate::{Error, Result};

/// The parts of a bundle, without the adapter's weights.
pub struct Bundle {
    /// The config, which says how the parts fit together.
    pub config: BundleConfig,
    /// The projector of Stage A, for the encoder's own vectors.
    pub projector: Projector,
    /// The metric of Stage A, and its other statistics.
    pub statistics: Statistics,
    /// The slot expander of Stage B, if there are slots.
    pub expander: Option<SlotExpander>,
    adapter: Option<AdapterFiles>,
    url: String,
}

struct AdapterFiles {
    config: Bytes,
    weights: Bytes,
    name: String,
}

impl Bundle {
    /// Loads everything but the adapter's weights, which need the decoder's shape.
    ///
    /// # Errors
    /// [`Error::Model`] naming the file and the first tensor that is missing, misshapen, not expected or not as the config says.
    pub fn read(folder: &BundleFolder) -> Result<Self> {
        let config = BundleConfig::parse(&folder.describe(CONFIG), &folder.read(CONFIG)?)?;
        let projector = read_projector(folder, &config)?;
        let statistics = read_statistics(folder, &config)?;
        let expander = config.slots.as_ref().map(|entry| read_expander(folder, &config, entry)).transpose()?;
        let files = config.adapter.as_ref().map(|entry| {
            Ok::<_, Error>(AdapterFiles {
                config: folder.read(&entry.config)?,
                weights: folder.read(&entry.file)?,
                name: folder.describe(&entry.file),
            })
        });
        Ok(Self { adapter: files.transpose()?, config, projector, statistics, expander, url: folder.url() })
    }

    /// Loads the adapter for a decoder of this shape.
    ///
    /// # Errors
    /// [`Error::Model`] when the bundle has none, or naming the first tensor that is missing, misshapen or not expected.
    pub fn adapter(&self, decoder: &LlamaConfig) -> Result<LoraAdapter> {
        let files = self.adapter.as_ref().ok_or_else(|| {
            let reason = "holds only a projector: the job that exported it has no [instruct], so it cannot answer";
            Error::model(&self.url, reason)
        })?;
        let adapter = peft::read(decoder, &self.url, &files.config, &files.weights)?;
        let places = adapter.tensor_places();
        let file = TensorFile::new(&files.name, &files.weights)?;
        expect_only(&file, places.iter().map(|(name, ..)| name.as_str()))?;
        Ok(adapter)
    }
}

fn read_projector(folder: &BundleFolder, config: &BundleConfig) -> Result<Projector> {
    let (name, content) = (folder.describe(&config.projector.file), folder.read(&config.projector.file)?);
    let file = TensorFile::new(&name, &content)?;
    let projector = Projector::from_tensors(&file, "")?;
    expect_only(&file, projector.shape().tensors().iter().map(|(name, _)| *name))?;
    let shape = projector.shape();
    same(&file, "encoder.hidden_size", shape.input, config.encoder.hidden_size)?;
    same(&file, "projector.hidden_size", shape.hidden, config.projector.hidden_size)?;
    same(&file, "decoder.hidden_size", shape.output, config.decoder.hidden_size)?;
    Ok(projector)
}

fn read_statistics(folder: &BundleFolder, config: &BundleConfig) -> Result<Statistics> {
    let Some(entry) = &config.statistics else {
        return Ok(Statistics::default());
    };
    let (name, content) = (folder.describe(&entry.file), folder.read(&entry.file)?);
    let statistics = Statistics::from_safetensors(&name, &content)?;
    let file = TensorFile::new(&name, &content)?;
    let expected: Vec<String> = statistics.tensors("").into_iter().map(|(name, ..)| name).collect();
    expect_only(&file, expected.iter().map(String::as_str))?;
    let fits = statistics.check(config.encoder.hidden_size, config.decoder.hidden_size);
    fits.map_err(|error| file.error(error.to_string()))?;
    let (found, named) = (statistics.metric(), entry.metric);
    if found != named {
        return Err(file.error(format!(
            "its metric is {}, the config's `statistics.metric` {}",
            found.name(),
            named.name()
        )));
    }
    Ok(statistics)
}

fn read_expander(folder: &BundleFolder, config: &BundleConfig, entry: &SlotsEntry) -> Result<SlotExpander> {
    let (name, content) = (folder.describe(&entry.file), folder.read(&entry.file)?);
    let expander = SlotExpander::from_safetensors(&name, &content)?;
    let file = TensorFile::new(&name, &content)?;
    expect_only(&file, expander.shape().tensors().iter().map(|(name, _)| *name))?;
    let shape = expander.shape();
    same(&file, "decoder.hidden_size", shape.width, config.decoder.hidden_size)?;
    same(&file, "slots.hidden_size", shape.hidden, entry.hidden_size)?;
    same(&file, "slots.count", shape.slots, entry.count)?;
    if expander.median_norm().to_bits() != entry.median_norm.to_bits() {
        return Err(file.error(format!(
            "its median norm is {}, the config's `slots.median_norm` {}",
            expander.median_norm(),
            entry.median_norm
        )));
    }
    Ok(expander)
}

fn same(file: &TensorFile<'_>, key: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(file.error(format!("its tensors ask for {found} where the config's `{key}` is {expected}")))
}

/// Refuses a file with other tensors than these.
fn expect_only<'a>(file: &TensorFile<'_>, expected: impl Iterator<Item = &'a str>) -> Result<()> {
    let expected: BTreeSet<&str> = expected.collect();
    let unexpected = file.names().filter(|name| !expected.contains(name)).min();
    unexpected.map_or(Ok(()), |name| Err(file.error(format!("tensor `{name}` is not expected"))))
}
