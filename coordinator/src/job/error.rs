//! The faults of a job file, for people: line, column, key, what was expected, the nearest name.

use std::fmt;
use std::ops::Range;

use llink_datasets::shown::redacted;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The dotted path of the key, or empty for the file as a whole.
    pub key: String,
    /// The byte range of the fault in the text.
    pub span: Option<Range<usize>>,
    pub what: String,
    pub help: Option<String>,
}

/// All faults of a job file, ready to print with their lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobFileError {
    pub(super) file_name: String,
    pub(super) text: String,
    pub(super) problems: Vec<Problem>,
}

/// Returns line and column, both from 1; the column counts characters.
pub(super) fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..offset.min(text.len())];
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

impl fmt::Display for JobFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            let Some(span) = &problem.span else {
                write!(f, "{}: {}", self.file_name, redacted(&problem.what))?;
                if let Some(help) = &problem.help {
                    write!(f, "\n  = {help}")?;
                }
                continue;
            };
            let (line, column) = line_and_column(&self.text, span.start);
            let source = redacted(self.text.lines().nth(line - 1).unwrap_or(""));
            let underlined = self.text.get(span.clone()).map_or(1, |s| s.lines().next().unwrap_or("").chars().count());
            // Only the visible part of the line is underlined.
            let underlined = underlined.min((source.chars().count() + 1).saturating_sub(column));
            let margin = line.to_string().len();
            writeln!(f, "{}:{line}:{column}: {}", self.file_name, redacted(&problem.what))?;
            writeln!(f, "{:margin$} |", "")?;
            writeln!(f, "{line} | {source}")?;
            write!(f, "{:margin$} | {:pad$}{}", "", "", "^".repeat(underlined.max(1)), pad = column - 1)?;
            if let Some(help) = &problem.help {
                write!(f, "\n{:margin$} = {help}", "")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for JobFileError {}
