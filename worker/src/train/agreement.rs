//! Checks that all ranks, and a run and its checkpoint, train in the same way.

use llink_proto::settings::{Expect, fault};
use serde::Serialize;
use serde_json::Value;

use crate::collective::Collective;
use crate::{Error, Result};

pub(super) fn hash(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

/// Returns a number as four f32, which hold 16 bits each exactly.
pub(super) fn words(number: u64) -> [f32; 4] {
    [0, 16, 32, 48].map(|shift| (number >> shift & 0xffff) as f32)
}

/// Returns the number of four [`words`].
pub(super) fn number(words: &[f32]) -> u64 {
    words.iter().rev().fold(0, |number, word| number << 16 | *word as u64)
}

/// Checks that these facts are the same on all ranks. An undetected difference would spoil the training.
///
/// # Errors
/// [`Error::Input`] naming the first fact that differs and two ranks; those of the collective.
pub(super) fn agree_on(facts: &[(&str, u64)], collective: &mut dyn Collective) -> Result<()> {
    let mine: Vec<f32> = facts.iter().flat_map(|(_, value)| words(*value)).collect();
    let all = collective.all_gather(&mine, &vec![mine.len(); collective.world_size()])?;
    for (rank, theirs) in all.chunks_exact(mine.len()).enumerate() {
        let mut differing = facts.iter().zip(mine.chunks_exact(4).zip(theirs.chunks_exact(4)));
        if let Some(((what, _), _)) = differing.find(|(_, (mine, theirs))| mine != theirs) {
            let own = collective.rank();
            return Err(Error::Input(format!("ranks {own} and {rank} start with different {what}")));
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
    first_difference("options", &json(now)?, &json(then)?).map_or(Ok(()), |text| Err(Error::Input(text)))
}

fn first_difference(name: &str, now: &Value, then: &Value) -> Option<String> {
    match (now, then) {
        (Value::Object(now), Value::Object(then)) => now.iter().find_map(|(name, value)| {
            let then = then.get(name).unwrap_or(&Value::Null);
            first_difference(name, value, then)
        }),
        _ if now == then => None,
        _ => Some(format!("the checkpoint was trained with `{name}` {then}, but this run has {now}")),
    }
}

/// Refuses settings with a value that is not as expected.
///
/// # Errors
/// [`Error::Input`] naming the first such key.
pub(super) fn checked(check: impl FnOnce(Expect<'_>)) -> Result<()> {
    let mut first = None;
    check(&mut |holds, key, given, expected| {
        if !holds && first.is_none() {
            first = Some(fault(key, given, expected));
        }
    });
    first.map_or(Ok(()), |text| Err(Error::Input(text)))
}
