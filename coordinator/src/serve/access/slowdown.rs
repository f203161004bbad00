//! The delay of refusals. Callers without valid credentials wait longer, the more of them come from one source. Callers
//! that are known do not wait.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::serve::connections::Source;

/// The refusals that come at once, because a person who takes the wrong file tries again.
const AT_ONCE: u32 = 10;
const APART: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(10);
/// The most sources that are remembered. Further ones share an entry.
const MOST_SOURCES: usize = 4096;

/// The time of the next refusal of each source at the required distance.
#[derive(Debug, Default)]
pub(in crate::serve) struct Slowdown(Mutex<HashMap<Option<Source>, Instant>>);

impl Slowdown {
    /// Returns how long a refusal to `source` waits.
    pub(super) fn wait(&self, source: Option<Source>, now: Instant) -> Duration {
        let mut due = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut source = source;
        if due.len() >= MOST_SOURCES && !due.contains_key(&source) {
            due.retain(|_, due| *due > now);
            if due.len() >= MOST_SOURCES {
                source = None;
            }
        }
        let next = due.entry(source).or_insert(now);
        let longest = now + APART * AT_ONCE + LONGEST;
        *next = (*next).max(now).min(longest) + APART;
        (*next - now).saturating_sub(APART * AT_ONCE).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_wrong_tokens_cost_nothing_and_many_are_one_a_second() {
        let slowdown = Slowdown::default();
        let source = |text: &str| Some(Source::of(text.parse().unwrap()));
        let (guesser, other) = (source("10.0.0.1"), source("10.0.0.2"));
        let mut now = Instant::now();
        for _ in 0..AT_ONCE {
            assert_eq!(slowdown.wait(guesser, now), Duration::ZERO);
        }
        let mut answered = 0;
        let begin = now;
        while now - begin < Duration::from_secs(60) {
            now += slowdown.wait(guesser, now);
            answered += 1;
        }
        assert!((55..=65).contains(&answered), "{answered} in a minute");
        assert_eq!(slowdown.wait(other, now), Duration::ZERO, "others pay nothing for it");
        for _ in 0..1000 {
            assert!(slowdown.wait(guesser, now) <= LONGEST);
        }
        now += Duration::from_secs(60);
        assert_eq!(slowdown.wait(guesser, now), Duration::ZERO, "it is forgotten");
    }

    #[test]
    fn what_is_remembered_has_a_limit() {
        let slowdown = Slowdown::default();
        let now = Instant::now();
        for n in 0..20_000_u32 {
            slowdown.wait(Some(Source::of(std::net::Ipv4Addr::from_bits(n).into())), now);
        }
        assert!(slowdown.0.lock().unwrap().len() <= MOST_SOURCES + 1);
    }
}
