//! Answers each line of a JSON Lines file. Existing answers are kept, so that a stopped run can continue.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use llink_worker::Error;
use llink_worker::models::Sampling;
use serde_json::{Value, json};

use super::faults::Faults;
use super::input::Input;
use super::row::{Instructions, Row};
use super::{Asking, failed};
use crate::cli::{Exit, Failed, say};
use llink_datasets::measured::thousands;

/// Texts that the encoder reads in one batch.
const TOGETHER: usize = 64;

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
        for line in answers(asking, &together, &made_by, &mut faults)? {
            let written = writeln!(out, "{}", line?).and_then(|()| out.flush());
            match written {
                Ok(()) => answered += 1,
                // The reader of standard output has closed it.
                Err(_) if output.is_none() => return Ok(()),
                Err(e) => return Err(Failed::new(Exit::Storage, format!("{}: {e}", name.display()))),
            }
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
        say(&format!(
            "{}: {answered} answers in {took:.1} s{before}",
            name.display()
        ));
    }
    faults.conclude()
}

/// Answers the rows, one after another.
fn answers<'a>(
    asking: &'a mut Asking,
    rows: &'a [Row],
    made_by: &'a Value,
    faults: &'a mut Faults,
) -> Result<impl Iterator<Item = Result<String, Failed>> + use<'a>, Failed> {
    let questions = rows.iter().filter_map(|row| row.asked.as_ref().ok());
    let texts: Vec<&str> = questions.map(|question| question.text.as_str()).collect();
    let mut sentences = asking.generator.read(&texts).map_err(failed)?.into_iter();
    let asking = &*asking;
    Ok(rows.iter().map(move |row| {
        let going_on = &mut |_: &str| ControlFlow::Continue(());
        let answer = match &row.asked {
            Err(fault) => Err(fault.clone()),
            Ok(question) => {
                let sentence = sentences.next().expect("each question's text was read");
                let generator = &asking.generator;
                match generator.answer(&sentence, &question.instruction, asking.answering, going_on) {
                    Ok(answer) => Ok(answer),
                    Err(Error::Input(fault)) => Err(fault),
                    Err(error) => return Err(failed(error)),
                }
            }
        };
        match &answer {
            Ok(_) => faults.answered(),
            Err(fault) => faults.add(row.number, fault.clone()),
        }
        Ok(row.answered(answer, made_by))
    }))
}

/// Describes what determines the answers of this run. Answers of another bundle or other sampling settings do not
/// belong in the same file.
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

/// The lines of the input, without blank lines.
struct Rows {
    input: Input,
    instructions: Instructions,
}

impl Rows {
    fn new(asking: &Asking, input: Input) -> Self {
        let instructions = Instructions {
            of_tasks: asking.generator.instructions().clone(),
            usual: asking.instruction.clone(),
        };
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
            return Err(Failed::new(Exit::Usage, text));
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
