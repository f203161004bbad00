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

/// A command that failed, with the exit code that `llink-coord` documents.
#[derive(Debug)]
struct Failed {
    text: String,
    exit: Exit,
}

#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum Exit {
    Internal = 1,
    Usage = 2,
    Input = 3,
    Storage = 4,
}

impl Failed {
    fn new(exit: Exit, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { text, exit }
    }
}

impl From<llink_datasets::Error> for Failed {
    fn from(error: llink_datasets::Error) -> Self {
        let exit = match error {
            llink_datasets::Error::Store { .. } => Exit::Storage,
            llink_datasets::Error::Url { .. } => Exit::Usage,
            _ => Exit::Input,
        };
        Self::new(exit, error.to_string())
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
            ExitCode::from(failed.exit as u8)
        }
    }
}

fn run(inspect: &Inspect) -> Result<(), Failed> {
    // Polars waits for its own futures, which a runtime of one thread refuses.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| Failed::new(Exit::Internal, format!("cannot start: {error}")))?;
    runtime.block_on(async {
        match &inspect.sql {
            Some(sql) => tables::query(&inspect.url, sql, inspect.rows).await,
            None => tables::show(&inspect.url, inspect.rows).await,
        }
    })
}
