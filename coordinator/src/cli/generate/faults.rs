//! Counts the lines that have no answer, and names them at the end.

use super::input::Input;
use crate::cli::{Exit, Failed, complain};

/// The most lines that are named; the others are counted.
const NAMED: usize = 10;

pub(super) struct Faults {
    name: String,
    named: Vec<String>,
    count: usize,
    has_answers: bool,
}

impl Faults {
    pub(super) fn of(input: &Input) -> Self {
        Self { name: input.name().to_owned(), named: Vec::new(), count: 0, has_answers: false }
    }

    pub(super) fn answered(&mut self) {
        self.has_answers = true;
    }

    pub(super) fn add(&mut self, line: u64, fault: String) {
        self.count += 1;
        if self.named.len() < NAMED {
            self.named.push(format!("{}:{line}: {fault}", self.name));
        }
    }

    /// Names the lines. It is an error if no line at all was answered.
    pub(super) fn conclude(self) -> Result<(), Failed> {
        if self.count == 0 {
            return Ok(());
        }
        let unnamed = self.count - self.named.len();
        let mut text = self.named.join("\n");
        if unnamed > 0 {
            text.push_str(&format!("\n{}: {unnamed} more lines", self.name));
        }
        if !self.has_answers {
            return Err(Exit::Input.because(format!("no line could be answered:\n{text}")));
        }
        let lines = if self.count == 1 { "line has" } else { "lines have" };
        complain(&format!("{} {lines} no answer:\n{text}", self.count));
        Ok(())
    }
}
