//! `llink-inspect`: shows what lies in shards, and answers SQL over them.
//!
//! It is a program of its own because polars takes longer to compile than all of llink: a job needs none of it.

mod histogram;
mod tables;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use llink_datasets::shown::redacted;
use llink_proto::shown;

/// Looks into shards: schema, rows, lengths, samples, norms, SQL.
#[derive(Debug, Parser)]
#[command(name = "llink-coord inspect", version, about)]
struct Inspect {
    /// A shard, or a folder of them: a path or an object-store URL.
    url: String,
    /// Ask with SQL. Tables are named by role (pairs_train, embeddings_teacher_holdout, …); of vectors there is `norm`.
    #[arg(long, value_name = "SELECT")]
    sql: Option<String>,
    /// Rows to show of each table, or of the answer.
    #[arg(long, default_value_t = 10)]
    rows: usize,
}

/// A command that failed: what to print, and the exit code that `llink-coord` documents.
struct Failed {
    text: String,
    exit: u8,
}

impl Failed {
    const INTERNAL: u8 = 1;
    const USAGE: u8 = 2;
    const INPUT: u8 = 3;
}

impl From<llink_datasets::Error> for Failed {
    fn from(error: llink_datasets::Error) -> Self {
        Self { text: error.to_string(), exit: error.exit_code() }
    }
}

/// A line on standard output. A reader that went away (`| head`) is no reason to fail.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{}", shown::text(line));
}

fn main() -> ExitCode {
    // SAFETY: no thread has been started yet.
    unsafe {
        llink_datasets::environment::unset_empty();
    }
    match run(&Inspect::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            let text = redacted(&format!("llink-coord inspect: {}", failed.text)).to_string();
            let _ = writeln!(std::io::stderr(), "{}", shown::text(&text));
            ExitCode::from(failed.exit)
        }
    }
}

fn run(inspect: &Inspect) -> Result<(), Failed> {
    // Polars waits for its own futures, which a runtime of one thread refuses.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let refused = |error| Failed { text: format!("cannot start: {error}"), exit: Failed::INTERNAL };
    let runtime = runtime.map_err(refused)?;
    runtime.block_on(async {
        match &inspect.sql {
            Some(sql) => tables::query(&inspect.url, sql, inspect.rows).await,
            None => tables::show(&inspect.url, inspect.rows).await,
        }
    })
}
