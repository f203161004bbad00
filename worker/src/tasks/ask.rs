//! Asks a large model many questions, each once, and keeps the answers in the job's output.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::OpenContext;
use crate::synthesize::{Answer, Client, Request};
use crate::{Error, Result};

/// The interval of the check for the order to stop, because an endpoint may take minutes.
const STOP_LOOKED_FOR: Duration = Duration::from_millis(200);

/// A complete, final answer in the cache. Answers that were cut, refused or filtered are not kept, because another try
/// may succeed.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    answer: String,
}

/// Asks an endpoint the questions that are not in the cache.
pub(super) struct Asker<'a> {
    pub(super) context: &'a OpenContext<'a>,
    pub(super) client: &'a Client,
    /// The folder of answers from earlier runs.
    pub(super) cache: &'a str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    Cache,
    Endpoint,
}

impl Asker<'_> {
    /// Returns the answer to a request. A complete answer is kept if `worth` returns true.
    ///
    /// # Errors
    /// When the endpoint or the store fails, or the task is told to stop.
    pub(super) async fn ask(&self, request: &Request, worth: impl Fn(&str) -> bool) -> Result<(Answer, From)> {
        self.context.control.check()?;
        let hash = request.hash();
        let path = format!("{}/{}/{hash}.json", self.cache, &hash[..2]);
        match self.context.store.get(&path).await {
            // An unreadable entry is asked for again.
            Ok(content) => {
                if let Ok(Kept { answer }) = serde_json::from_slice(&content) {
                    return Ok((Answer::Text(answer), From::Cache));
                }
            }
            Err(llink_datasets::Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let answer = tokio::select! {
            answer = self.client.ask(request) => answer?,
            stopped = self.stopped() => return Err(stopped),
        };
        if let Answer::Text(text) = &answer
            && worth(text)
        {
            let content = serde_json::to_vec(&Kept { answer: text.clone() }).expect("an answer is plain data");
            self.context.store.put(&path, Bytes::from(content)).await?;
        }
        Ok((answer, From::Endpoint))
    }

    async fn stopped(&self) -> Error {
        loop {
            if let Err(stopped) = self.context.control.check() {
                return stopped;
            }
            tokio::time::sleep(STOP_LOOKED_FOR).await;
        }
    }
}
