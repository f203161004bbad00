//! Counts the judge's verdicts about pairs of answers, and measures how far they can be trusted.

use llink_datasets::measured::Judged;

use super::{Preference, Verdict};
use crate::numerics::random;

/// The number of bootstrap samples behind an interval.
const SAMPLES: u64 = 2_000;
/// The share of the samples that lie outside an interval.
const OUTSIDE: f64 = 0.05;

/// Two answers, with the verdicts about them.
#[derive(Debug, Clone)]
pub struct JudgedPair<'a> {
    pub ours: &'a str,
    pub theirs: &'a str,
    /// The verdicts of each run, in both orders.
    pub runs: Vec<[Option<Verdict>; 2]>,
}

impl JudgedPair<'_> {
    /// Combines the verdicts of all runs.
    pub fn preference(&self) -> Preference {
        Preference::of(self.runs.iter().flatten().copied())
    }

    /// Returns whether the longer answer won, if one is longer and one won.
    fn longer_won(&self) -> Option<bool> {
        let ours_longer = match words(self.ours).cmp(&words(self.theirs)) {
            std::cmp::Ordering::Equal => return None,
            order => order.is_gt(),
        };
        match self.preference() {
            Preference::Win => Some(ours_longer),
            Preference::Loss => Some(!ours_longer),
            Preference::Tie | Preference::Unclear => None,
        }
    }
}

/// Counts the verdicts about `pairs`.
pub fn tally(pairs: &[&JudgedPair<'_>]) -> Judged {
    let count = |wanted| pairs.iter().filter(|pair| pair.preference() == wanted).count() as u64;
    let worth = |pair: &&JudgedPair<'_>| match pair.preference() {
        Preference::Win => Some(1.0),
        Preference::Tie => Some(0.5),
        Preference::Loss => Some(0.0),
        Preference::Unclear => None,
    };
    let worth: Vec<f64> = pairs.iter().filter_map(worth).collect();
    let (low, high) = interval(&worth).unzip();
    let runs = || pairs.iter().flat_map(|pair| &pair.runs);
    let by_order = runs().map(|[one, other]| (*one, *other));
    let by_run = pairs.iter().flat_map(|pair| pair.runs.windows(2));
    let by_run = by_run.flat_map(|runs| runs[0].into_iter().zip(runs[1]));
    let longer_won = pairs.iter().filter_map(|pair| pair.longer_won()).map(share_of_one);
    Judged {
        win: count(Preference::Win),
        tie: count(Preference::Tie),
        loss: count(Preference::Loss),
        unclear: count(Preference::Unclear),
        preferred: mean(worth.iter().copied()),
        low,
        high,
        order_flips: flips(by_order),
        run_flips: flips(by_run),
        our_words: mean(pairs.iter().map(|pair| words(pair.ours) as f64)).unwrap_or_default(),
        their_words: mean(pairs.iter().map(|pair| words(pair.theirs) as f64)).unwrap_or_default(),
        longer_won: mean(longer_won),
    }
}

fn words(text: &str) -> usize {
    text.split_whitespace().count()
}

fn share_of_one(is: bool) -> f64 {
    f64::from(u8::from(is))
}

/// Returns the share of pairs of verdicts that differ, among those where both were given.
fn flips(verdicts: impl Iterator<Item = (Option<Verdict>, Option<Verdict>)>) -> Option<f64> {
    mean(verdicts.filter_map(|(one, other)| Some(share_of_one(one? != other?))))
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0_u64), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / count as f64)
}

/// Returns the percentile bootstrap interval of the mean. The samples depend on nothing but the number of values.
fn interval(values: &[f64]) -> Option<(f64, f64)> {
    let count = values.len() as u64;
    if count < 2 {
        return None;
    }
    let sample = |sample: u64| {
        let key = random::key(&[sample, count]);
        let drawn = (0..count).map(|index| values[(random::mix(key ^ random::mix(index)) % count) as usize]);
        drawn.sum::<f64>() / count as f64
    };
    let mut means: Vec<f64> = (0..SAMPLES).map(sample).collect();
    means.sort_by(f64::total_cmp);
    let at = |share: f64| means[(share * (SAMPLES - 1) as f64).round() as usize];
    Some((at(OUTSIDE / 2.0), at(1.0 - OUTSIDE / 2.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(ours: &'static str, theirs: &'static str, runs: &[[Option<Verdict>; 2]]) -> JudgedPair<'static> {
        let runs = runs.to_vec();
        JudgedPair { ours, theirs, runs }
    }

    fn tallied(pairs: &[JudgedPair<'_>]) -> Judged {
        tally(&pairs.iter().collect::<Vec<_>>())
    }

    #[test]
    fn flips_and_lengths_are_counted_beside_the_wins() {
        use Verdict::{Ours, Theirs, Tie};
        let judged = tallied(&[
            pair("a b c", "a", &[[Some(Ours), Some(Ours)], [Some(Ours), Some(Ours)]]),
            pair("a b", "a b c", &[[Some(Ours), Some(Theirs)], [Some(Ours), Some(Tie)]]),
            pair("a", "a b", &[[Some(Theirs), Some(Theirs)], [Some(Theirs), None]]),
            pair("a b", "b a", &[[Some(Tie), Some(Tie)], [Some(Tie), Some(Tie)]]),
        ]);
        assert_eq!((judged.win, judged.tie, judged.loss, judged.unclear), (2, 1, 0, 1));
        assert_eq!(judged.preferred, Some(2.5 / 3.0));
        // Seven of the eight pairs of orders have two verdicts, and two of them differ.
        assert_eq!(judged.order_flips, Some(2.0 / 7.0));
        // Seven of the eight verdicts were given in both runs, and one differs.
        assert_eq!(judged.run_flips, Some(1.0 / 7.0));
        assert_eq!((judged.our_words, judged.their_words), (2.0, 2.0));
        // The longer answer won the first pair, and the shorter one the second.
        assert_eq!(judged.longer_won, Some(0.5));
        let once = tallied(&[pair("a", "b", &[[Some(Ours), Some(Ours)]])]);
        assert_eq!((once.run_flips, once.low, once.longer_won), (None, None, None));
    }

    #[test]
    fn an_interval_covers_the_truth_as_often_as_it_says() {
        let wins = 0.6;
        let covers = |trial: u64| {
            let won = |i| share_of_one(f64::from(random::uniform(random::key(&[9, trial]), i)) < wins);
            let (low, high) = interval(&(0..80).map(won).collect::<Vec<_>>()).unwrap();
            low <= wins && wins <= high
        };
        let covered = (0..200).filter(|trial| covers(*trial)).count();
        assert!((180..=198).contains(&covered), "{covered} of 200");
    }
}
