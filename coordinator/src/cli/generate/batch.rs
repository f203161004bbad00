//! Answers to each line of a JSON-lines file. What was answered before is kept, so that a run that was stopped goes on.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Lines, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use llink_worker::models::Sampling;
use serde_json::{Map, Value, json};

use super::{Asking, failed, unreadable};
use crate::cli::{Exit, Failed, say};
use crate::ui::thousands;

/// Texts that the encoder reads together.
const TOGETHER: usize = 64;

/// Answers `input` into `output`, or onto standard output.
pub(super) fn run(asking: &mut Asking, input: &Path, output: Option<&Path>) -> Result<(), Failed> {
    let began = Instant::now();
    let mut rows = Rows::open(asking, input)?;
    let made_by = made_by(asking);
    let (mut out, kept): (Box<dyn Write>, u64) = match output {
        Some(path) => {
            let (file, kept) = go_on(path, &mut rows, &made_by)?;
            (Box::new(BufWriter::new(file)), kept)
        }
        None => (Box::new(std::io::stdout().lock()), 0),
    };
    let name = output.unwrap_or(Path::new("standard output"));
    let mut answered = 0;
    loop {
        // What stands before a line that can't be read is answered first.
        let (mut together, mut fault) = (Vec::new(), None);
        while together.len() < TOGETHER && fault.is_none() {
            match rows.next() {
                Some(Ok(row)) => together.push(row),
                Some(Err(error)) => fault = Some(error),
                None => break,
            }
        }
        let last = together.len() < TOGETHER;
        answered += together.len();
        for line in answers(asking, together, &made_by)? {
            let written = writeln!(out, "{}", line?).and_then(|()| out.flush());
            match written {
                Ok(()) => {}
                // The reader of standard output has enough.
                Err(_) if output.is_none() => return Ok(()),
                Err(e) => return Err(Failed::new(Exit::Storage, format!("{}: {e}", name.display()))),
            }
        }
        match fault {
            Some(fault) => return Err(fault),
            None if last => break,
            None => {}
        }
    }
    if output.is_some() {
        let (answered, took) = (thousands(answered as u64), began.elapsed().as_secs_f64());
        let before = match kept {
            0 => String::new(),
            kept => format!("; {} were there before", thousands(kept)),
        };
        say(&format!(
            "{}: {answered} answers in {took:.1} s{before}",
            name.display()
        ));
    }
    Ok(())
}

/// The answered rows, one after another.
fn answers<'a>(
    asking: &'a mut Asking,
    rows: Vec<Row>,
    made_by: &'a Value,
) -> Result<impl Iterator<Item = Result<Value, Failed>> + use<'a>, Failed> {
    let texts: Vec<&str> = rows.iter().map(|row| row.text.as_str()).collect();
    let sentences = asking.generator.read(&texts).map_err(failed)?;
    let asking = &*asking;
    Ok(rows.into_iter().zip(sentences).map(move |(mut row, sentence)| {
        let going_on = &mut |_: &str| ControlFlow::Continue(());
        let answer = asking
            .generator
            .answer(&sentence, &row.instruction, asking.answering, going_on)
            .map_err(failed)?;
        row.given.insert("instruction".into(), row.instruction.into());
        row.given.insert("generated".into(), answer.into());
        row.given.insert("made_by".into(), made_by.clone());
        Ok(row.given.into())
    }))
}

/// What every answer of this run is made by: answers of another bundle, or otherwise sampled, do not belong into the same file.
fn made_by(asking: &Asking) -> Value {
    let sampling = match asking.answering.sampling {
        Sampling::Greedy => json!("greedy"),
        Sampling::Nucleus {
            temperature,
            top_p,
            seed,
        } => json!({"temperature": temperature, "top_p": top_p, "seed": seed}),
    };
    json!({
        "bundle": asking.generator.key(),
        "sampling": sampling,
        "max_tokens": asking.answering.max_tokens,
    })
}

/// A line of the input.
struct Row {
    given: Map<String, Value>,
    text: String,
    instruction: String,
}

/// The lines of the input.
struct Rows {
    lines: Lines<Box<dyn BufRead>>,
    name: PathBuf,
    number: u64,
    /// By task, and what is asked unless a line says otherwise.
    instructions: BTreeMap<String, String>,
    usual: String,
}

impl Rows {
    fn open(asking: &Asking, input: &Path) -> Result<Self, Failed> {
        let reader: Box<dyn BufRead> = if input == Path::new("-") {
            Box::new(std::io::stdin().lock())
        } else {
            Box::new(BufReader::new(File::open(input).map_err(|e| unreadable(input, &e))?))
        };
        Ok(Self {
            lines: reader.lines(),
            name: input.into(),
            number: 0,
            instructions: asking.generator.instructions().clone(),
            usual: asking.instruction.clone(),
        })
    }

    fn parse(&self, line: &str) -> Result<Row, String> {
        let value: Value = serde_json::from_str(line).map_err(|e| format!("is not JSON: {e}"))?;
        let Value::Object(given) = value else {
            return Err("is not a JSON object".into());
        };
        let text = ["text", "foreign"].iter().find_map(|key| given.get(*key)?.as_str());
        let text = text.ok_or(r#"has no "text""#)?.to_owned();
        if text.trim().is_empty() {
            return Err("has an empty text".into());
        }
        let words = |key: &str| given.get(key).and_then(Value::as_str);
        let instruction = match (words("instruction"), words("task")) {
            (Some(instruction), _) => instruction,
            (None, Some(task)) => self.instructions.get(task).ok_or_else(|| {
                let known: Vec<&str> = self.instructions.keys().map(String::as_str).collect();
                format!("asks for task {task:?}; the bundle knows {}", known.join(", "))
            })?,
            (None, None) => &self.usual,
        };
        Ok(Row {
            instruction: instruction.to_owned(),
            text,
            given,
        })
    }
}

impl Iterator for Rows {
    type Item = Result<Row, Failed>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let line = match self.lines.next()? {
                Ok(line) => line,
                Err(error) => return Some(Err(unreadable(&self.name, &error))),
            };
            self.number += 1;
            if line.trim().is_empty() {
                continue;
            }
            let wrong = |what| Failed::new(Exit::Input, format!("{}:{}: {what}", self.name.display(), self.number));
            return Some(self.parse(&line).map_err(wrong));
        }
    }
}

/// Opens the output behind the answers that it holds, and reads over as many rows.
fn go_on(output: &Path, rows: &mut Rows, made_by: &Value) -> Result<(File, u64), Failed> {
    let refused = |e: std::io::Error| Failed::new(Exit::Storage, format!("{}: {e}", output.display()));
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(output)
        .map_err(refused)?;
    let (mut reader, mut line, mut whole, mut kept) = (BufReader::new(&file), Vec::new(), 0, 0);
    loop {
        line.clear();
        reader.read_until(b'\n', &mut line).map_err(refused)?;
        // The last line may have been cut off in the middle: it is written again.
        if line.pop() != Some(b'\n') {
            break;
        }
        let found: Value = serde_json::from_slice(&line).unwrap_or_default();
        let expected = rows.next().transpose()?;
        if !expected.is_some_and(|row| is_answer_to(&found, &row, made_by)) {
            let text = format!(
                "{}:{}: is no answer to that line of the input by this bundle with these settings: name another --output, or \
                 remove it",
                output.display(),
                kept + 1
            );
            return Err(Failed::new(Exit::Usage, text));
        }
        whole += line.len() as u64 + 1;
        kept += 1;
    }
    file.set_len(whole).map_err(refused)?;
    file.seek(SeekFrom::Start(whole)).map_err(refused)?;
    Ok((file, kept))
}

fn is_answer_to(found: &Value, row: &Row, made_by: &Value) -> bool {
    let same = |(key, value): (&String, &Value)| key == "generated" || key == "made_by" || found[key] == *value;
    found["generated"].is_string()
        && found["made_by"] == *made_by
        && found["instruction"] == row.instruction.as_str()
        && row.given.iter().all(same)
}
