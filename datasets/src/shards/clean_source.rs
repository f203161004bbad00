//! Step one: read one source, clean each row, write what is kept sorted by the hash of its foreign text.

use std::collections::BTreeMap;

use super::run::Run;
use super::{Progress, SOURCE_KEY};
use crate::clean::{Checked, Cleaner, DropReason, Rules, Tally};
use crate::manifest::ManifestArtifact;
use crate::read::{RawRow, ReadRow, RowReader, Source, label};
use crate::rows::{Corpus, InstructionExample, Pair};
use crate::store::Store;
use crate::table::bad;
use crate::{Result, sample};

/// Offenders that are named, for each reason; the counts tell of the others.
const NAMED_OFFENDERS: u64 = 3;
/// Rows that are cleaned at once, by all threads.
const CHUNK_ROWS: usize = 8_192;

/// What to read and what to keep of it.
#[derive(Debug, Clone, PartialEq)]
pub struct CleanSpec {
    /// What the source holds.
    pub corpus: Corpus,
    /// Where it is and how it is to be read; the URL [`sample::SOURCE`] stands for made-up rows.
    pub source: Source,
    /// How many rows to make up, for [`sample::SOURCE`].
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

/// What [`clean_source`] wrote and found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cleaned {
    /// The cleaned rows: one table, or several for a large source.
    pub artifacts: Vec<ManifestArtifact>,
    /// `rows = kept + Σ dropped_<reason>`; `cut`, `composed` and `stripped` are among the kept.
    pub counts: BTreeMap<String, u64>,
    /// The first offenders of each reason, as `file:line: reason`.
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

struct Collector<'a> {
    spec: &'a CleanSpec,
    out: &'a Store,
    path: &'a str,
    label: String,
    cleaner: Cleaner,
    threads: usize,
    /// Rows that are read and not cleaned yet, with the line that each is from.
    waiting: Vec<(ReadRow, u64)>,
    run: Run,
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
        label: label(&spec.source.url),
        cleaner: Cleaner::new(spec.rules, spec.with_signatures),
        // Often there is one source and the other cores have nothing to do.
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        waiting: Vec::with_capacity(CHUNK_ROWS),
        run: Run::new(spec.corpus),
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
    collector.write_run().await?;
    let Collector {
        artifacts,
        tally,
        warnings,
        ..
    } = collector;
    if artifacts.is_empty() {
        return Err(bad(&spec.source.url, nothing_kept(&tally)));
    }
    tracing::info!(source = %spec.source.url, kept = tally.kept(), dropped = tally.dropped(), "source cleaned");
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
                for (line, example) in (1..).zip(sample::instructions(rows, seed)) {
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
            self.write_run().await?;
        }
        Ok(true)
    }

    fn clean_waiting(&mut self) {
        let rows = std::mem::take(&mut self.waiting);
        let share = rows.len().div_ceil(self.threads).max(1);
        let this = &*self;
        let cleaned: Vec<Vec<_>> = std::thread::scope(|scope| {
            let clean = move |rows: &[(ReadRow, u64)]| rows.iter().map(|(row, _)| this.clean(row)).collect();
            let mut parts = rows.chunks(share);
            let own = parts.next();
            let others: Vec<_> = parts.map(|part| scope.spawn(move || clean(part))).collect();
            let own = own.map(clean);
            let joined = others
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            own.into_iter().chain(joined).collect()
        });
        for (cleaned, (_, line)) in cleaned.into_iter().flatten().zip(&rows) {
            match cleaned {
                Ok((row, checked)) => {
                    row.push_to(&mut self.run, &checked);
                    self.tally.keep();
                    self.tally.cut += u64::from(checked.was_cut);
                    self.tally.composed += u64::from(checked.was_composed);
                    self.tally.stripped += u64::from(checked.was_stripped);
                }
                Err(reason) => self.drop(reason, *line),
            }
        }
        self.waiting = rows;
        self.waiting.clear();
    }

    fn clean(&self, row: &ReadRow) -> std::result::Result<(CleanRow, Checked), DropReason> {
        match row {
            Err(reason) => Err(*reason),
            Ok(RawRow::Pair { english, foreign }) => {
                let kept = self.cleaner.pair(english, foreign, &self.label)?;
                Ok((CleanRow::Pair(kept.row), kept.checked))
            }
            Ok(RawRow::Instruction(raw)) => {
                if !self.spec.tasks.is_empty() && !self.spec.tasks.contains(&raw.task) {
                    return Err(DropReason::OtherTask);
                }
                let kept = self.cleaner.instruction(raw)?;
                Ok((CleanRow::Instruction(kept.row), kept.checked))
            }
        }
    }

    fn drop(&mut self, reason: DropReason, line: u64) {
        self.tally.drop(reason);
        let named = self.named.entry(reason).or_default();
        *named += 1;
        if *named <= NAMED_OFFENDERS {
            self.warnings.push(format!("{}:{line}: {reason}", self.spec.source.url));
        }
    }

    async fn write_run(&mut self) -> Result<()> {
        let rows = self.run.len() as u64;
        if rows == 0 {
            return Ok(());
        }
        let path = match self.artifacts.len() {
            0 => self.path.to_owned(),
            number => format!("{}-{number:04}.parquet", self.path.trim_end_matches(".parquet")),
        };
        let metadata = BTreeMap::from([(SOURCE_KEY.to_owned(), self.label.clone())]);
        let content = self.run.encode(&self.out.describe(&path), &metadata)?;
        let role = match self.spec.corpus {
            Corpus::Pairs => "cleaned/pairs",
            Corpus::Instructions => "cleaned/instructions",
        };
        self.artifacts
            .push(ManifestArtifact::of(&path, role, rows, &content, metadata));
        self.out.put(&path, content).await
    }
}

fn nothing_kept(tally: &Tally) -> String {
    if tally.dropped() == 0 {
        return "is empty".to_owned();
    }
    let reasons: Vec<_> = tally
        .counts()
        .into_iter()
        .filter_map(|(name, rows)| Some(format!("{rows} {}", name.strip_prefix("dropped_")?)))
        .collect();
    format!(
        "none of its {} rows can be used ({}); are the format, the columns and the length limits right?",
        tally.dropped(),
        reasons.join(", ")
    )
}
