//! Step one: read one source, clean each row, write what is kept sorted by the hash of its foreign text.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};

use super::{Progress, SOURCE_KEY, text_columns};
use crate::clean::{DropReason, Kept, Rules, Tally, clean_instruction, clean_pair};
use crate::manifest::ManifestArtifact;
use crate::read::{Columns, Format, RawRow, RowReader, label};
use crate::rows::{Corpus, row_id};
use crate::store::Store;
use crate::table::{Layout, bad, encode};
use crate::{Result, sample};

/// Offenders that are named, for each reason; the counts tell of the others.
const NAMED_OFFENDERS: u64 = 3;
/// Rows between two reports of progress.
const REPORT_EVERY: u64 = 2_048;

/// What to read and what to keep of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CleanSpec {
    /// What the source holds.
    pub corpus: Corpus,
    /// A URL or path, or [`sample::SOURCE`] for made-up rows.
    pub source: String,
    /// How the source is written down; `None`: by its name.
    pub format: Option<Format>,
    /// Where a TSV file has the two sides.
    pub columns: Columns,
    /// How many rows to make up, for [`sample::SOURCE`].
    pub sample_rows: u64,
    /// Which rows to make up.
    pub seed: u64,
    /// What to keep.
    pub rules: Rules,
}

/// What [`clean_source`] wrote and found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cleaned {
    /// The cleaned rows.
    pub artifact: ManifestArtifact,
    /// `rows = kept + Σ dropped_<reason>`; `cut` of the kept ones were shortened.
    pub counts: BTreeMap<String, u64>,
    /// The first offenders of each reason, as `file:line: reason`.
    pub warnings: Vec<String>,
}

/// A kept row: its keys, and its texts in the order of [`text_columns`].
struct CleanRow {
    split_key: u64,
    english_key: u64,
    id: u64,
    texts: Vec<String>,
}

impl CleanRow {
    /// The row, and whether it was cut. `texts` takes it apart.
    fn of<T>(kept: Kept<T>, texts: impl FnOnce(T) -> Vec<String>) -> (Self, bool) {
        let Kept {
            row,
            foreign_key,
            english_key,
            was_cut,
        } = kept;
        let texts = texts(row);
        let id = row_id(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        (
            Self {
                split_key: foreign_key,
                english_key,
                id,
                texts,
            },
            was_cut,
        )
    }
}

struct Collector<'a> {
    spec: &'a CleanSpec,
    label: String,
    rows: Vec<CleanRow>,
    tally: Tally,
    named: BTreeMap<DropReason, u64>,
    warnings: Vec<String>,
}

/// Reads one source and writes its kept rows to `path`, as Parquet sorted by (`split_key`, `id`) with the columns
/// `split_key`, `english_key`, `id`, the texts, and the source's name in the metadata. `split_key` and `english_key` are
/// [`crate::text::comparison_key`]s of the two sides.
///
/// # Errors
/// [`crate::Error`] where the source can't be read, holds no usable row, or the result can't be written.
pub async fn clean_source(
    spec: &CleanSpec,
    out: &Store,
    path: &str,
    progress: Progress<'_>,
) -> Result<Cleaned> {
    let mut collector = Collector {
        spec,
        label: label(&spec.source),
        rows: Vec::new(),
        tally: Tally::default(),
        named: BTreeMap::new(),
        warnings: Vec::new(),
    };
    if spec.source == sample::SOURCE {
        collector.make_up(progress)?
    } else {
        collector.read(progress).await?
    }
    let Collector {
        label,
        mut rows,
        tally,
        warnings,
        ..
    } = collector;
    if rows.is_empty() {
        return Err(bad(&spec.source, nothing_kept(&tally)));
    }
    // Rows with equal ids are equal in every column, so that the order is total where it can be seen.
    rows.sort_unstable_by_key(|row| (row.split_key, row.id));

    let metadata = BTreeMap::from([(SOURCE_KEY.to_owned(), label)]);
    let content = encode_rows(&out.describe(path), spec.corpus, rows, &metadata)?;
    let role = match spec.corpus {
        Corpus::Pairs => "cleaned/pairs",
        Corpus::Instructions => "cleaned/instructions",
    };
    let artifact = ManifestArtifact::of(path, role, tally.kept(), &content, metadata);
    out.put(path, content).await?;
    tracing::info!(source = %spec.source, kept = tally.kept(), dropped = tally.dropped(), "source cleaned");
    Ok(Cleaned {
        artifact,
        counts: tally.counts(),
        warnings,
    })
}

impl Collector<'_> {
    async fn read(&mut self, progress: Progress<'_>) -> Result<()> {
        let spec = self.spec;
        let mut reader =
            RowReader::open(&spec.source, spec.format, spec.corpus, spec.columns).await?;
        let mut rows = 0_u64;
        while let Some(row) = reader.next().await? {
            self.offer(row, reader.line());
            rows += 1;
            if rows.is_multiple_of(REPORT_EVERY) {
                let (done, total) = reader.progress();
                progress(done, total);
            }
        }
        let (_, total) = reader.progress();
        progress(total, total);
        Ok(())
    }

    fn make_up(&mut self, progress: Progress<'_>) -> Result<()> {
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
        let report = |line: u64| {
            if line.is_multiple_of(REPORT_EVERY) || line == rows {
                progress(line, rows);
            }
        };
        match self.spec.corpus {
            Corpus::Pairs => {
                for (line, (english, foreign)) in (1..).zip(sample::pairs(rows, seed)) {
                    self.offer(Ok(RawRow::Pair { english, foreign }), line);
                    report(line);
                }
            }
            Corpus::Instructions => {
                for (line, example) in (1..).zip(sample::instructions(rows, seed)) {
                    self.offer(Ok(RawRow::Instruction(example)), line);
                    report(line);
                }
            }
        }
        Ok(())
    }

    fn offer(&mut self, row: std::result::Result<RawRow, DropReason>, line: u64) {
        let rules = &self.spec.rules;
        let cleaned = row.and_then(|row| match row {
            RawRow::Pair { english, foreign } => clean_pair(&english, &foreign, &self.label, rules)
                .map(|kept| CleanRow::of(kept, |row| vec![row.english, row.foreign])),
            RawRow::Instruction(raw) => clean_instruction(&raw, rules).map(|kept| {
                CleanRow::of(kept, |row| {
                    vec![
                        row.task,
                        row.instruction,
                        row.foreign,
                        row.english_ref,
                        row.answer,
                    ]
                })
            }),
        });
        match cleaned {
            Ok((row, was_cut)) => {
                self.rows.push(row);
                self.tally.keep();
                self.tally.cut += u64::from(was_cut);
            }
            Err(reason) => {
                self.tally.drop(reason);
                let named = self.named.entry(reason).or_default();
                *named += 1;
                if *named <= NAMED_OFFENDERS {
                    self.warnings
                        .push(format!("{}:{line}: {reason}", self.spec.source));
                }
            }
        }
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

fn encode_rows(
    name: &str,
    corpus: Corpus,
    rows: Vec<CleanRow>,
    metadata: &BTreeMap<String, String>,
) -> Result<bytes::Bytes> {
    let keys = ["split_key", "english_key", "id"];
    let mut fields: Vec<_> = keys
        .iter()
        .map(|key| Field::new(*key, DataType::UInt64, false))
        .collect();
    fields.extend(
        text_columns(corpus)
            .iter()
            .map(|column| Field::new(*column, DataType::Utf8, false)),
    );
    let schema = Arc::new(Schema::new(fields));
    let mut batches = Vec::new();
    for rows in rows.chunks(crate::table::ROW_GROUP_ROWS) {
        let key = |of: fn(&CleanRow) -> u64| -> ArrayRef {
            Arc::new(UInt64Array::from_iter_values(rows.iter().map(of)))
        };
        let mut columns = vec![
            key(|row| row.split_key),
            key(|row| row.english_key),
            key(|row| row.id),
        ];
        for text in 0..text_columns(corpus).len() {
            let column = StringArray::from_iter_values(rows.iter().map(|row| &row.texts[text]));
            columns.push(Arc::new(column));
        }
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns)
            .map_err(|e| bad(name, e.to_string()))?;
        batches.push(batch);
    }
    let layout = Layout {
        dictionary: &["task", "instruction"],
        statistics: &["split_key"],
        metadata,
    };
    encode(name, &schema, &batches, &layout)
}
