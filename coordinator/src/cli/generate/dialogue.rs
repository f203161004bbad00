//! Answers one question after another about a text, which is read once.

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;

use super::{Asking, is_readable, unreadable};
use crate::cli::{Failed, complain};

pub(super) fn run(asking: &mut Asking, first: Option<&str>) -> Result<(), Failed> {
    let mut lines = Lines::new();
    if lines.shown {
        lines.hint("a question about the text, or the name of a task; an empty line for another text; Ctrl-D ends");
    }
    let mut text = first.map(str::to_owned);
    loop {
        let Some(read) = text.take().map_or_else(|| lines.next("text"), |text| Ok(Some(text)))? else {
            return Ok(());
        };
        if read.trim().is_empty() {
            continue;
        }
        if !is_readable(&read) {
            complain("there is nothing to read in this text");
            continue;
        }
        let sentence = asking.read(&read)?;
        loop {
            let Some(question) = lines.next("question")? else {
                return Ok(());
            };
            let question = question.trim();
            if question.is_empty() {
                break;
            }
            let instruction = asking.generator.instruction(question).unwrap_or(question);
            if asking.say(&sentence, instruction)? == ControlFlow::Break(()) {
                return Ok(());
            }
        }
    }
}

/// Lines of standard input. A terminal gets a prompt that says what to enter.
struct Lines {
    input: std::io::Lines<std::io::StdinLock<'static>>,
    shown: bool,
}

impl Lines {
    fn new() -> Self {
        Self { input: std::io::stdin().lines(), shown: std::io::stdin().is_terminal() }
    }

    fn next(&mut self, waited_for: &str) -> Result<Option<String>, Failed> {
        if self.shown {
            let mut err = std::io::stderr();
            // An error in writing the prompt is ignored.
            let _ = write!(err, "{waited_for}> ").and_then(|()| err.flush());
        }
        let line = self.input.next().transpose();
        line.map_err(|e| unreadable(std::path::Path::new("standard input"), &e))
    }

    fn hint(&self, text: &str) {
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}
