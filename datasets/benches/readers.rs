//! Reads the rows of one source without cleaning, and prints a JSON line with the time and the peak memory. `readers.py` beside it does the
//! same with other programs.
//!
//!     cargo bench -p llink-datasets --bench readers -- FILE [FOREIGN]     (FOREIGN is the second file of a Moses corpus)

mod support;

use std::time::Instant;

use llink_datasets::read::{Source, survey};
use llink_datasets::rows::Corpus;
use serde_json::json;
use support::peak_mib;

#[tokio::main(flavor = "current_thread")]
#[allow(clippy::print_stdout)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Cargo adds `--bench`.
    let mut files = std::env::args().skip(1).filter(|text| text != "--bench");
    let source = Source::named(&files.next().ok_or("name a file to read")?);
    let source = Source { foreign_url: files.next(), ..source };
    let began = Instant::now();
    let found = survey(&source, Corpus::Pairs).await?;
    let seconds = began.elapsed().as_secs_f64();
    let engine = concat!("llink ", env!("CARGO_PKG_VERSION"));
    println!("{}", json!({"engine": engine, "rows": found.readable, "seconds": seconds, "peak_rss_mib": peak_mib()}));
    Ok(())
}
