//! Estimates the speed of a stage and its remaining time.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use llink_datasets::measured::thousands;
use llink_proto::{Stage, StagePart};

/// A rate covers this many seconds, or the last advance if that took longer.
const HORIZON: f64 = 30.0;

#[derive(Debug, Default)]
pub(crate) struct Pace {
    phase: String,
    all: Window,
    /// Parts of the stage that use different models, whose speeds differ.
    parts: BTreeMap<String, Window>,
    now: f64,
}

impl Pace {
    /// Adds the state of the stage at the time `at`, which counts from any fixed moment.
    pub(crate) fn see(&mut self, stage: &Stage, at: Duration) {
        // A new phase starts a new count.
        if self.phase != stage.reason {
            *self = Self { phase: stage.reason.clone(), ..Self::default() };
        }
        self.now = at.as_secs_f64();
        self.all.see(stage.done, self.now);
        for part in &stage.parts {
            self.parts.entry(part.name.clone()).or_default().see(part.done, self.now);
        }
    }

    /// Returns `1,234 rows/s, 12 s left` or `3.2 s/step, 25 min left`; empty until there was an advance.
    pub(crate) fn text(&self, stage: &Stage) -> String {
        let Some(rate) = self.all.rate(self.now) else {
            return String::new();
        };
        let left = match stage.parts.as_slice() {
            [] => format!("{} left", duration(remaining(stage.done, stage.total) / rate)),
            parts => self.left_of(parts),
        };
        format!("{}, {left}", speed(rate, &stage.unit))
    }

    /// Estimates each part at its own rate. Parts that advance at the same time share the workers.
    fn left_of(&self, parts: &[StagePart]) -> String {
        let (mut together, mut active, mut paused) = (0.0, 0_u32, 0.0);
        let mut not_begun = Vec::new();
        for part in parts.iter().filter(|part| part.done < part.total) {
            let seen = self.parts.get(&part.name);
            match seen.and_then(|window| Some((window, window.rate(window.last_advance())?))) {
                None => not_begun.push(part.name.as_str()),
                Some((window, rate)) => {
                    let seconds = remaining(part.done, part.total) / rate;
                    match self.now - window.last_advance() <= HORIZON {
                        true => (together, active) = (together + seconds, active + 1),
                        false => paused += seconds,
                    }
                }
            }
        }
        let seconds = together / f64::from(active.max(1)) + paused;
        match not_begun.as_slice() {
            [] => format!("{} left", duration(seconds)),
            parts => format!("{} left and then the {}", duration(seconds), parts.join(" and the ")),
        }
    }
}

fn remaining(done: u64, total: u64) -> f64 {
    total.saturating_sub(done) as f64
}

#[derive(Debug, Default)]
struct Window {
    last: Option<u64>,
    /// The time and value of each advance. The value before the first advance is left out, because its age is unknown.
    advances: VecDeque<(f64, u64)>,
}

impl Window {
    fn see(&mut self, done: u64, now: f64) {
        match self.last.replace(done) {
            Some(last) if last < done => self.advances.push_back((now, done)),
            // A count goes back if training continues from a checkpoint.
            Some(last) if last > done => self.advances.clear(),
            _ => {}
        }
        while self.advances.len() > 2 && self.advances.get(1).is_some_and(|(at, _)| now - at > HORIZON) {
            self.advances.pop_front();
        }
    }

    fn last_advance(&self) -> f64 {
        self.advances.back().map_or(0.0, |(at, _)| *at)
    }

    /// Returns units per second, or `None` before the second advance.
    fn rate(&self, now: f64) -> Option<f64> {
        let ((began, first), (ended, last)) = (self.advances.front()?, self.advances.back()?);
        let intervals = self.advances.len().checked_sub(1).filter(|n| *n > 0)?;
        let usual = (ended - began) / intervals as f64;
        // An overdue advance lowers the rate.
        let until = if now - ended > usual { now } else { *ended };
        Some((last - first) as f64 / (until - began).max(1e-3))
    }
}

/// Formats a speed: `1,234 rows/s`, `3.4 steps/s`, `3.2 s/step`, `2 min 5 s/step`.
fn speed(rate: f64, unit: &str) -> String {
    let one = unit.strip_suffix('s').unwrap_or(unit);
    match rate {
        rate if rate >= 10.0 => format!("{} {unit}/s", thousands(rate.round() as u64)),
        rate if rate >= 1.0 => format!("{rate:.1} {unit}/s"),
        rate if rate > 1.0 / 60.0 => format!("{:.1} s/{one}", 1.0 / rate),
        rate => format!("{}/{one}", duration(1.0 / rate)),
    }
}

/// Formats a duration: `45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`.
fn duration(seconds: f64) -> String {
    let minutes = (seconds / 60.0).round() as u64;
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 90.0 * 60.0 => format!("{minutes} min"),
        s if s < 48.0 * 3600.0 => format!("{} h {} min", minutes / 60, minutes % 60),
        _ => format!("{} d {} h", minutes / 1440, minutes % 1440 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(done: u64, total: u64) -> Stage {
        Stage { unit: "steps".into(), reason: "train".into(), done, total, ..Stage::default() }
    }

    fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn slow_steps_are_told_in_seconds_and_fast_ones_by_the_second() {
        let told = |every: u64, by: u64| {
            let mut pace = Pace::default();
            assert_eq!(pace.text(&stage(0, 600)), "");
            for at in 0..5 {
                pace.see(&stage(at * by, 600), seconds(at * every));
            }
            pace.text(&stage(4 * by, 600))
        };
        assert_eq!(told(4, 1), "4.0 s/step, 40 min left");
        assert_eq!(told(1, 2), "2.0 steps/s, 5 min left");
        assert_eq!(told(1, 100), "100 steps/s, 2 s left");
        assert_eq!(told(90, 1), "2 min/step, 14 h 54 min left");
    }

    #[test]
    fn a_step_that_is_overdue_slows_the_rate_down() {
        let mut pace = Pace::default();
        for at in 0..4 {
            pace.see(&stage(at, 100), seconds(at));
        }
        assert!(pace.text(&stage(3, 100)).starts_with("1.0 steps/s"));
        pace.see(&stage(3, 100), seconds(21));
        assert!(pace.text(&stage(3, 100)).starts_with("10.0 s/step"), "{}", pace.text(&stage(3, 100)));
    }

    #[test]
    fn what_is_taken_up_again_and_a_new_phase_count_anew() {
        let mut pace = Pace::default();
        pace.see(&stage(50, 100), seconds(0));
        pace.see(&stage(60, 100), seconds(1));
        pace.see(&stage(20, 100), seconds(2));
        assert_eq!(pace.text(&stage(20, 100)), "");
        pace.see(&stage(21, 100), seconds(4));
        pace.see(&stage(22, 100), seconds(6));
        assert!(pace.text(&stage(22, 100)).starts_with("2.0 s/step"));
        let next = Stage { reason: "direct".into(), ..stage(30, 100) };
        pace.see(&next, seconds(5));
        assert_eq!(pace.text(&next), "");
    }

    /// Returns the stage after the given number of sentences of each model.
    fn embed(teacher: u64, encoder: u64) -> Stage {
        let part = |name: &str, done| StagePart { name: name.into(), done, total: 1_000 };
        Stage {
            unit: "sentences".into(),
            reason: "embed".into(),
            done: teacher + encoder,
            total: 2_000,
            parts: vec![part("teacher", teacher), part("encoder", encoder)],
            ..Stage::default()
        }
    }

    #[test]
    fn each_model_has_its_own_speed() {
        let mut pace = Pace::default();
        for second in 0..=50 {
            pace.see(&embed(10 * second, 0), seconds(second));
        }
        assert_eq!(pace.text(&embed(500, 0)), "10 sentences/s, 50 s left and then the encoder");
        for second in 51..=100 {
            pace.see(&embed(10 * second, 0), seconds(second));
        }
        for second in 1..=4 {
            pace.see(&embed(1_000, 100 * second), seconds(100 + second));
        }
        let told = pace.text(&embed(1_000, 400));
        assert!(told.ends_with(", 6 s left"), "{told}");
    }

    #[test]
    fn models_at_work_at_the_same_time_share_the_workers() {
        let mut pace = Pace::default();
        for second in 0..=10 {
            pace.see(&embed(10 * second, 50 * second), seconds(second));
        }
        // The rest is 90 s of the teacher's work and 10 s of the encoder's; two workers do half each.
        let told = pace.text(&embed(100, 500));
        assert!(told.ends_with(", 50 s left"), "{told}");
    }
}
