//! Answers each line of a JSON Lines file. Existing answers are kept, so that a stopped run can continue.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use llink_worker::models::Sampling;
use serde_json::{Value, json};

use super::Asking;
use super::faults::Faults;
use super::input::Input;
use super::row::{Instructions, Row};
use crate::cli::{Exit, Failed, of_file, say};
use llink_datasets::measured::thousands;

/// Texts that the encoder reads in one batch.
const TOGETHER: usize = 64;
/// Answers that the decoder computes at once.
const AT_ONCE: usize = 16;

/// Answers `input` into `output`, or to standard output. A line that can't be answered gets null and is named at the
/// end.
pub(super) fn run(asking: &mut Asking, input: Input, output: Option<&Path>) -> Result<(), Failed> {
    let began = Instant::now();
    let mut faults = Faults::of(&input);
    let mut rows = Rows::new(asking, input);
    let made_by = made_by(asking);
    let (mut out, kept): (Box<dyn Write>, u64) = match output {
        Some(path) => {
            let (file, kept) = go_on(path, &mut rows, &made_by, &mut faults)?;
            (Box::new(BufWriter::new(file)), kept)
        }
        None => (Box::new(std::io::stdout().lock()), 0),
    };
    let name = output.unwrap_or(Path::new("standard output"));
    let mut answered = 0;
    loop {
        // The rows before an unreadable place are answered first.
        let (mut together, mut broken) = (Vec::new(), None);
        for row in rows.by_ref().take(TOGETHER) {
            match row {
                Ok(row) => together.push(row),
                Err(error) => {
                    broken = Some(error);
                    break;
                }
            }
        }
        let is_last = together.len() < TOGETHER;
        let mut lines = Lines { rows: &together, made_by: &made_by, faults: &mut faults, out: &mut out, written: 0 };
        let written = answer(asking, &mut lines)?;
        answered += lines.written as u64;
        match written {
            Ok(()) => {}
            // The reader of standard output has closed it.
            Err(_) if output.is_none() => return Ok(()),
            Err(e) => return Err(of_file(name, &e)),
        }
        match broken {
            Some(error) => return Err(error),
            None if is_last => break,
            None => {}
        }
    }
    if output.is_some() {
        let (answered, took) = (thousands(answered), began.elapsed().as_secs_f64());
        let before = match kept {
            0 => String::new(),
            kept => format!("; {} were there before", thousands(kept)),
        };
        say(&format!("{}: {answered} answers in {took:.1} s{before}", name.display()));
    }
    faults.conclude()
}

/// The lines of some rows, which are written in the order of the rows.
struct Lines<'a> {
    rows: &'a [Row],
    made_by: &'a Value,
    faults: &'a mut Faults,
    out: &'a mut dyn Write,
    written: usize,
}

impl Lines<'_> {
    fn write(&mut self, answers: &[Option<Result<String, String>>]) -> std::io::Result<()> {
        while let Some(Some(answer)) = answers.get(self.written) {
            let row = &self.rows[self.written];
            match answer {
                Ok(_) => self.faults.answered(),
                Err(fault) => self.faults.add(row.number, fault.clone()),
            }
            writeln!(self.out, "{}", row.answered(answer.clone(), self.made_by))?;
            self.out.flush()?;
            self.written += 1;
        }
        Ok(())
    }
}

/// Answers the rows, and writes each line as soon as all before it are there.
fn answer(asking: &mut Asking, lines: &mut Lines<'_>) -> Result<std::io::Result<()>, Failed> {
    let rows = lines.rows;
    let mut answers: Vec<_> = rows.iter().map(|row| row.asked.as_ref().err().cloned().map(Err)).collect();
    let asked = rows.iter().enumerate();
    let asked: Vec<_> = asked.filter_map(|(at, row)| Some((at, row.asked.as_ref().ok()?))).collect();
    let texts: Vec<&str> = asked.iter().map(|(_, question)| question.text.as_str()).collect();
    let sentences = asking.generator.read(&texts)?;
    let instructions = asked.iter().map(|(_, question)| question.instruction.as_str());
    let questions: Vec<_> = sentences.iter().zip(instructions).collect();
    let mut written = lines.write(&answers);
    let mut told = |question: usize, answer| {
        answers[asked[question].0] = Some(answer);
        if written.is_ok() {
            written = lines.write(&answers);
        }
        match written {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    };
    asking.generator.answer_each(&questions, asking.answering, AT_ONCE, &mut told)?;
    Ok(written)
}

/// Describes what determines the answers of this run. Answers of another bundle or other sampling settings do not
/// belong in the same file.
fn made_by(asking: &Asking) -> Value {
    let sampling = match asking.answering.sampling {
        Sampling::Greedy => json!("greedy"),
        Sampling::Nucleus { temperature, top_p, seed } => {
            json!({"temperature": temperature, "top_p": top_p, "seed": seed})
        }
    };
    json!({
        "bundle": asking.generator.key(),
        "sampling": sampling,
        "max_tokens": asking.answering.max_tokens,
    })
}

struct Rows {
    input: Input,
    instructions: Instructions,
}

impl Rows {
    fn new(asking: &Asking, input: Input) -> Self {
        let instructions =
            Instructions { of_tasks: asking.generator.instructions().clone(), usual: asking.instruction.clone() };
        Self { input, instructions }
    }
}

impl Iterator for Rows {
    type Item = Result<Row, Failed>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let line = match self.input.next().transpose()? {
                Ok(line) => line,
                Err(error) => return Some(Err(error)),
            };
            if line.as_ref().is_ok_and(|line| line.trim().is_empty()) {
                continue;
            }
            return Some(Ok(Row::parse(self.input.number(), line, &self.instructions)));
        }
    }
}

/// Opens the output after its existing answers, and skips as many rows.
fn go_on(output: &Path, rows: &mut Rows, made_by: &Value, faults: &mut Faults) -> Result<(File, u64), Failed> {
    let refused = |e: std::io::Error| of_file(output, &e);
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(output).map_err(refused)?;
    let (mut reader, mut line, mut whole, mut kept) = (BufReader::new(&file), Vec::new(), 0, 0);
    loop {
        line.clear();
        reader.read_until(b'\n', &mut line).map_err(refused)?;
        // The last line may be incomplete and is then written again.
        if line.pop() != Some(b'\n') {
            break;
        }
        let found = String::from_utf8_lossy(&line);
        let expected = rows.next().transpose()?;
        let row = expected.filter(|row| row.is_answered_by(&found, made_by));
        let Some(row) = row else {
            let text = format!(
                "{}:{}: is not an answer to that line of the input by this bundle with these settings: name another --output, or \
                 remove it",
                output.display(),
                kept + 1
            );
            return Err(Exit::Usage.because(text));
        };
        match row.asked {
            Ok(_) => faults.answered(),
            Err(fault) => faults.add(row.number, fault),
        }
        whole += line.len() as u64 + 1;
        kept += 1;
    }
    file.set_len(whole).map_err(refused)?;
    file.seek(SeekFrom::Start(whole)).map_err(refused)?;
    Ok((file, kept))
}
