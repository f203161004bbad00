//! `inspect`: look into shards, and count tokens.

mod histogram;
mod tables;
mod tokens;

use super::{Exit, Failed, of_datasets, say};

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Inspect {
    /// A shard, or a folder of them: a path or an object-store URL.
    #[arg(required = true)]
    url: Option<String>,
    /// Ask with SQL. Tables are named by role (pairs_train, embeddings_teacher_holdout, …); of vectors there is `norm`.
    #[arg(long, value_name = "SELECT")]
    sql: Option<String>,
    /// Rows to show of each table, or of the answer.
    #[arg(long, default_value_t = 10)]
    rows: usize,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Tokens that a tokenizer spends on each side of a corpus, and the inflation between them.
    Tokens(tokens::Tokens),
}

impl Inspect {
    pub(super) async fn run(self) -> Result<(), Failed> {
        match (self.what, self.url) {
            (Some(What::Tokens(tokens)), _) => tokens.run().await,
            (None, Some(url)) => match &self.sql {
                Some(sql) => tables::query(&url, sql, self.rows).await,
                None => tables::show(&url, self.rows).await,
            },
            (None, None) => Err(Failed::new(Exit::Usage, "name a shard or a folder of them")),
        }
    }
}
