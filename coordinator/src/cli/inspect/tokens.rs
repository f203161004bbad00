//! The `inspect tokens` command counts a tokenizer's tokens on each side of a corpus.

use std::path::Path;

use llink_datasets::read::{Column, Columns, Format, Languages, Source, read_raw_pairs, read_whole};
use llink_datasets::shown::ShownUrl;
use llink_datasets::store::Store;
use llink_worker::models::{SpecialTokens, Tokenizer};

use super::{Exit, Failed, say};
use llink_datasets::measured::thousands;

/// The number of sentences that are tokenized in one batch.
const BATCH: usize = 4_096;

#[derive(Debug, clap::Args)]
pub(super) struct Tokens {
    /// A tokenizer.json, plain or compressed, or a folder that holds it.
    #[arg(long, value_name = "FILE")]
    tokenizer: String,
    /// Also count the tokens that the tokenizer's template adds (`<|begin_of_text|>`).
    #[arg(long)]
    special: bool,
    /// The format: tsv, jsonl, tmx or parquet; by default from the name.
    #[arg(long)]
    format: Option<String>,
    /// The English column: a number (TSV) or a name (JSONL, Parquet).
    #[arg(long, value_name = "COLUMN")]
    english_column: Option<String>,
    /// The foreign column: a number (TSV) or a name (JSONL, Parquet).
    #[arg(long, value_name = "COLUMN")]
    foreign_column: Option<String>,
    /// Corpus files, or folders of them.
    #[arg(required = true)]
    corpus: Vec<String>,
}

impl Tokens {
    pub(super) async fn run(self) -> Result<(), Failed> {
        let tokenizer = self.tokenizer().await?;
        let special = if self.special { SpecialTokens::Add } else { SpecialTokens::Omit };
        let (mut english, mut foreign) = (Vec::new(), Vec::new());
        for source in self.sources().await? {
            let (pairs, left_out) = read_raw_pairs(&source).await?;
            if left_out > 0 {
                let url = ShownUrl::of(&source.url);
                say(&format!("{url}: {left_out} rows are not pairs and were left out"));
            }
            for pairs in pairs.chunks(BATCH) {
                let count = |side: fn(&(String, String)) -> &str| -> Result<Vec<usize>, Failed> {
                    let texts: Vec<&str> = pairs.iter().map(side).collect();
                    let ids = tokenizer.encode_batch(&texts, special);
                    let ids = ids.map_err(|e| Exit::Input.because(e.to_string()))?;
                    Ok(ids.iter().map(Vec::len).collect())
                };
                english.extend(count(|pair| &pair.0)?);
                foreign.extend(count(|pair| &pair.1)?);
            }
        }
        if english.is_empty() {
            return Err(Exit::Input.because("there are no pairs in the corpus"));
        }
        print(&mut english, &mut foreign);
        Ok(())
    }

    async fn tokenizer(&self) -> Result<Tokenizer, Failed> {
        let mut file = self.tokenizer.clone();
        let folder = Path::new(&file);
        if folder.is_dir() {
            let found = [
                "tokenizer.json",
                "tokenizer.json.gz",
                "tokenizer.json.zst",
                "tokenizer.json.xz",
                "tokenizer.json.bz2",
            ]
            .map(|name| folder.join(name))
            .into_iter()
            .find(|path| path.exists());
            let found = found.ok_or_else(|| Exit::Input.because(format!("{file}: holds no tokenizer.json")))?;
            file = found.to_string_lossy().into_owned();
        }
        let content = read_whole(&file).await?;
        Tokenizer::from_bytes(&file, &content).map_err(|e| Exit::Input.because(e.to_string()))
    }

    async fn sources(&self) -> Result<Vec<Source>, Failed> {
        let format: Option<Format> =
            self.format.as_deref().map(str::parse).transpose().map_err(|e: String| Exit::Usage.because(e))?;
        let columns = Columns::default();
        let column = |given: &Option<String>, default: Column| given.as_deref().map_or(default, Column::from);
        let of = |url: String| Source {
            url,
            format,
            columns: Columns {
                english: column(&self.english_column, columns.english.clone()),
                foreign: column(&self.foreign_column, columns.foreign.clone()),
            },
            languages: Languages::default(),
            ..Source::default()
        };
        let mut sources = Vec::new();
        for corpus in &self.corpus {
            if !Path::new(corpus).is_dir() {
                sources.push(of(corpus.clone()));
                continue;
            }
            let store = Store::open(corpus)?;
            let objects = store.list("").await?;
            let known = objects.iter().filter(|o| Format::of(&o.path).is_ok());
            sources.extend(known.map(|o| of(store.describe(&o.path))));
        }
        Ok(sources)
    }
}

fn print(english: &mut [usize], foreign: &mut [usize]) {
    let mean = |counts: &[usize]| counts.iter().sum::<usize>() as f64 / counts.len() as f64;
    let (mean_english, mean_foreign) = (mean(english), mean(foreign));
    say(&format!("tokens in a sentence, of {} pairs", thousands(english.len() as u64)));
    say("              mean     min     p10     p50     p90     p99     max");
    for (name, counts) in [("english", english), ("foreign", foreign)] {
        counts.sort_unstable();
        let at = |share: f64| counts[((counts.len() - 1) as f64 * share).round() as usize];
        let quantiles = [0.0, 0.1, 0.5, 0.9, 0.99, 1.0].map(|share| format!("{:8}", at(share))).concat();
        say(&format!("  {name:8}{:8.2}{quantiles}", mean(counts)));
    }
    say(&format!("inflation     {:.2}", mean_foreign / mean_english));
}
