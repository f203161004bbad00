//! The `generate` command asks a bundle about sentences.

mod batch;
mod dialogue;
mod faults;
mod input;
mod row;

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use llink_proto::shown;
use llink_worker::bundle::{Answering, Generator, Opening, Sentence};
use llink_worker::device::Arithmetic;
use llink_worker::models::Sampling;
use tokio::runtime::Handle;

use super::{Exit, Failed, complain};
use faults::Faults;
use input::{Input, is_readable};

/// The default task, if the bundle was trained on it.
const TASK: &str = "translate";

/// The places of a bundle's models, and how they compute.
#[derive(Debug, clap::Args)]
pub(super) struct ModelOptions {
    /// The encoder's folder or URL, if it is not where the bundle says.
    #[arg(long, value_name = "URL")]
    pub(super) encoder: Option<String>,
    /// The decoder's folder or URL, if it is not where the bundle says.
    #[arg(long, value_name = "URL")]
    pub(super) decoder: Option<String>,
    /// The number format of the decoder's products: `f32`, `bf16`, or the faster of the two on this machine (`auto`).
    #[arg(long, env = "LLINK_COMPUTE", value_name = "FORMAT", default_value_t = Arithmetic::Auto)]
    pub(super) compute: Arithmetic,
}

#[derive(Debug, clap::Args)]
pub(super) struct Generate {
    /// The bundle: its folder or URL, or the output of the job that exported it.
    #[arg(long, value_name = "URL")]
    bundle: String,
    /// The text to read. Without it, each line of --file or of standard input is a text.
    text: Option<String>,
    /// Read texts from a file, one on each line.
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    file: Option<PathBuf>,
    /// The task, one that the bundle was trained on; `translate` by default.
    #[arg(long, conflicts_with = "instruction")]
    task: Option<String>,
    /// The instruction, in your own words.
    #[arg(long, value_name = "WORDS")]
    instruction: Option<String>,
    /// Ask one question after another about a text.
    #[arg(long, short, conflicts_with_all = ["file", "jsonl"])]
    interactive: bool,
    /// Answer each line of a JSON Lines file: {"text": …}, with its own "instruction" or "task" if it differs; - is
    /// standard input.
    #[arg(long, value_name = "IN", conflicts_with_all = ["text", "file"])]
    jsonl: Option<PathBuf>,
    /// The file for the answers. Answers that it already holds are kept, and the rest is added.
    #[arg(long, value_name = "OUT", requires = "jsonl")]
    output: Option<PathBuf>,
    /// Sample at this temperature; the default 0 takes the likeliest token each time.
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Sample among the likeliest tokens that together have this share of the probability.
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// The seed of the sampling; the same seed gives the same answer.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The longest answer, in tokens.
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    #[command(flatten)]
    models: ModelOptions,
    /// Folder for vectors of texts, and for models from object stores.
    #[arg(long, env = "LLINK_STATE", value_name = "DIR", default_value = ".llink")]
    state: PathBuf,
    /// Do not keep vectors on disk.
    #[arg(long)]
    no_cache: bool,
}

impl Generate {
    pub(super) async fn run(self) -> Result<(), Failed> {
        let answering = self.answering()?;
        let runtime = Handle::current();
        let work = tokio::task::spawn_blocking(move || self.work(answering, &runtime));
        work.await.map_err(|e| Exit::Internal.because(format!("the generator failed: {e}")))?
    }

    fn answering(&self) -> Result<Answering, Failed> {
        let wrong = |text: String| Err(Exit::Usage.because(text));
        if let Some(t) = self.temperature
            && !(t.is_finite() && t >= 0.0)
        {
            return wrong(format!("--temperature {t}: expected 0 or more"));
        }
        if let Some(p) = self.top_p
            && !(p > 0.0 && p <= 1.0)
        {
            return wrong(format!("--top-p {p}: expected above 0, at most 1"));
        }
        if self.max_tokens == 0 {
            return wrong("--max-tokens 0: expected at least 1".into());
        }
        Ok(Answering { max_tokens: self.max_tokens, sampling: Sampling::of(self.temperature, self.top_p, self.seed) })
    }

    fn work(self, answering: Answering, runtime: &Handle) -> Result<(), Failed> {
        let from_stdin = self.text.is_none() && self.file.is_none() && self.jsonl.is_none() && !self.interactive;
        if from_stdin && std::io::stdin().is_terminal() {
            let text = "there is no text: give one, --file, --jsonl or --interactive, or pipe texts in";
            return Err(Exit::Usage.because(text));
        }
        let opening = Opening {
            encoder: self.models.encoder.clone(),
            decoder: self.models.decoder.clone(),
            vectors: (!self.no_cache).then(|| self.state.join("vectors")),
            downloads: self.state.join("models"),
            compute: self.models.compute,
        };
        let generator = Generator::open(&self.bundle, opening, runtime)?;
        let instruction = self.instruction(&generator)?;
        let mut asking = Asking { generator, instruction, answering };
        if self.interactive {
            return dialogue::run(&mut asking, self.text.as_deref());
        }
        if let Some(input) = &self.jsonl {
            let input = Input::of_json(input, runtime)?;
            return batch::run(&mut asking, input, self.output.as_deref());
        }
        match &self.text {
            Some(text) => asking.tell(text).map(drop),
            None => {
                let file = self.file.as_deref().unwrap_or(Path::new(input::STANDARD_INPUT));
                asking.each_line(Input::of_text(file, runtime)?)
            }
        }
    }

    /// Returns the instruction for all lines that give none.
    fn instruction(&self, generator: &Generator) -> Result<String, Failed> {
        if let Some(words) = &self.instruction {
            return Ok(words.clone());
        }
        let named = |task: &str| generator.instruction(task).map(str::to_owned);
        match &self.task {
            Some(task) => named(task).map_err(|e| Exit::Usage.because(e.to_string())),
            None => named(TASK).map_err(|error| {
                let text = format!("{error}: say what to do with the text by --task or --instruction");
                Exit::Usage.because(text)
            }),
        }
    }
}

struct Asking {
    generator: Generator,
    instruction: String,
    answering: Answering,
}

impl Asking {
    /// Answers each line of a file as it comes. A line that can't be answered gets an empty line and is named at the
    /// end.
    fn each_line(&mut self, mut input: Input) -> Result<(), Failed> {
        let mut faults = Faults::of(&input);
        while let Some(line) = input.next()? {
            let fault = match line {
                Ok(text) if text.trim().is_empty() => continue,
                Ok(text) if is_readable(&text) => {
                    if self.tell(&text)?.is_break() {
                        break;
                    }
                    faults.answered();
                    continue;
                }
                Ok(_) => input::NOTHING_TO_READ.to_owned(),
                Err(fault) => fault,
            };
            faults.add(input.number(), fault);
            if writeln!(std::io::stdout()).is_err() {
                break;
            }
        }
        faults.conclude()
    }

    fn tell(&mut self, text: &str) -> Result<ControlFlow<()>, Failed> {
        let sentence = self.read(text)?;
        self.say(&sentence, &self.instruction)
    }

    fn read(&mut self, text: &str) -> Result<Sentence, Failed> {
        let sentence = self.generator.read(&[text])?.swap_remove(0);
        if sentence.unread_chars > 0 {
            complain(&format!(
                "the text is too long for the encoder: its last {} characters are not read",
                sentence.unread_chars
            ));
        }
        Ok(sentence)
    }

    /// Prints the answer word by word. It stops when the output is closed.
    fn say(&self, sentence: &Sentence, instruction: &str) -> Result<ControlFlow<()>, Failed> {
        let mut out = std::io::stdout().lock();
        let mut heard = ControlFlow::Continue(());
        let mut tell = |piece: &str| {
            if out.write_all(shown::text(piece).as_bytes()).and_then(|()| out.flush()).is_err() {
                heard = ControlFlow::Break(());
            }
            heard
        };
        self.generator.answer(sentence, instruction, self.answering, &mut tell)?;
        // This ends the line, and shows whether the output is still open.
        let _ = tell("\n");
        Ok(heard)
    }
}

fn unreadable(file: &Path, error: &std::io::Error) -> Failed {
    Exit::Input.because(format!("{}: {error}", file.display()))
}
