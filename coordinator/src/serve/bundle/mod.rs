//! A server that answers with a bundle, by OpenAI's API for chat completions.
//!
//! [`request`] reads what a client asks for, [`speaker`] answers it beside the other requests, [`stops`] ends an answer
//! at the texts that the client named, and [`reply`] and [`error`] write the API's JSON. This file has the routes.

mod error;
mod reply;
mod request;
mod speaker;
mod stops;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::sse::{Event as SseEvent, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::{StreamExt, stream};
use llink_worker::bundle::Generator;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::accept::{self, Protection, Spoken};
use super::access::{Role, Tokens, bearer};
use super::connections::Limits;
use super::tls::{self, ClientCertificate};
use super::{ServeError, TlsFiles};
use crate::machine::{self, since_epoch};
use error::{ApiError, json_response};
use reply::Reply;
use request::{ChatRequest, Defaults};
use speaker::{Asked, Event};

const BODY_BYTES: usize = 1 << 20;
const RETRY_S: u32 = 2;
/// The time after which a connection is closed, which is longer than any answer takes.
const LASTS: Duration = Duration::from_secs(24 * 3600);
/// The time for the last answers after the server was told to stop.
const FAREWELL: Duration = Duration::from_secs(20);

#[derive(Debug, clap::Args)]
pub struct BundleOptions {
    /// Address to listen on. Beyond loopback this needs --tls-cert, --tls-key and --tokens.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Name of the model in requests.
    #[arg(long, default_value = "llink")]
    name: String,
    /// Answers that are computed at once.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    at_once: u16,
    /// Requests that may wait beside them. More are refused until there is room.
    #[arg(long, value_name = "N", default_value_t = 64)]
    queue: u16,
    /// The longest answer in tokens, if a request does not say it.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// File of hashed tokens from `llink-coord token`, which is read again when it changes. Clients send a token as their
    /// API key.
    #[arg(long, env = "LLINK_TOKENS", value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// The server's certificate (PEM), which is read again when it changes.
    #[arg(long, env = "LLINK_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The private key of the certificate (PEM).
    #[arg(long, env = "LLINK_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Listen beyond loopback without TLS and tokens. Only for networks that you trust.
    #[arg(long, env = "LLINK_INSECURE")]
    insecure: bool,
}

impl BundleOptions {
    /// Refuses an address where everyone who reaches it could ask.
    pub fn check(&self) -> Result<(), ServeError> {
        let is_guarded = self.tls_cert.is_some() && self.tokens.is_some();
        if self.listen.ip().is_loopback() || self.insecure || is_guarded {
            return Ok(());
        }
        Err(ServeError::Exposed(format!(
            "--listen {} is reached from other machines: name --tls-cert and --tls-key (`llink-coord certs DIR` makes some) and \
             --tokens (`llink-coord token` makes one), listen on 127.0.0.1, or say --insecure where the network is trusted",
            self.listen
        )))
    }
}

#[derive(Debug)]
pub struct RunningBundle {
    pub url: String,
    shared: Arc<Shared>,
    broken: oneshot::Receiver<String>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    bundle: String,
    started: u64,
    max_tokens: usize,
    /// A permit for each request that is answered or waits.
    places: Arc<Semaphore>,
    all_places: u32,
    asked: mpsc::UnboundedSender<Asked>,
    tokens: Option<watch::Receiver<Arc<Tokens>>>,
}

pub async fn start(generator: Generator, options: BundleOptions) -> Result<RunningBundle, ServeError> {
    options.check()?;
    let tokens = options.tokens.as_deref().map(tls::watch_tokens).transpose()?;
    let files = options.tls_cert.zip(options.tls_key);
    let files = files.map(|(certificate, key)| TlsFiles { certificate, key, client_authority: None });
    let protection = match files {
        Some(files) => Protection::Tls(tls::watch_files(files, ClientCertificate::Optional)?),
        None => Protection::Plain,
    };
    let (listener, address) = accept::bind(options.listen).await?;
    let scheme = match protection {
        Protection::Tls(_) => "https",
        _ => "http",
    };
    let (asked, requests) = mpsc::unbounded_channel();
    let (breaks, broken) = oneshot::channel();
    let at_once = usize::from(options.at_once);
    let places = at_once + usize::from(options.queue);
    let shared = Arc::new(Shared {
        name: options.name,
        bundle: generator.key().to_owned(),
        started: since_epoch().as_secs(),
        max_tokens: options.max_tokens as usize,
        places: Arc::new(Semaphore::new(places)),
        all_places: u32::try_from(places).unwrap_or(u32::MAX),
        asked,
        tokens,
    });
    tokio::task::spawn_blocking(move || {
        let ended = speaker::answer_all(generator, requests, at_once);
        // Nobody listens any more if the server has stopped.
        let _ = ended.map_err(|error| breaks.send(error.to_string()));
    });
    let incoming = accept::incoming(listener, protection, Spoken::Http1, Limits::of_this_process());
    tokio::spawn(accept::serve_http1(incoming, router(shared.clone()), LASTS));
    Ok(RunningBundle { url: format!("{scheme}://{address}/v1"), shared, broken })
}

impl RunningBundle {
    /// Serves until no more answers can be computed, and returns the reason.
    pub async fn broken(&mut self) -> String {
        let why = (&mut self.broken).await;
        why.unwrap_or_else(|_| "the thread that answers has ended by a fault".into())
    }

    /// Takes no more requests, and waits for the answers to those that are there.
    pub async fn stop(self) {
        let all_done = self.shared.places.acquire_many(self.shared.all_places);
        if tokio::time::timeout(FAREWELL, all_done).await.is_err() {
            tracing::warn!("answers that took longer than {} s are cut off", FAREWELL.as_secs());
        }
    }
}

fn router(shared: Arc<Shared>) -> Router {
    let nowhere = || async {
        let text =
            "there is no such address here: this server has POST /v1/chat/completions, GET /v1/models and GET /health";
        ApiError::new(StatusCode::NOT_FOUND, "unknown_url", text)
    };
    let other_method = || async {
        let text = "this address does not take this method: completions are POST, and models and health are GET";
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", text)
    };
    Router::new()
        .route("/v1/chat/completions", post(complete))
        .route("/v1/models", get(models))
        .route("/v1/models/{name}", get(model))
        .layer(from_fn_with_state(shared.clone(), admit))
        .route("/health", get(health))
        .fallback(nowhere)
        .method_not_allowed_fallback(other_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .with_state(shared)
}

async fn admit(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let Some(tokens) = &shared.tokens else {
        return next.run(request).await;
    };
    let tokens = tokens.borrow().clone();
    let peer = match bearer(request.headers()) {
        None => Err("no token was shown: send \"Authorization: Bearer …\", which clients call the API key".into()),
        Some(token) => tokens.peer(token.trim(), OffsetDateTime::now_utc()),
    };
    match peer {
        Ok(peer) if peer.role != Role::Worker => next.run(request).await,
        Ok(_) => {
            ApiError::new(StatusCode::FORBIDDEN, "wrong_role", "this is a worker's token: make one with the role read")
                .into_response()
        }
        Err(why) => ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", why).into_response(),
    }
}

async fn health(State(shared): State<Arc<Shared>>) -> Response {
    match shared.asked.is_closed() {
        true => cannot_answer().into_response(),
        false => json_response(StatusCode::OK, json!({"status": "ok"}).to_string()),
    }
}

async fn models(State(shared): State<Arc<Shared>>) -> Response {
    let list = json!({"object": "list", "data": [shared.model()]});
    json_response(StatusCode::OK, list.to_string())
}

async fn model(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Response {
    if name == shared.name {
        return json_response(StatusCode::OK, shared.model().to_string());
    }
    let text = format!("there is no model {name:?} here: this server has {:?}", shared.name);
    ApiError::new(StatusCode::NOT_FOUND, "model_not_found", text).into_response()
}

async fn complete(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    // A web page of another site can send a form to this machine, but no JSON.
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if !kind.is_some_and(|kind| kind.to_ascii_lowercase().starts_with("application/json")) {
        let text = "the content type of a request must be application/json";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", text));
    }
    let body = body.map_err(|rejected| {
        let text = format!("{}: a request has at most {BODY_BYTES} bytes", rejected.body_text());
        ApiError::new(rejected.status(), "unreadable_body", text)
    })?;
    let defaults = Defaults { model: &shared.name, max_tokens: shared.max_tokens, seed: random()? };
    let request = ChatRequest::parse(&body, defaults)?;
    let reply = Reply {
        id: format!("chatcmpl-{:016x}", random()?),
        created: since_epoch().as_secs(),
        model: shared.name.clone(),
        bundle: shared.bundle.clone(),
        include_usage: request.include_usage,
    };
    let streams = request.stream;
    let answer = shared.ask(request)?;
    match streams {
        true => stream_out(answer, reply).await,
        false => whole(answer, &reply).await,
    }
}

/// An answer that comes, with the place of its request. Dropping it ends the answer.
struct Coming {
    events: mpsc::UnboundedReceiver<Event>,
    _place: OwnedSemaphorePermit,
}

impl Coming {
    async fn next(&mut self) -> Event {
        let event = self.events.recv().await;
        event.unwrap_or_else(|| Event::Failed(cannot_answer()))
    }
}

impl Shared {
    fn model(&self) -> Value {
        json!({"id": self.name, "object": "model", "created": self.started, "owned_by": "llink"})
    }

    /// Hands a request to the thread that answers, if there is a place for it.
    fn ask(&self, request: ChatRequest) -> Result<Coming, ApiError> {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            let text =
                format!("{} requests are answered or wait, which is the limit here: ask again later", self.all_places);
            return Err(ApiError::busy(StatusCode::TOO_MANY_REQUESTS, "queue_full", RETRY_S, text));
        };
        let (answer, events) = mpsc::unbounded_channel();
        self.asked.send(Asked { request, answer }).map_err(|_| cannot_answer())?;
        Ok(Coming { events, _place: place })
    }
}

async fn whole(mut answer: Coming, reply: &Reply) -> Result<Response, ApiError> {
    let mut text = String::new();
    loop {
        match answer.next().await {
            Event::Begun(_) => {}
            Event::Piece(piece) => text.push_str(&piece),
            Event::Ended(finish, usage) => {
                let whole = reply.whole(&text, finish, usage);
                return Ok(json_response(StatusCode::OK, whole.to_string()));
            }
            Event::Failed(error) => return Err(error),
        }
    }
}

/// Streams an answer. A request that is refused gets its error as the response's status.
async fn stream_out(mut answer: Coming, reply: Reply) -> Result<Response, ApiError> {
    let first = match answer.next().await {
        Event::Failed(error) => return Err(error),
        begun => begun,
    };
    let events = stream::once(async { first })
        .chain(stream::unfold(answer, |mut answer| async move { Some((answer.next().await, answer)) }));
    let sent = events.scan(false, move |has_ended, event| {
        let messages = match &event {
            _ if *has_ended => None,
            Event::Begun(usage) => Some(vec![reply.first(*usage).to_string()]),
            Event::Piece(piece) => Some(vec![reply.piece(piece).to_string()]),
            Event::Ended(finish, usage) => {
                let last = reply.last(*finish, *usage).into_iter().map(|message| message.to_string());
                Some(last.chain(["[DONE]".to_owned()]).collect())
            }
            Event::Failed(error) => Some(vec![error.body()]),
        };
        *has_ended = matches!(event, Event::Ended(..) | Event::Failed(_));
        std::future::ready(messages)
    });
    let sent = sent.flat_map(stream::iter);
    Ok(Sse::new(sent.map(|message| Ok::<_, Infallible>(SseEvent::default().data(message)))).into_response())
}

fn cannot_answer() -> ApiError {
    let text = "no more answers can be computed here: start the server again";
    ApiError::busy(StatusCode::SERVICE_UNAVAILABLE, "unavailable", 5 * RETRY_S, text)
}

fn random() -> Result<u64, ApiError> {
    machine::random().map_err(|text| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", text))
}
