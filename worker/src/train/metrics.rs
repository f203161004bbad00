//! The numbers of a training in the making: JSON lines and TensorBoard records since they were last handed on.

use std::time::{SystemTime, UNIX_EPOCH};

use super::event_file;
use super::step_record::StepRecord;

/// Numbers of some consecutive steps.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MetricsPiece {
    /// The first step in it, the last step in it.
    pub steps: Option<(u64, u64)>,
    /// A line for each step.
    pub lines: String,
    /// A TensorBoard event file.
    pub events: Vec<u8>,
    /// Seconds that the steps took.
    pub step_seconds: f64,
}

impl MetricsPiece {
    /// Notes a step.
    pub fn push(&mut self, record: &StepRecord, ranks: usize) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = since.as_secs_f64();
        if self.events.is_empty() {
            self.events = event_file::opening(now);
        }
        let first = self.steps.map_or(record.step, |(first, _)| first);
        self.steps = Some((first, record.step));
        self.lines.push_str(&record.line(ranks));
        self.events
            .extend(event_file::scalars(now, record.step, &record.scalars()));
        self.step_seconds += record.seconds.total;
    }

    /// Adds the piece that comes next.
    pub fn append(&mut self, next: Self) {
        let Some((first, last)) = next.steps else { return };
        self.steps = Some((self.steps.map_or(first, |(first, _)| first), last));
        self.lines.push_str(&next.lines);
        // A second opening record in the middle of a file is read over.
        self.events.extend(next.events);
        self.step_seconds += next.step_seconds;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_add_up() {
        let record = |step| StepRecord {
            step,
            numbers: vec![("loss", step as f64)],
            ..StepRecord::default()
        };
        let mut whole = MetricsPiece::default();
        whole.append(MetricsPiece::default());
        assert_eq!(whole, MetricsPiece::default());
        for steps in [3..5, 5..9] {
            let mut piece = MetricsPiece::default();
            steps.for_each(|step| piece.push(&record(step), 1));
            whole.append(piece);
        }
        assert_eq!((whole.steps, whole.lines.lines().count()), (Some((3, 8)), 6));
    }
}
