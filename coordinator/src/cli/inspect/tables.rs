//! `inspect URL`: what is in shards, as polars tables.

use std::collections::BTreeMap;

use llink_datasets::look::{ShardInfo, Values, columns, shard, shards};
use llink_datasets::store::Store;
use polars::prelude::{Column, DataFrame, IntoLazy, NamedFrom, PolarsError, Series};
use polars::sql::SQLContext;

use super::{Exit, Failed, of_datasets, say};
use crate::ui::thousands;

/// Bars of a histogram, and how wide the longest is.
const BINS: usize = 12;
const BAR: usize = 40;
/// Characters of a text that are shown.
const SHOWN: usize = 100;

/// Shows every table at or below `url`, or the answer to a query over them.
pub(super) async fn show(url: &str, sql: Option<&str>, rows: usize) -> Result<(), Failed> {
    let (store, found) = find(url).await.map_err(|e| of_datasets(&e))?;
    if found.is_empty() {
        return Err(Failed::new(
            Exit::Input,
            format!("{url}: no Parquet file at or below it"),
        ));
    }
    let mut roles: BTreeMap<&str, Vec<&ShardInfo>> = BTreeMap::new();
    for info in &found {
        roles.entry(&info.role).or_default().push(info);
    }
    let mut context = SQLContext::new();
    for (role, shards) in &roles {
        let table = table_name(role);
        if sql.is_some_and(|sql| !sql.contains(&table)) {
            continue;
        }
        let frame = load(&store, shards).await?;
        if sql.is_some() {
            context.register(&table, frame.lazy());
        } else {
            describe(role, &table, shards, &frame, rows)?;
        }
    }
    let Some(sql) = sql else { return Ok(()) };
    let known: Vec<String> = roles.keys().map(|role| table_name(role)).collect();
    let wrong = |e: PolarsError| Failed::new(Exit::Usage, format!("{e}. Tables: {}", known.join(", ")));
    let answer = context.execute(sql).map_err(wrong)?.collect().map_err(wrong)?;
    say(&answer.to_string());
    Ok(())
}

async fn find(url: &str) -> llink_datasets::Result<(Store, Vec<ShardInfo>)> {
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

/// `pairs/train` is `pairs_train`.
fn table_name(role: &str) -> String {
    role.replace(|c: char| !c.is_ascii_alphanumeric(), "_")
}

async fn load(store: &Store, shards: &[&ShardInfo]) -> Result<DataFrame, Failed> {
    let internal = |e: PolarsError| Failed::new(Exit::Input, e.to_string());
    let mut all: Option<DataFrame> = None;
    for info in shards {
        let columns = columns(store, &info.path).await.map_err(|e| of_datasets(&e))?;
        let columns: Vec<Column> = columns
            .into_iter()
            .map(|(name, values)| match values {
                Values::Numbers(numbers) => Series::new(name.into(), numbers).into(),
                Values::Texts(texts) => Series::new(name.into(), texts).into(),
                Values::Norms(norms) => Series::new(name.into(), norms).into(),
            })
            .collect();
        let frame = DataFrame::new_infer_height(columns).map_err(internal)?;
        match &mut all {
            None => all = Some(frame),
            Some(all) => {
                all.vstack_mut(&frame).map_err(internal)?;
            }
        }
    }
    Ok(all.unwrap_or_default())
}

fn describe(role: &str, table: &str, shards: &[&ShardInfo], frame: &DataFrame, rows: usize) -> Result<(), Failed> {
    let bytes: u64 = shards.iter().map(|info| info.bytes).sum();
    say(&format!(
        "{role}: {} rows in {} files, {} KiB (table {table})",
        thousands(frame.height() as u64),
        shards.len(),
        thousands(bytes / 1024)
    ));
    for (name, kind) in &shards[0].columns {
        say(&format!("  {name:16} {kind}"));
    }
    for (key, value) in &shards[0].facts {
        say(&format!("  {key} = {value}"));
    }
    let refused = |e: PolarsError| Failed::new(Exit::Input, e.to_string());
    for column in frame.columns() {
        if let Ok(texts) = column.str() {
            let lengths: Vec<f64> = texts.iter().flatten().map(|text| text.chars().count() as f64).collect();
            histogram(&format!("characters of {}", column.name()), &lengths);
        } else if column.name() == "norm" {
            let norms: Vec<f64> = column.f32().map_err(refused)?.iter().flatten().map(f64::from).collect();
            histogram("norm of the vectors", &norms);
        }
    }
    for row in 0..rows.min(frame.height()) {
        say(&format!("  row {row}"));
        for column in frame.columns() {
            let value = column.get(row).map_err(refused)?;
            let text = value.get_str().map_or_else(|| value.to_string(), str::to_owned);
            let cut: String = text.chars().take(SHOWN).collect();
            let more = if cut.len() < text.len() { "…" } else { "" };
            say(&format!("    {:14} {cut}{more}", column.name()));
        }
    }
    say("");
    Ok(())
}

/// Bars, one a line, of how many values lie where.
fn histogram(title: &str, values: &[f64]) {
    let (least, most) = values
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(*v), b.max(*v)));
    if values.is_empty() || !least.is_finite() || !most.is_finite() {
        return;
    }
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    say(&format!("  {title}: {least:.4} to {most:.4}, mean {mean:.4}"));
    if least == most {
        return;
    }
    let width = (most - least) / BINS as f64;
    let mut bins = [0_usize; BINS];
    for value in values {
        bins[(((value - least) / width) as usize).min(BINS - 1)] += 1;
    }
    let highest = bins.iter().copied().max().unwrap_or(1).max(1);
    for (bin, count) in bins.iter().enumerate() {
        let bar = "█".repeat((count * BAR).div_ceil(highest));
        say(&format!(
            "  {:12.2} {:>10} {bar}",
            least + bin as f64 * width,
            thousands(*count as u64)
        ));
    }
}
