//! Step one of the `shard` stage: reads one source, cleans each row, and writes the kept rows sorted by the hash of
//! their foreign text.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::run::Run;
use super::{Progress, SOURCE_KEY};
use crate::Result;
use crate::built_in::BuiltIn;
use crate::clean::{Checked, Cleaner, DropReason, Kept, Language, Rules, Tally, TooLong};
use crate::manifest::ManifestArtifact;
use crate::read::{Fault, RawRow, ReadRow, RowReader, Source};
use crate::role::{Corpus, Role};
use crate::shown::ShownUrl;
use crate::store::Store;
use crate::table::bad;

use bytes::Bytes;

/// The most faulty rows that are named for each reason; the counts cover all of them.
const NAMED_OFFENDERS: u64 = 3;
/// The number of rows that are cleaned at once, by all threads.
const CHUNK_ROWS: usize = 8_192;

/// The most examples that are made up for one wanted example.
const MADE_UP_FOR_ONE: u64 = 200;

/// Rows that are made up instead of read.
#[derive(Debug, Clone, Copy)]
pub struct MadeUp {
    /// The maker of the rows.
    pub by: &'static dyn BuiltIn,
    /// The number of rows to make. Instructions count only if their task and length are wanted.
    pub rows: u64,
    /// The seed of the rows.
    pub seed: u64,
}

/// The source to read and the rows to keep.
#[derive(Debug, Clone)]
pub struct CleanSpec {
    /// The kind of rows in the source.
    pub corpus: Corpus,
    /// The location and format of the source, which only names rows that are made up.
    pub source: Source,
    /// Rows to make up in the place of those of the source.
    pub made_up: Option<MadeUp>,
    /// The cleaning rules.
    pub rules: Rules,
    /// The tasks of instructions that are kept; empty: all.
    pub tasks: Vec<String>,
    /// Whether to write the signatures that find near-duplicates.
    pub with_signatures: bool,
}

impl CleanSpec {
    /// Returns true unless a made-up row is an example of another task or too long.
    fn keeps_made_up(&self, row: &RawRow) -> bool {
        let RawRow::Instruction(example) = row else {
            return true;
        };
        let longest = match (self.rules.max_chars, self.rules.too_long) {
            (0, _) | (_, TooLong::Cut) => usize::MAX,
            (longest, TooLong::Drop) => longest as usize,
        };
        (self.tasks.is_empty() || self.tasks.contains(&example.task)) && example.foreign.chars().count() <= longest
    }
}

/// The result of [`clean_source`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cleaned {
    /// The cleaned rows: one table, or several for a large source.
    pub artifacts: Vec<ManifestArtifact>,
    /// Counts with `rows = kept + Σ dropped_<reason>`; `cut`, `composed` and `stripped` are among the kept.
    pub counts: BTreeMap<String, u64>,
    /// Notes on files whose names misstate their format, and the first faulty rows of each reason as `file:line:
    /// reason`.
    pub warnings: Vec<String>,
}

/// A row that was read, with its line number.
type Waiting = (ReadRow, u64);
/// The texts of a cleaned row in the order of [`super::text_columns`].
type Washed = std::result::Result<(Vec<String>, Checked), Fault>;

/// Cleans rows on several threads.
struct Washer {
    cleaner: Cleaner,
    label: String,
    tasks: Vec<String>,
}

/// Reads, cleans and writes at the same time. While a chunk is read, the chunk before it is cleaned. A full run is
/// encoded while the next one fills.
struct Collector<'a> {
    spec: &'a CleanSpec,
    out: &'a Store,
    path: &'a str,
    washer: Arc<Washer>,
    threads: usize,
    waiting: Vec<Waiting>,
    cleaning: Vec<JoinHandle<Vec<(Washed, u64)>>>,
    run: Run,
    encoding: Option<(String, u64, JoinHandle<Result<Bytes>>)>,
    artifacts: Vec<ManifestArtifact>,
    tally: Tally,
    named: BTreeMap<DropReason, u64>,
    warnings: Vec<String>,
}

/// Reads one source and writes its kept rows as Parquet, sorted by (`split_key`, `id`).
///
/// The columns are `split_key`, `english_key`, `id` and the texts. The keys are [`crate::text::comparison_key`]s of the
/// two sides, and the metadata holds the source's name. The first table goes to `path`. A large source gets further
/// tables, with a number before the ending of `path`.
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
        // There is often one source only, and the other cores are idle.
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
    match spec.made_up {
        Some(made_up) => collector.make_up(made_up, progress).await?,
        None => collector.read(progress).await?,
    }
    collector.clean_waiting();
    collector.take_cleaned();
    collector.finish_run().await?;
    collector.write_encoded().await?;
    let Collector { artifacts, tally, warnings, .. } = collector;
    if artifacts.is_empty() {
        return Err(bad(&spec.source.url, nothing_kept(&tally, &warnings)));
    }
    tracing::info!(source = %ShownUrl::of(&spec.source.url), kept = tally.kept(), dropped = tally.dropped(), "source cleaned");
    Ok(Cleaned { artifacts, counts: tally.counts(), warnings })
}

impl Collector<'_> {
    async fn read(&mut self, progress: Progress<'_>) -> Result<()> {
        let spec = self.spec;
        let mut reader = RowReader::open(&spec.source, spec.corpus).await?;
        let notes = reader.notes().into_iter().map(|(url, note)| format!("{} {note}", ShownUrl::of(&url)));
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

    async fn make_up(&mut self, MadeUp { by, rows, seed }: MadeUp, progress: Progress<'_>) -> Result<()> {
        let spec = self.spec;
        let looked_at = rows.saturating_mul(MADE_UP_FOR_ONE) as usize;
        let made_up = by.rows(spec.corpus, rows, seed)?.take(looked_at);
        // Other tasks and lengths would only be dropped.
        let wanted = made_up.filter(|row| spec.keeps_made_up(row)).take(rows as usize);
        for (line, row) in (1..).zip(wanted) {
            if self.offer(Ok(row), line).await? {
                progress(line, rows);
            }
        }
        progress(rows, rows);
        Ok(())
    }

    /// Adds a row. Returns true if a chunk of rows was cleaned.
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

    /// Starts cleaning the rows that were read, and collects the chunk before them.
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
                    Ok((texts, checked)) => {
                        self.run.push(&checked, &texts);
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
        let hint = fault.hint.as_ref().map_or_else(String::new, |hint| format!(" ({hint})"));
        self.warnings.push(format!("{}:{line}: {reason}{hint}", ShownUrl::of(file)));
    }

    /// Starts encoding the run, after the run before it is written.
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
        let role = Role::Cleaned(self.spec.corpus);
        self.artifacts.push(ManifestArtifact::of(&path, role, rows, &content, self.metadata()));
        self.out.put(&path, content).await
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        BTreeMap::from([(SOURCE_KEY.to_owned(), self.washer.label.clone())])
    }
}

impl Washer {
    fn clean(&self, row: ReadRow) -> Washed {
        match row? {
            RawRow::Pair { english, foreign } => {
                let Kept { row, checked } = self.cleaner.pair(&english, &foreign)?;
                Ok((row.into(), checked))
            }
            RawRow::Instruction(raw) => {
                if !self.tasks.is_empty() && !self.tasks.contains(&raw.task) {
                    return Err(DropReason::OtherTask.into());
                }
                let Kept { row, checked } = self.cleaner.instruction(&raw)?;
                Ok((vec![row.task, row.instruction, row.foreign, row.english_ref, row.answer], checked))
            }
        }
    }
}

/// Returns the result of a thread; a panic of the thread continues in this one.
fn joined<T>(thread: JoinHandle<T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Says why no row of a source is kept, with one of the faulty rows.
fn nothing_kept(tally: &Tally, warnings: &[String]) -> String {
    if tally.dropped() == 0 {
        return "is empty".to_owned();
    }
    let counts = tally.counts();
    let dropped = |reason: DropReason| counts.get(&format!("dropped_{reason}")).copied().unwrap_or(0);
    let reasons: Vec<_> =
        counts.iter().filter_map(|(name, rows)| Some(format!("{rows} {}", name.strip_prefix("dropped_")?))).collect();
    let advice = match dropped(DropReason::BrokenUtf8) * 2 > tally.dropped() {
        true => "it is not UTF-8: convert it from what it is in, for instance with `iconv -f WINDOWS-1252 -t UTF-8`",
        false => "are the format, the columns and the length limits right?",
    };
    let one = warnings.last().map_or_else(String::new, |one| format!(" For instance {one}"));
    format!("none of its {} rows can be used ({}); {advice}{one}", tally.dropped(), reasons.join(", "))
}
