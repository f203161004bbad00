//! Step one: read one source, clean each row, write what is kept sorted by the hash of its foreign text.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::run::Run;
use super::{Progress, SOURCE_KEY};
use crate::clean::{Checked, Cleaner, DropReason, Language, Rules, Tally, TooLong};
use crate::manifest::ManifestArtifact;
use crate::read::{Fault, RawRow, ReadRow, RowReader, Source};
use crate::rows::{Corpus, InstructionExample, Pair};
use crate::shown::ShownUrl;
use crate::store::Store;
use crate::table::bad;
use crate::{Result, sample};

use bytes::Bytes;

/// Offenders that are named, for each reason; the counts tell of the others.
const NAMED_OFFENDERS: u64 = 3;
/// Rows that are cleaned at once, by all threads.
const CHUNK_ROWS: usize = 8_192;

/// So many examples are made up at most for one that is wanted.
const MADE_UP_FOR_ONE: u64 = 200;

/// What to read and what to keep of it.
#[derive(Debug, Clone, PartialEq)]
pub struct CleanSpec {
    /// What the source holds.
    pub corpus: Corpus,
    /// Where it is and how it is to be read; the URL [`sample::SOURCE`] stands for made-up rows.
    pub source: Source,
    /// How many rows to make up, for [`sample::SOURCE`]: of instructions, so many of the wanted tasks and lengths.
    pub sample_rows: u64,
    /// Which rows to make up.
    pub seed: u64,
    /// What to keep.
    pub rules: Rules,
    /// Tasks of instructions that are kept; empty: all.
    pub tasks: Vec<String>,
    /// Whether to write what near-duplicates are found by.
    pub with_signatures: bool,
}

impl CleanSpec {
    /// Whether an example that was made up is one to offer.
    fn keeps_made_up(&self, example: &InstructionExample) -> bool {
        let longest = match (self.rules.max_chars, self.rules.too_long) {
            (0, _) | (_, TooLong::Cut) => usize::MAX,
            (longest, TooLong::Drop) => longest as usize,
        };
        (self.tasks.is_empty() || self.tasks.contains(&example.task)) && example.foreign.chars().count() <= longest
    }
}

/// What [`clean_source`] wrote and found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cleaned {
    /// The cleaned rows: one table, or several for a large source.
    pub artifacts: Vec<ManifestArtifact>,
    /// `rows = kept + Σ dropped_<reason>`; `cut`, `composed` and `stripped` are among the kept.
    pub counts: BTreeMap<String, u64>,
    /// How files are read whose names say otherwise, and the first offenders of each reason as `file:line: reason`.
    pub warnings: Vec<String>,
}

/// A row that is kept.
enum CleanRow {
    Pair(Pair),
    Instruction(InstructionExample),
}

impl CleanRow {
    /// The texts in the order of [`super::text_columns`].
    fn push_to(&self, run: &mut Run, checked: &Checked) {
        match self {
            Self::Pair(row) => run.push(checked, &[&row.english, &row.foreign]),
            Self::Instruction(row) => run.push(
                checked,
                &[&row.task, &row.instruction, &row.foreign, &row.english_ref, &row.answer],
            ),
        }
    }
}

/// A row that was read, and the line that it is from.
type Waiting = (ReadRow, u64);
/// What became of a row, and the line that it is from.
type Judged = (std::result::Result<(CleanRow, Checked), Fault>, u64);

/// What cleaning a row needs.
struct Washer {
    cleaner: Cleaner,
    label: String,
    tasks: Vec<String>,
}

/// Reading, cleaning and writing go on at the same time: while a chunk is read the one before it is cleaned, and a run that is
/// full is encoded while the next one fills.
struct Collector<'a> {
    spec: &'a CleanSpec,
    out: &'a Store,
    path: &'a str,
    washer: Arc<Washer>,
    threads: usize,
    waiting: Vec<Waiting>,
    cleaning: Vec<JoinHandle<Vec<Judged>>>,
    run: Run,
    encoding: Option<(String, u64, JoinHandle<Result<Bytes>>)>,
    artifacts: Vec<ManifestArtifact>,
    tally: Tally,
    named: BTreeMap<DropReason, u64>,
    warnings: Vec<String>,
}

/// Reads one source and writes its kept rows, as Parquet sorted by (`split_key`, `id`) with the columns `split_key`,
/// `english_key`, `id`, the texts, and the source's name in the metadata: to `path`, and what does not fit into memory
/// to `path` with a number before its ending. `split_key` and `english_key` are [`crate::text::comparison_key`]s of the
/// two sides.
///
/// # Errors
/// [`crate::Error`] where the source can't be read, holds no usable row, or the result can't be written.
pub async fn clean_source(spec: &CleanSpec, out: &Store, path: &str, progress: Progress<'_>) -> Result<Cleaned> {
    let mut collector = Collector {
        spec,
        out,
        path,
        washer: Arc::new(Washer {
            cleaner: Cleaner::new(spec.rules, spec.with_signatures),
            label: spec.source.label(),
            tasks: spec.tasks.clone(),
        }),
        // Often there is one source and the other cores have nothing to do.
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        waiting: Vec::with_capacity(CHUNK_ROWS),
        cleaning: Vec::new(),
        run: Run::new(spec.corpus),
        encoding: None,
        artifacts: Vec::new(),
        tally: Tally::default(),
        named: BTreeMap::new(),
        warnings: Vec::new(),
    };
    if spec.source.url == sample::SOURCE {
        collector.make_up(progress).await?;
    } else {
        collector.read(progress).await?;
    }
    collector.clean_waiting();
    collector.take_cleaned();
    collector.finish_run().await?;
    collector.write_encoded().await?;
    let Collector {
        artifacts,
        tally,
        warnings,
        ..
    } = collector;
    if artifacts.is_empty() {
        return Err(bad(&spec.source.url, nothing_kept(&tally, &warnings)));
    }
    tracing::info!(source = %ShownUrl::of(&spec.source.url), kept = tally.kept(), dropped = tally.dropped(), "source cleaned");
    Ok(Cleaned {
        artifacts,
        counts: tally.counts(),
        warnings,
    })
}

impl Collector<'_> {
    async fn read(&mut self, progress: Progress<'_>) -> Result<()> {
        let spec = self.spec;
        let mut reader = RowReader::open(&spec.source, spec.corpus).await?;
        let notes = reader
            .notes()
            .into_iter()
            .map(|(url, note)| format!("{} {note}", ShownUrl::of(&url)));
        self.warnings.extend(notes);
        while let Some(row) = reader.next().await? {
            if self.offer(row, reader.place()).await? {
                let (done, total) = reader.progress();
                progress(done, total);
            }
        }
        let (_, total) = reader.progress();
        progress(total, total);
        Ok(())
    }

    async fn make_up(&mut self, progress: Progress<'_>) -> Result<()> {
        let (rows, seed) = (self.spec.sample_rows, self.spec.seed);
        let most = match self.spec.corpus {
            Corpus::Pairs => sample::most_pairs(),
            Corpus::Instructions => sample::most_instructions(),
        };
        if rows == 0 || rows > most {
            return Err(bad(
                sample::SOURCE,
                format!("can make 1 to {most} distinct rows, not {rows}"),
            ));
        }
        match self.spec.corpus {
            Corpus::Pairs => {
                for (line, (english, foreign)) in (1..).zip(sample::pairs(rows, seed)) {
                    if self.offer(Ok(RawRow::Pair { english, foreign }), line).await? {
                        progress(line, rows);
                    }
                }
            }
            Corpus::Instructions => {
                // Of the tasks that are wanted, and of a length that is kept: the others would only be dropped.
                let wanted = |example: &InstructionExample| self.spec.keeps_made_up(example);
                let looked_at = most.min(rows.saturating_mul(MADE_UP_FOR_ONE));
                let made_up = sample::instructions(looked_at, seed).filter(wanted).take(rows as usize);
                for (line, example) in (1..).zip(made_up) {
                    if self.offer(Ok(RawRow::Instruction(example)), line).await? {
                        progress(line, rows);
                    }
                }
            }
        }
        progress(rows, rows);
        Ok(())
    }

    /// Takes in a row; true where a chunk of them was cleaned.
    async fn offer(&mut self, row: ReadRow, line: u64) -> Result<bool> {
        self.waiting.push((row, line));
        if self.waiting.len() < CHUNK_ROWS {
            return Ok(false);
        }
        self.clean_waiting();
        if self.run.is_full() {
            self.finish_run().await?;
        }
        Ok(true)
    }

    /// Has the rows that were read cleaned, and takes those that were given to be cleaned before.
    fn clean_waiting(&mut self) {
        self.take_cleaned();
        let mut rows = std::mem::replace(&mut self.waiting, Vec::with_capacity(CHUNK_ROWS));
        let share = rows.len().div_ceil(self.threads).max(1);
        while !rows.is_empty() {
            let rest = rows.split_off(share.min(rows.len()));
            let part = std::mem::replace(&mut rows, rest);
            let washer = Arc::clone(&self.washer);
            let clean = move || part.into_iter().map(|(row, line)| (washer.clean(row), line)).collect();
            self.cleaning.push(std::thread::spawn(clean));
        }
    }

    fn take_cleaned(&mut self) {
        for thread in std::mem::take(&mut self.cleaning) {
            for (cleaned, line) in joined(thread) {
                match cleaned {
                    Ok((row, checked)) => {
                        row.push_to(&mut self.run, &checked);
                        self.tally.keep();
                        self.tally.cut += u64::from(checked.was_cut);
                        self.tally.composed += u64::from(checked.was_composed);
                        self.tally.stripped += u64::from(checked.was_stripped);
                    }
                    Err(fault) => self.drop(&fault, line),
                }
            }
        }
    }

    fn drop(&mut self, fault: &Fault, line: u64) {
        let reason = fault.reason;
        self.tally.drop(reason);
        let named = self.named.entry(reason).or_default();
        *named += 1;
        if *named > NAMED_OFFENDERS {
            return;
        }
        let source = &self.spec.source;
        let file = match (fault.language, &source.foreign_url) {
            (Some(Language::Foreign), Some(foreign)) => foreign,
            _ => &source.url,
        };
        let hint = fault
            .hint
            .as_ref()
            .map_or_else(String::new, |hint| format!(" ({hint})"));
        self.warnings
            .push(format!("{}:{line}: {reason}{hint}", ShownUrl::of(file)));
    }

    /// Has the run encoded, after the one before it is written.
    async fn finish_run(&mut self) -> Result<()> {
        self.write_encoded().await?;
        let rows = self.run.len() as u64;
        if rows == 0 {
            return Ok(());
        }
        let path = match self.artifacts.len() {
            0 => self.path.to_owned(),
            number => format!("{}-{number:04}.parquet", self.path.trim_end_matches(".parquet")),
        };
        let run = std::mem::replace(&mut self.run, Run::new(self.spec.corpus));
        let (name, metadata) = (self.out.describe(&path), self.metadata());
        let thread = std::thread::spawn(move || run.encode(&name, &metadata));
        self.encoding = Some((path, rows, thread));
        Ok(())
    }

    async fn write_encoded(&mut self) -> Result<()> {
        let Some((path, rows, thread)) = self.encoding.take() else {
            return Ok(());
        };
        let content = joined(thread)?;
        let role = match self.spec.corpus {
            Corpus::Pairs => "cleaned/pairs",
            Corpus::Instructions => "cleaned/instructions",
        };
        self.artifacts
            .push(ManifestArtifact::of(&path, role, rows, &content, self.metadata()));
        self.out.put(&path, content).await
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        BTreeMap::from([(SOURCE_KEY.to_owned(), self.washer.label.clone())])
    }
}

impl Washer {
    fn clean(&self, row: ReadRow) -> std::result::Result<(CleanRow, Checked), Fault> {
        match row? {
            RawRow::Pair { english, foreign } => {
                let kept = self.cleaner.pair(&english, &foreign, &self.label)?;
                Ok((CleanRow::Pair(kept.row), kept.checked))
            }
            RawRow::Instruction(raw) => {
                if !self.tasks.is_empty() && !self.tasks.contains(&raw.task) {
                    return Err(DropReason::OtherTask.into());
                }
                let kept = self.cleaner.instruction(&raw)?;
                Ok((CleanRow::Instruction(kept.row), kept.checked))
            }
        }
    }
}

/// What a thread made; a panic goes on in this one.
fn joined<T>(thread: JoinHandle<T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Why no row of a source is kept, with one of the offenders.
fn nothing_kept(tally: &Tally, warnings: &[String]) -> String {
    if tally.dropped() == 0 {
        return "is empty".to_owned();
    }
    let counts = tally.counts();
    let dropped = |reason: DropReason| counts.get(&format!("dropped_{reason}")).copied().unwrap_or(0);
    let reasons: Vec<_> = counts
        .iter()
        .filter_map(|(name, rows)| Some(format!("{rows} {}", name.strip_prefix("dropped_")?)))
        .collect();
    let advice = match dropped(DropReason::BrokenUtf8) * 2 > tally.dropped() {
        true => "it is not UTF-8: convert it from what it is in, for instance with `iconv -f WINDOWS-1252 -t UTF-8`",
        false => "are the format, the columns and the length limits right?",
    };
    let one = warnings
        .last()
        .map_or_else(String::new, |one| format!(" For instance {one}"));
    format!(
        "none of its {} rows can be used ({}); {advice}{one}",
        tally.dropped(),
        reasons.join(", ")
    )
}
