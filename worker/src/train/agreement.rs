//! Checks that all ranks, and a run and its checkpoint, train in the same way.

use serde::Serialize;

use crate::collective::Collective;
use crate::{Error, Result};

/// Returns a fingerprint of bytes.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

/// Checks that these facts are the same on all ranks. An undetected difference would spoil the training.
///
/// # Errors
/// [`Error::Input`] naming the first fact that differs and two ranks; those of the collective.
pub(super) fn agree_on(facts: &[(&str, u64)], collective: &mut dyn Collective) -> Result<()> {
    // An f32 holds 16 bits exactly.
    let words = |value: u64| [0, 16, 32, 48].map(|shift| (value >> shift & 0xffff) as f32);
    let mine: Vec<f32> = facts.iter().flat_map(|(_, value)| words(*value)).collect();
    let all = collective.all_gather(&mine, &vec![mine.len(); collective.world_size()])?;
    for (rank, theirs) in all.chunks_exact(mine.len()).enumerate() {
        let mut differing = facts.iter().zip(mine.chunks_exact(4).zip(theirs.chunks_exact(4)));
        if let Some(((what, _), _)) = differing.find(|(_, (mine, theirs))| mine != theirs) {
            let own = collective.rank();
            return Err(Error::Input(format!(
                "ranks {own} and {rank} start with different {what}"
            )));
        }
    }
    Ok(())
}

/// Refuses a checkpoint that was trained with other options.
///
/// # Errors
/// [`Error::Input`] naming the first option that differs.
pub(super) fn same_options<T: Serialize>(now: &T, then: &T) -> Result<()> {
    let json = |options: &T| {
        serde_json::to_value(options).map_err(|error| Error::Input(format!("comparing options: {error}")))
    };
    let (now, then) = (json(now)?, json(then)?);
    let mut fields = now.as_object().into_iter().flatten();
    let Some((field, value)) = fields.find(|(field, value)| then.get(field.as_str()) != Some(*value)) else {
        return Ok(());
    };
    let then = then
        .get(field.as_str())
        .map_or_else(|| "nothing".to_owned(), ToString::to_string);
    Err(Error::Input(format!(
        "the checkpoint was trained with `{field}` {then}, but this run has {value}"
    )))
}
