//! `inspect URL`: what is in shards, as polars tables. Without SQL, memory holds one shard.

use std::collections::BTreeMap;

use llink_datasets::look::{ShardInfo, Values, columns, shard, shards};
use llink_datasets::measured::thousands;
use llink_datasets::store::Store;
use polars::prelude::{Column, DataFrame, IntoLazy, NamedFrom, PolarsError, Series};
use polars::sql::SQLContext;

use crate::histogram::Histogram;
use crate::{Failed, say};

const SHOWN: usize = 100;
/// Values of a column that has few.
const SHOWN_VALUES: usize = 12;
/// The most characters of a value in a table with a line a row.
const CELL: usize = 36;

pub(crate) async fn show(url: &str, rows: usize) -> Result<(), Failed> {
    let (store, found) = find(url).await?;
    for (role, shards) in by_role(&found) {
        describe(&store, &role, &shards, rows).await?;
    }
    Ok(())
}

/// Shows the answer to a query over the tables at or below `url`.
pub(crate) async fn query(url: &str, sql: &str, rows: usize) -> Result<(), Failed> {
    let (store, found) = find(url).await?;
    let roles = by_role(&found);
    let mut context = SQLContext::new();
    for (role, shards) in &roles {
        let table = table_name(role);
        if sql.to_lowercase().contains(&table) {
            context.register(&table, load(&store, shards).await?.lazy());
        }
    }
    let wrong = |e: PolarsError| {
        let known: Vec<String> = roles.keys().map(|role| table_name(role)).collect();
        Failed { text: format!("{e}. Tables: {}", known.join(", ")), exit: Failed::USAGE }
    };
    let answer = context.execute(sql).map_err(wrong)?.collect().map_err(wrong)?;
    print(&answer, rows, answer.height() as u64)
}

async fn find(url: &str) -> Result<(Store, Vec<ShardInfo>), Failed> {
    let found = find_shards(url).await?;
    if found.1.is_empty() {
        let text = format!("{url}: no Parquet file at or below it; name a job's output, a stage's folder or a shard");
        return Err(Failed { text, exit: Failed::INPUT });
    }
    Ok(found)
}

async fn find_shards(url: &str) -> llink_datasets::Result<(Store, Vec<ShardInfo>)> {
    if !url.ends_with(".parquet") {
        let store = Store::open(url)?;
        let found = shards(&store).await?;
        return Ok((store, found));
    }
    let (store, name) = Store::open_object(url)?;
    let missing = || llink_datasets::Error::NotFound { path: url.to_owned() };
    let bytes = store.head(&name).await?.ok_or_else(missing)?.bytes;
    let info = shard(&store, &name, bytes).await?;
    Ok((store, vec![info]))
}

fn by_role(found: &[ShardInfo]) -> BTreeMap<String, Vec<&ShardInfo>> {
    let mut roles: BTreeMap<String, Vec<&ShardInfo>> = BTreeMap::new();
    for info in found {
        roles.entry(info.role.to_string()).or_default().push(info);
    }
    roles
}

/// `pairs/train` is `pairs_train`.
fn table_name(role: &str) -> String {
    role.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_")
}

impl From<PolarsError> for Failed {
    fn from(error: PolarsError) -> Self {
        Self { text: error.to_string(), exit: Self::INPUT }
    }
}

async fn frame(store: &Store, info: &ShardInfo) -> Result<DataFrame, Failed> {
    let columns = columns(store, &info.path).await?;
    let columns: Vec<Column> = columns
        .into_iter()
        .map(|(name, values)| match values {
            Values::Numbers(numbers) => Series::new(name.into(), numbers).into(),
            Values::Texts(texts) => Series::new(name.into(), texts).into(),
            Values::Norms(norms) => Series::new(name.into(), norms).into(),
        })
        .collect();
    Ok(DataFrame::new_infer_height(columns)?)
}

async fn load(store: &Store, shards: &[&ShardInfo]) -> Result<DataFrame, Failed> {
    let (first, others) = shards.split_first().expect("a role has a shard");
    let mut all = frame(store, first).await?;
    for info in others {
        all.vstack_mut(&frame(store, info).await?)?;
    }
    Ok(all)
}

async fn describe(store: &Store, role: &str, shards: &[&ShardInfo], rows: usize) -> Result<(), Failed> {
    let rows_in_all = shards.iter().map(|info| info.rows).sum();
    let bytes: u64 = shards.iter().map(|info| info.bytes).sum();
    say(&format!(
        "{role}: {} rows in {} files, {} KiB (table {})",
        thousands(rows_in_all),
        shards.len(),
        thousands(bytes / 1024),
        table_name(role)
    ));
    for (name, kind) in &shards[0].columns {
        say(&format!("  {name:16} {kind}"));
    }
    for (key, value) in &shards[0].facts {
        say(&format!("  {key} = {value}"));
    }
    let mut measured = Measured::default();
    let mut sample: Option<DataFrame> = None;
    for info in shards {
        let frame = frame(store, info).await?;
        measured.add(&frame, info)?;
        sample.get_or_insert_with(|| frame.head(Some(rows)));
    }
    for line in measured.lines() {
        say(&line);
    }
    if let Some(sample) = sample {
        print(&sample, rows, rows_in_all)?;
    }
    say("");
    Ok(())
}

/// What the columns of all shards of a role hold.
#[derive(Default)]
struct Measured {
    histograms: Vec<(String, Histogram)>,
    /// Of columns with few values, how often each occurs.
    counts: BTreeMap<String, BTreeMap<String, u64>>,
}

impl Measured {
    fn add(&mut self, frame: &DataFrame, info: &ShardInfo) -> Result<(), Failed> {
        for column in frame.columns() {
            let name = column.name().as_str();
            let has_few = |(other, kind): &(String, String)| other == name && kind.starts_with("Dictionary");
            if let Ok(texts) = column.str() {
                if info.columns.iter().any(has_few) {
                    let counts = self.counts.entry(name.to_owned()).or_default();
                    for text in texts.iter().flatten() {
                        *counts.entry(text.to_owned()).or_default() += 1;
                    }
                } else {
                    let lengths = texts.iter().flatten().map(|text| text.chars().count() as f64);
                    self.histogram(format!("characters of {name}")).extend(lengths);
                }
            } else if name == "norm" {
                let norms = column.f32()?.iter().flatten().map(f64::from);
                self.histogram("norms of the vectors".into()).extend(norms);
            }
        }
        Ok(())
    }

    fn histogram(&mut self, title: String) -> &mut Histogram {
        let at = self.histograms.iter().position(|(other, _)| *other == title);
        let at = at.unwrap_or_else(|| {
            self.histograms.push((title, Histogram::default()));
            self.histograms.len() - 1
        });
        &mut self.histograms[at].1
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (title, histogram) in &self.histograms {
            lines.extend(histogram.lines(title));
        }
        for (name, counts) in &self.counts {
            lines.push(format!("  {name}: {} values", counts.len()));
            let mut counts: Vec<_> = counts.iter().collect();
            counts.sort_by_key(|(_, rows)| std::cmp::Reverse(**rows));
            let line = |(value, rows): &(&String, &u64)| format!("    {:>11} {}", thousands(**rows), shown(value));
            lines.extend(counts.iter().take(SHOWN_VALUES).map(line));
        }
        lines
    }
}

/// The first rows: a line each where their values are short, else a line for each value, so that texts of any script
/// and length can be read.
fn print(frame: &DataFrame, rows: usize, rows_in_all: u64) -> Result<(), Failed> {
    let names: Vec<&str> = frame.columns().iter().map(|c| c.name().as_str()).collect();
    let mut cells = Vec::new();
    for row in 0..rows.min(frame.height()) {
        let values = frame.columns().iter().map(|column| {
            let value = column.get(row)?;
            Ok(shown(&value.get_str().map_or_else(|| value.to_string(), str::to_owned)))
        });
        cells.push(values.collect::<Result<Vec<String>, PolarsError>>()?);
    }
    let is_short = cells.iter().flatten().all(|cell| width(cell) <= CELL) && names.len() <= 6;
    let lines = if is_short { side_by_side(&names, &cells) } else { one_below_the_other(&names, &cells) };
    for line in lines {
        say(&line);
    }
    let left = rows_in_all.saturating_sub(cells.len() as u64);
    if left > 0 {
        say(&format!("  … and {} more rows", thousands(left)));
    }
    Ok(())
}

fn side_by_side(names: &[&str], cells: &[Vec<String>]) -> Vec<String> {
    let widest = |column: usize| {
        let cells = cells.iter().map(|row| width(&row[column]));
        cells.chain([width(names[column])]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..names.len()).map(widest).collect();
    let line = |row: &mut dyn Iterator<Item = &str>| {
        let padded = row.zip(&widths).map(|(cell, wide)| format!("{cell}{}", " ".repeat(wide - width(cell))));
        format!("  {}", padded.collect::<Vec<_>>().join("  ")).trim_end().to_owned()
    };
    let mut lines = vec![line(&mut names.iter().copied())];
    lines.extend(cells.iter().map(|row| line(&mut row.iter().map(String::as_str))));
    lines
}

fn one_below_the_other(names: &[&str], cells: &[Vec<String>]) -> Vec<String> {
    let widest = names.iter().map(|name| width(name)).max().unwrap_or(0);
    let mut lines = Vec::new();
    for row in cells {
        for (number, (name, cell)) in names.iter().zip(row).enumerate() {
            let mark = if number == 0 { "-" } else { " " };
            lines.push(format!("  {mark} {name:widest$}  {cell}"));
        }
    }
    lines
}

/// Places that a text takes in a terminal, as far as marks above and below take none.
fn width(text: &str) -> usize {
    text.chars().filter(|c| !is_mark(*c)).count()
}

/// Whether a character is drawn over, under or around the one before it: Khmer's vowels and signs, Latin's accents.
fn is_mark(c: char) -> bool {
    matches!(c, '\u{17B4}'..='\u{17D3}' | '\u{17DD}' | '\u{200B}'..='\u{200D}' | '\u{300}'..='\u{36F}')
}

/// A text on one line, cut where a character with its marks ends.
fn shown(text: &str) -> String {
    let line = text.replace('\n', "⏎");
    let chars: Vec<char> = line.chars().collect();
    let mut end = SHOWN.min(chars.len());
    while end > 0 && end < chars.len() && (is_mark(chars[end]) || chars[end - 1] == '\u{17D2}') {
        end += 1;
    }
    let more = if end < chars.len() { "…" } else { "" };
    format!("{}{more}", chars[..end].iter().collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_clusters() {
        assert_eq!(shown("a\nb"), "a⏎b");
        let khmer = "ក្មេង".repeat(40);
        let cut = shown(&khmer);
        assert!(cut.ends_with("…") && khmer.starts_with(cut.trim_end_matches('…')));
        let after = khmer[cut.len() - '…'.len_utf8()..].chars().next().unwrap();
        assert!(!is_mark(after), "{after:?} belongs to what stands before it");
    }
}
