//! The webhook at a job's end, as the Standard Webhooks have it: <https://www.standardwebhooks.com>.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, Mac};
use llink_datasets::report::Report;
use llink_proto::{Job, JobState};
use reqwest::header::CONTENT_TYPE;
use serde_json::json;
use sha2::Sha256;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::http::{Fault, Http};
use crate::machine::unix_ms;
use crate::schedule::Millis;
use crate::ui::state_word;

/// The prefix of a secret whose bytes are written in base64.
const ENCODED: &str = "whsec_";

pub(super) struct Webhook {
    http: Http,
    url: String,
    key: Option<Hmac<Sha256>>,
}

impl Webhook {
    pub(super) fn new(http: Http, url: &str, secret: Option<&str>) -> Result<Self, String> {
        Ok(Self { http, url: url.to_owned(), key: secret.map(key).transpose()? })
    }

    /// Posts the end of a job. Each try is signed with its own time, under the same id.
    pub(super) async fn tell(&self, job: &Job) -> Result<(), Fault> {
        let (id, seconds, body) = (format!("{}-{}", job.id, job.ended_at), unix_ms() / 1000, body(job));
        let mut request = self
            .http
            .post(&self.url)
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", &id)
            .header("webhook-timestamp", seconds);
        if let Some(key) = &self.key {
            request = request.header("webhook-signature", signature(key, &id, seconds, &body));
        }
        self.http.send(request.body(body)).await.map(|_| ())
    }
}

fn key(secret: &str) -> Result<Hmac<Sha256>, String> {
    let bytes = match secret.strip_prefix(ENCODED) {
        Some(encoded) => {
            BASE64_STANDARD.decode(encoded).map_err(|_| format!("the secret has no base64 behind `{ENCODED}`"))?
        }
        None => secret.as_bytes().to_vec(),
    };
    Ok(Hmac::new_from_slice(&bytes).expect("HMAC takes a key of any length"))
}

fn signature(key: &Hmac<Sha256>, id: &str, seconds: i64, body: &str) -> String {
    let signed = key.clone().chain_update(format!("{id}.{seconds}.{body}"));
    format!("v1,{}", BASE64_STANDARD.encode(signed.finalize().into_bytes()))
}

fn body(job: &Job) -> String {
    let evaluate = job.stages.iter().find(|stage| stage.name == "evaluate");
    let report = (job.state() == JobState::Succeeded).then(|| {
        let report: Report = serde_json::from_str(&job.report_json).unwrap_or_default();
        let name = if report.page.is_some() { "report.html" } else { "report.json" };
        format!("{}/{name}", job.output_url.trim_end_matches('/'))
    });
    let told = json!({
        "type": "job.ended",
        "timestamp": date(job.ended_at),
        "data": {
            "job": job.id,
            "name": job.name,
            "state": state_word(job),
            "reason": job.failure.as_ref().map_or(&job.reason, |failure| &failure.text),
            "submitted_at": date(job.submitted_at),
            "seconds": (job.ended_at - job.submitted_at) as f64 / 1000.0,
            "figures": evaluate.map(|stage| &stage.figures),
            "output": job.output_url,
            "report": report,
        },
    });
    told.to_string()
}

fn date(at: Millis) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at) * 1_000_000).ok();
    at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_the_standards_example() {
        // The example of the specification's reference implementations.
        let key = key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signed = signature(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }
}
