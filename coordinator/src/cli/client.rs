//! Connects to a coordinator, by its URL or through the state directory that it uses.

use llink_proto::job_service_client::JobServiceClient;
use llink_proto::reach::{Connection, Credentials, with_causes};
use llink_proto::{Failure, FailureKind};
use tonic::{Code, Status};

use super::{Exit, Failed, Reach};
use crate::serve::{self, Endpoint};

pub(super) type Client = JobServiceClient<Connection>;

pub(super) async fn connect(url: &str, credentials: &Credentials) -> Result<Client, Failed> {
    let (endpoint, caller) =
        credentials.endpoint(url).map_err(|e| Exit::Usage.because(format!("--coordinator {e}")))?;
    let channel = endpoint.connect().await.map_err(|e| {
        Exit::Unavailable
            .because(format!("no coordinator at {url}: {}. Is `llink-coord serve` running there?", with_causes(&e)))
    })?;
    Ok(JobServiceClient::with_interceptor(channel, caller).max_decoding_message_size(serve::MAX_MESSAGE_BYTES))
}

/// Returns the coordinator that was named, or the one that uses the state directory now; `None` if there is neither.
pub(super) async fn find(reach: &Reach) -> Result<Option<Client>, Failed> {
    if let Some(url) = &reach.coordinator {
        return connect(url, &reach.credentials(url)).await.map(Some);
    }
    match Endpoint::read(&reach.state) {
        // The coordinator may have just stopped.
        Some(Endpoint { url, .. }) => Ok(connect(&url, &for_own(&url, reach.credentials(&url))).await.ok()),
        None => Ok(None),
    }
}

/// Returns the credentials for the coordinator that uses the state directory. Certificates in the environment are for a
/// cluster, and not for a coordinator without TLS.
fn for_own(url: &str, credentials: Credentials) -> Credentials {
    match url.starts_with("http://") {
        true => Credentials { token: credentials.token, secret: credentials.secret, ..Credentials::default() },
        false => credentials,
    }
}

/// Like [`find`], but a missing coordinator is an error.
pub(super) async fn require(reach: &Reach) -> Result<Client, Failed> {
    find(reach).await?.ok_or_else(|| {
        Exit::Unavailable.because(format!(
            "no coordinator is running on the state directory {}: name one with --coordinator URL",
            reach.state.display()
        ))
    })
}

/// Returns true if a call failed because of the connection, and not by the coordinator's answer.
pub(super) fn is_of_the_connection(status: &Status) -> bool {
    let by_its_word = status.metadata().contains_key(serve::FAILURE_KIND_KEY);
    let may_be = matches!(
        status.code(),
        Code::Unknown | Code::Unavailable | Code::Internal | Code::Cancelled | Code::Aborted | Code::DeadlineExceeded
    );
    may_be && !by_its_word
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        if is_of_the_connection(&status) {
            let text = format!("the connection to the coordinator broke ({})", status.message());
            return Exit::Unavailable.because(text);
        }
        let kind = status
            .metadata()
            .get(serve::FAILURE_KIND_KEY)
            .and_then(|v| v.to_str().ok()?.parse::<i32>().ok())
            .and_then(|k| FailureKind::try_from(k).ok());
        let exit = match (kind, status.code()) {
            (Some(kind), _) => exit_of(kind),
            (None, Code::PermissionDenied | Code::Unauthenticated) => Exit::Denied,
            (None, _) => Exit::Internal,
        };
        exit.because(status.message())
    }
}

pub(super) fn job_failed(failure: &Failure) -> Failed {
    exit_of(failure.kind()).because(failure.text.clone())
}

fn exit_of(kind: FailureKind) -> Exit {
    match kind {
        FailureKind::Input => Exit::Input,
        FailureKind::Storage => Exit::Storage,
        FailureKind::Resources => Exit::Resources,
        FailureKind::Peer | FailureKind::Internal | FailureKind::Stopped | FailureKind::Unspecified => Exit::Internal,
    }
}
