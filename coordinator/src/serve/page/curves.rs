//! The figures of trainings by step, as heartbeats report them. They are thinned, so that they stay small.

use std::collections::{BTreeMap, BTreeSet};

use llink_proto::Stage;

/// The most points of a curve. Beyond that, every second point is dropped.
const POINTS: usize = 400;
/// The step of the newest validation on held-out data.
const HELD_OUT_STEP: &str = "validation/step";
/// The charts, each with the figures that it shows if they exist.
const CHARTS: [(&str, &[&str]); 4] = [
    ("loss", &["loss", "info_nce", "sft", "validation/sft"]),
    ("held-out retrieval", &["validation/r1", "validation/mrr", "validation/cosine_r1"]),
    ("worth of the slots", &["usage_gap", "validation/usage_gap"]),
    ("temperature", &["temperature"]),
];

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Curves(BTreeMap<&'static str, Curve>);

#[derive(Debug, Clone, PartialEq)]
struct Curve {
    /// The distance between kept points, in reported points.
    every: u64,
    seen: u64,
    points: Vec<(u64, f64)>,
    newest: (u64, f64),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chart {
    pub(super) title: &'static str,
    pub(super) names: Vec<&'static str>,
    pub(super) steps: Vec<u64>,
    /// The value of each name at each step, where there is one.
    pub(super) values: Vec<Vec<Option<f64>>>,
}

pub(in crate::serve) fn step_of(stage: &Stage, figure: &str) -> u64 {
    let held_out = stage.figures.get(HELD_OUT_STEP).map(|step| *step as u64);
    match figure.starts_with("validation/") {
        true => held_out.unwrap_or(stage.done),
        false => stage.done,
    }
}

impl Curves {
    pub(super) fn see(&mut self, stage: &Stage) {
        if stage.unit != "steps" {
            return;
        }
        for name in CHARTS.iter().flat_map(|(_, names)| *names) {
            let Some(value) = stage.figures.get(*name).filter(|value| value.is_finite()) else {
                continue;
            };
            let step = step_of(stage, name);
            let curve = self.0.entry(name).or_insert_with(|| Curve::starting_at(step, *value));
            curve.see(step, *value);
        }
    }

    pub(super) fn charts(&self) -> Vec<Chart> {
        CHARTS.iter().filter_map(|(title, names)| self.chart(title, names)).collect()
    }

    fn chart(&self, title: &'static str, names: &[&'static str]) -> Option<Chart> {
        let found: Vec<(&'static str, BTreeMap<u64, f64>)> =
            names.iter().filter_map(|name| Some((*name, self.0.get(name)?.all().collect()))).collect();
        let steps: BTreeSet<u64> = found.iter().flat_map(|(_, points)| points.keys().copied()).collect();
        let at_steps = |points: &BTreeMap<u64, f64>| steps.iter().map(|step| points.get(step).copied()).collect();
        (!found.is_empty()).then(|| Chart {
            title,
            names: found.iter().map(|(name, _)| *name).collect(),
            values: found.iter().map(|(_, points)| at_steps(points)).collect(),
            steps: steps.iter().copied().collect(),
        })
    }
}

impl Curve {
    fn starting_at(step: u64, value: f64) -> Self {
        Self { every: 1, seen: 0, points: Vec::new(), newest: (step, value) }
    }

    fn see(&mut self, step: u64, value: f64) {
        if self.seen > 0 && step == self.newest.0 {
            return;
        }
        // A training that continues from a checkpoint repeats some steps.
        self.points.retain(|(at, _)| *at < step);
        if self.seen.is_multiple_of(self.every) {
            self.points.push((step, value));
        }
        self.seen += 1;
        self.newest = (step, value);
        if self.points.len() > POINTS {
            let mut index = 0;
            self.points.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.every *= 2;
        }
    }

    fn all(&self) -> impl Iterator<Item = (u64, f64)> {
        self.points.iter().copied().chain([self.newest])
    }
}

impl Chart {
    /// Describes the chart in words, with the first and the newest value of each figure.
    pub(super) fn in_words(&self) -> String {
        let curve = |(name, values): (&&str, &Vec<Option<f64>>)| {
            let mut points = self.steps.iter().zip(values).filter_map(|(step, value)| Some((step, (*value)?)));
            let (first, value) = points.next()?;
            Some(match points.next_back() {
                None => format!("{name} {value:.4} at step {first}"),
                Some((last, newest)) => format!("{name} from {value:.4} at step {first} to {newest:.4} at step {last}"),
            })
        };
        let curves: Vec<String> = self.names.iter().zip(&self.values).filter_map(curve).collect();
        format!("{}: {}.", self.title, curves.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(done: u64, figures: &[(&str, f64)]) -> Stage {
        Stage {
            unit: "steps".into(),
            done,
            figures: figures.iter().map(|(name, value)| ((*name).into(), *value)).collect(),
            ..Stage::default()
        }
    }

    #[test]
    fn a_long_curve_stays_small_and_keeps_its_ends() {
        let mut curves = Curves::default();
        for step in 0..100_000 {
            curves.see(&stage(step, &[("loss", step as f64)]));
        }
        let chart = curves.charts().remove(0);
        assert!((POINTS / 2..=POINTS + 1).contains(&chart.steps.len()), "{}", chart.steps.len());
        assert_eq!((chart.steps[0], chart.steps.last()), (0, Some(&99_999)));
        assert_eq!(chart.in_words(), "loss: loss from 0.0000 at step 0 to 99999.0000 at step 99999.");
    }

    #[test]
    fn held_out_numbers_stand_at_their_step_and_repeated_steps_replace_earlier_ones() {
        let mut curves = Curves::default();
        let at =
            |step, loss, held: f64, r1| stage(step, &[("loss", loss), (HELD_OUT_STEP, held), ("validation/r1", r1)]);
        for seen in [at(10, 2.0, 5.0, 0.1), at(20, 1.0, 5.0, 0.1), at(30, 0.5, 25.0, 0.3)] {
            curves.see(&seen);
        }
        curves.see(&at(20, 1.5, 25.0, 0.3));
        curves.see(&stage(25, &[("loss", f64::NAN)]));
        let charts = curves.charts();
        assert_eq!(
            (charts[0].steps.as_slice(), charts[0].values[0].as_slice()),
            (&[10, 20][..], &[Some(2.0), Some(1.5)][..])
        );
        assert_eq!((charts[1].title, charts[1].steps.as_slice()), ("held-out retrieval", &[5, 25][..]));
    }
}
