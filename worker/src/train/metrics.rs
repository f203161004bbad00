//! The metrics of a training since they were last saved, as JSON lines and TensorBoard records.

use std::time::{SystemTime, UNIX_EPOCH};

use super::event_file;
use super::step_record::StepRecord;

/// The metrics of some consecutive steps.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MetricsPiece {
    /// The first step and the last step.
    pub steps: Option<(u64, u64)>,
    /// The JSON lines, one for each step.
    pub lines: String,
    /// The content of a TensorBoard event file.
    pub events: Vec<u8>,
    /// The seconds that the steps took.
    pub step_seconds: f64,
}

impl MetricsPiece {
    /// Adds a step.
    pub fn push(&mut self, record: &StepRecord, ranks: usize) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = since.as_secs_f64();
        if self.events.is_empty() {
            self.events = event_file::opening(now);
        }
        let first = self.steps.map_or(record.step, |(first, _)| first);
        self.steps = Some((first, record.step));
        self.lines.push_str(&record.line(ranks));
        self.events.extend(event_file::scalars(now, record.step, &record.scalars()));
        self.step_seconds += record.seconds.total;
    }

    /// Adds the next piece.
    pub fn append(&mut self, next: Self) {
        let Some((first, last)) = next.steps else { return };
        self.steps = Some((self.steps.map_or(first, |(first, _)| first), last));
        self.lines.push_str(&next.lines);
        // TensorBoard skips a second opening record in the middle of a file.
        self.events.extend(next.events);
        self.step_seconds += next.step_seconds;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_add_up() {
        let record = |step| StepRecord { step, numbers: vec![("loss", step as f64)], ..StepRecord::default() };
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
