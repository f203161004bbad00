//! `inspect`: look into what a job reads.

mod tokens;

use super::{Exit, Failed, of_datasets, say};

#[derive(Debug, clap::Args)]
pub(super) struct Inspect {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Tokens that a tokenizer spends on each side of a corpus, and the inflation between them.
    Tokens(tokens::Tokens),
}

impl Inspect {
    pub(super) async fn run(self) -> Result<(), Failed> {
        match self.what {
            What::Tokens(tokens) => tokens.run().await,
        }
    }
}
