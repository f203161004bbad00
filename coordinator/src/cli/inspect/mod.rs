//! The `inspect` command shows shards and counts tokens.

mod tokens;

use std::path::PathBuf;
use std::process::Command;

use super::{Exit, Failed, say};

/// The program that shows shards. It is separate because polars takes longer to compile than all of llink, and no job
/// needs it.
const PROGRAM: &str = "llink-inspect";

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Inspect {
    /// A shard, or a folder of them: a path or an object-store URL.
    #[arg(required = true)]
    url: Option<String>,
    /// Run an SQL query. Tables are named by role (pairs_train, embeddings_teacher_holdout, …). A vector column appears
    /// as `norm`.
    #[arg(long, value_name = "SELECT")]
    sql: Option<String>,
    /// Rows to show of each table, or of the query's result.
    #[arg(long, default_value_t = 10)]
    rows: usize,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Count a tokenizer's tokens on each side of a corpus, and the inflation between them.
    Tokens(tokens::Tokens),
}

impl Inspect {
    pub(super) async fn run(self) -> Result<(), Failed> {
        match (self.what, self.url) {
            (Some(What::Tokens(tokens)), _) => tokens.run().await,
            (None, Some(url)) => Err(show(&url, self.sql.as_deref(), self.rows)),
            (None, None) => Err(Exit::Usage.because("name a shard or a folder of them")),
        }
    }
}

/// Replaces this process with [`PROGRAM`]. It returns only if that fails.
fn show(url: &str, sql: Option<&str>, rows: usize) -> Failed {
    use std::os::unix::process::CommandExt;
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(PROGRAM)));
    let program = beside.filter(|path| path.is_file()).unwrap_or_else(|| PathBuf::from(PROGRAM));
    let mut command = Command::new(&program);
    if let Some(sql) = sql {
        command.arg(format!("--sql={sql}"));
    }
    let error = command.arg(format!("--rows={rows}")).arg("--").arg(url).exec();
    let text = format!(
        "cannot run {}: {error}. `inspect` is a program of its own, which lies beside llink-coord or on PATH; build it with \
         `cargo build --release -p {PROGRAM}`",
        program.display()
    );
    Exit::Usage.because(text)
}
