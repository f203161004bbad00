//! The programs that are told a job's figures and its end (`[track]`).

use llink_proto::settings::Expect;

use super::{JobFile, check};

llink_proto::settings! {
    /// The programs that are told the job's figures and its end. The coordinator sends to them. A program that does not answer delays
    /// nothing: it is tried again for a day after the job's end. Each URL must lie below a root that the coordinator allows. Tokens and
    /// secrets are read from variables of the coordinator: from `NAME`, or from the file that `NAME_FILE` names.
    pub struct TrackSection = "track" {
        run {
            /// The URL of an MLflow tracking server, such as `http://host:5000`. Absent: none.
            #[serde(skip_serializing_if = "Option::is_none")]
            mlflow: Option<String> = None;
            /// The variable that holds MLflow's bearer token. Absent: no token is sent.
            #[serde(skip_serializing_if = "Option::is_none")]
            mlflow_token_env: Option<String> = None;
            /// The URL of a Trackio server or Space, such as `https://owner-name.hf.space`. Absent: none.
            #[serde(skip_serializing_if = "Option::is_none")]
            trackio: Option<String> = None;
            /// The variable that holds the write token of a Trackio server, or the Hub's token (`hf_…`) for a Space. Absent: no token is sent.
            #[serde(skip_serializing_if = "Option::is_none")]
            trackio_token_env: Option<String> = None;
            /// The experiment of MLflow and the project of Trackio. Absent: the job's name.
            #[serde(skip_serializing_if = "Option::is_none")]
            experiment: Option<String> = None;
            /// The URL to which the job's end is posted as JSON, as the [Standard Webhooks](https://www.standardwebhooks.com) have it. Absent: none.
            #[serde(skip_serializing_if = "Option::is_none")]
            webhook: Option<String> = None;
            /// The variable that holds the secret with which the webhook is signed (HMAC-SHA256). Absent: it is not signed.
            #[serde(skip_serializing_if = "Option::is_none")]
            webhook_secret_env: Option<String> = None;
        }
    }
}

impl TrackSection {
    /// Returns the URLs with their keys.
    pub fn urls(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let urls = [("track.mlflow", &self.mlflow), ("track.trackio", &self.trackio), ("track.webhook", &self.webhook)];
        urls.into_iter().filter_map(|(key, url)| Some((key, url.as_deref()?)))
    }

    /// Returns the names of the variables that hold secrets, with their keys.
    pub fn variables(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let names = [
            ("track.mlflow_token_env", &self.mlflow_token_env),
            ("track.trackio_token_env", &self.trackio_token_env),
            ("track.webhook_secret_env", &self.webhook_secret_env),
        ];
        names.into_iter().filter_map(|(key, name)| Some((key, name.as_deref()?)))
    }
}

pub(super) fn problems(job: &JobFile, expect: Expect<'_>) {
    let Some(track) = &job.track else { return };
    for (key, url) in track.urls() {
        check::http(url, key, expect, "an http:// or https:// URL");
    }
    for (key, name) in track.variables() {
        let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        expect(is_name, key, &"another text", "the name of an environment variable");
    }
    check::name(&track.experiment, "track.experiment", expect);
}

#[cfg(test)]
mod tests {
    use crate::job::parse;

    #[test]
    fn a_secret_in_place_of_its_variable_is_refused() {
        let text = "[corpus]\nsource = \"sample\"\n[track]\nwebhook = \"ftp://host\"\nwebhook_secret_env = \"whsec_/s3cret=\"\n";
        let said = parse("job.toml", text).unwrap_err().to_string();
        assert!(said.contains("`track.webhook` is \"ftp://host\""), "{said}");
        assert!(said.contains("`track.webhook_secret_env` is another text"), "{said}");
    }
}
