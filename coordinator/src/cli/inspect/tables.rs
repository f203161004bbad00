//! `inspect URL`: what is in shards, as polars tables. Without SQL, memory holds one shard.

use std::collections::BTreeMap;

use llink_datasets::look::{ShardInfo, Values, columns, shard, shards};
use llink_datasets::store::Store;
use polars::prelude::{Column, DataFrame, IntoLazy, NamedFrom, PolarsError, Series};
use polars::sql::SQLContext;

use super::histogram::Histogram;
use super::{Exit, Failed, of_datasets, say};
use crate::ui::thousands;

/// Characters of a text that are shown.
const SHOWN: usize = 100;

/// Shows every table at or below `url`.
pub(super) async fn show(url: &str, rows: usize) -> Result<(), Failed> {
    let (store, found) = find(url).await?;
    for (role, shards) in by_role(&found) {
        describe(&store, role, &shards, rows).await?;
    }
    Ok(())
}

/// Shows the answer to a query over the tables at or below `url`.
pub(super) async fn query(url: &str, sql: &str, rows: usize) -> Result<(), Failed> {
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
        Failed::new(Exit::Usage, format!("{e}. Tables: {}", known.join(", ")))
    };
    let answer = context.execute(sql).map_err(wrong)?.collect().map_err(wrong)?;
    print(&answer, rows)
}

async fn find(url: &str) -> Result<(Store, Vec<ShardInfo>), Failed> {
    let found = find_shards(url).await.map_err(|e| of_datasets(&e))?;
    if found.1.is_empty() {
        let text = format!("{url}: no Parquet file at or below it; name a job's output, a stage's folder or a shard");
        return Err(Failed::new(Exit::Input, text));
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

fn by_role(found: &[ShardInfo]) -> BTreeMap<&str, Vec<&ShardInfo>> {
    let mut roles: BTreeMap<&str, Vec<&ShardInfo>> = BTreeMap::new();
    for info in found {
        roles.entry(&info.role).or_default().push(info);
    }
    roles
}

/// `pairs/train` is `pairs_train`.
fn table_name(role: &str) -> String {
    role.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_")
}

fn refused(error: &PolarsError) -> Failed {
    Failed::new(Exit::Input, error.to_string())
}

async fn frame(store: &Store, info: &ShardInfo) -> Result<DataFrame, Failed> {
    let columns = columns(store, &info.path).await.map_err(|e| of_datasets(&e))?;
    let columns: Vec<Column> = columns
        .into_iter()
        .map(|(name, values)| match values {
            Values::Numbers(numbers) => Series::new(name.into(), numbers).into(),
            Values::Texts(texts) => Series::new(name.into(), texts).into(),
            Values::Norms(norms) => Series::new(name.into(), norms).into(),
        })
        .collect();
    DataFrame::new_infer_height(columns).map_err(|e| refused(&e))
}

/// All shards of a role as one table.
async fn load(store: &Store, shards: &[&ShardInfo]) -> Result<DataFrame, Failed> {
    let mut all: Option<DataFrame> = None;
    for info in shards {
        let next = frame(store, info).await?;
        match &mut all {
            None => all = Some(next),
            Some(all) => {
                all.vstack_mut(&next).map_err(|e| refused(&e))?;
            }
        }
    }
    Ok(all.unwrap_or_default())
}

async fn describe(store: &Store, role: &str, shards: &[&ShardInfo], rows: usize) -> Result<(), Failed> {
    let [rows_in_all, bytes] = [|info: &&&ShardInfo| info.rows, |info: &&&ShardInfo| info.bytes]
        .map(|of| shards.iter().map(|info| of(&info)).sum::<u64>());
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
    // By the columns' own order, which all shards of a role share.
    let mut histograms: Vec<(String, Histogram)> = Vec::new();
    let mut sample: Option<DataFrame> = None;
    for info in shards {
        let frame = frame(store, info).await?;
        measure(&frame, &mut histograms)?;
        sample.get_or_insert_with(|| frame.head(Some(rows)));
    }
    for (title, histogram) in &histograms {
        for line in histogram.lines(title) {
            say(&line);
        }
    }
    if let Some(sample) = sample {
        print(&sample, rows)?;
    }
    say("");
    Ok(())
}

/// Adds a shard's lengths and norms to what others had.
fn measure(frame: &DataFrame, histograms: &mut Vec<(String, Histogram)>) -> Result<(), Failed> {
    for column in frame.columns() {
        let (title, values): (String, Vec<f64>) = if let Ok(texts) = column.str() {
            let lengths = texts.iter().flatten().map(|text| text.chars().count() as f64);
            (format!("characters of {}", column.name()), lengths.collect())
        } else if column.name() == "norm" {
            let norms = column.f32().map_err(|e| refused(&e))?;
            (
                "norm of the vectors".into(),
                norms.iter().flatten().map(f64::from).collect(),
            )
        } else {
            continue;
        };
        let at = histograms
            .iter()
            .position(|(other, _)| *other == title)
            .unwrap_or_else(|| {
                histograms.push((title, Histogram::default()));
                histograms.len() - 1
            });
        histograms[at].1.extend(values);
    }
    Ok(())
}

/// Rows one below the other, a line for each value, so that texts of any script and length can be read.
fn print(frame: &DataFrame, rows: usize) -> Result<(), Failed> {
    let widest = frame
        .columns()
        .iter()
        .map(|c| c.name().chars().count())
        .max()
        .unwrap_or(0);
    for row in 0..rows.min(frame.height()) {
        for (number, column) in frame.columns().iter().enumerate() {
            let value = column.get(row).map_err(|e| refused(&e))?;
            let text = value.get_str().map_or_else(|| value.to_string(), str::to_owned);
            let mark = if number == 0 { "-" } else { " " };
            say(&format!("  {mark} {:widest$}  {}", column.name(), shown(&text)));
        }
    }
    if frame.height() > rows {
        let more = thousands((frame.height() - rows) as u64);
        say(&format!("  … and {more} more rows (--rows)"));
    }
    Ok(())
}

/// A text on one line, cut where a character with its marks ends.
fn shown(text: &str) -> String {
    let line = text.replace('\n', "⏎");
    let is_mark =
        |c: char| matches!(c, '\u{17B4}'..='\u{17D3}' | '\u{17DD}' | '\u{200B}'..='\u{200D}' | '\u{300}'..='\u{36F}');
    let chars: Vec<char> = line.chars().collect();
    let mut end = SHOWN.min(chars.len());
    while end > 0 && end < chars.len() && is_mark(chars[end]) {
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
        assert!(
            !('\u{17B4}'..='\u{17D3}').contains(&after),
            "{after:?} belongs to what stands before it"
        );
    }
}
