//! The page: a read-only view of the coordinator for browsers. [`board`] collects the content, [`markup`] renders it,
//! and this file serves it.

mod board;
pub(super) mod curves;
mod login;
mod markup;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Extension, Path, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use futures::stream;
use llink_proto::Job;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;

use super::ServeError;
use super::accept::{self, Origin, Protection, Spoken};
use super::access::{self, Access};
use super::connections::Limits;
use super::engine::EngineHandle;
use board::{Board, Seen};
use login::Cookies;
use markup::Part;

const EVENTS: usize = 100;
const PLANS: usize = 20;
const VIEWERS: usize = 128;
/// The interval at which a page without updates hears that its connection is alive.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// The time after which a connection is closed. A browser opens another one.
const LASTS: Duration = Duration::from_secs(15 * 60);
/// The page loads only its own files, and no text of a job can become a script.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
    base-uri 'none'; form-action 'self'; frame-ancestors 'none'";
const HEADERS: [(HeaderName, &str); 5] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// The plans of the last dry runs with their numbers, the newest first.
#[derive(Debug, Clone, Default)]
pub(super) struct Plans(Arc<Mutex<VecDeque<(usize, Job)>>>);

impl Plans {
    pub(super) fn add(&self, plan: Job) {
        let mut plans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = plans.front().map_or(1, |(number, _)| number + 1);
        plans.push_front((number, plan));
        plans.truncate(PLANS);
    }

    fn all(&self) -> Vec<(usize, Job)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

pub(super) struct Parts {
    pub(super) engine: EngineHandle,
    pub(super) access: Arc<Access>,
    pub(super) protection: Protection,
    pub(super) plans: Plans,
    pub(super) stopped: watch::Receiver<bool>,
}

#[derive(Debug)]
pub(super) struct Served {
    pub(super) url: String,
    /// The task that ends after a stop, once watchers have received the last update.
    pub(super) ended: JoinHandle<()>,
}

struct Shared {
    engine: EngineHandle,
    access: Arc<Access>,
    board: watch::Receiver<Arc<Board>>,
    plans: Plans,
    cookies: Cookies,
    viewers: Arc<Semaphore>,
    /// Whether the page listens on loopback, where only names of this machine are accepted.
    loopback: bool,
}

pub(super) async fn serve(address: SocketAddr, parts: Parts) -> Result<Served, ServeError> {
    let (listener, address) = accept::bind(address).await?;
    let secure = matches!(parts.protection, Protection::Tls(_));
    let (board, seen) = watch::channel(Arc::default());
    let key = access::fresh_secret().map_err(ServeError::Random)?;
    let shared = Arc::new(Shared {
        engine: parts.engine.clone(),
        access: parts.access,
        board: seen,
        plans: parts.plans,
        cookies: Cookies::new(address.port(), key, secure),
        viewers: Arc::new(Semaphore::new(VIEWERS)),
        loopback: address.ip().is_loopback(),
    });
    let app = router(shared.clone());
    let incoming = accept::incoming(listener, parts.protection, Spoken::Http1, Limits::BROWSERS);
    let keeper = tokio::spawn(board::keep(parts.engine, board, parts.stopped.clone()));
    let ended = tokio::spawn(async move {
        tokio::select! {
            () = accept::serve_http1(incoming, app, LASTS) => {}
            () = super::wait_for(parts.stopped) => {}
        }
        // The last update ends the streams of all watchers, which get a moment to read it.
        let _ = keeper.await;
        let all_gone = shared.viewers.acquire_many(VIEWERS as u32);
        let _ = tokio::time::timeout(Duration::from_millis(500), all_gone).await;
    });
    let scheme = if secure { "https" } else { "http" };
    let url = format!("{scheme}://{address}/");
    Ok(Served { url, ended })
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(overview))
        .route("/jobs/{id}", get(job))
        .route("/plans/{number}", get(plan))
        .route("/live/", get(live_overview))
        .route("/live/jobs/{id}", get(live_job))
        .layer(from_fn_with_state(shared.clone(), admit))
        .route("/login", post(log_in).get(|| async { Redirect::to("/") }))
        .route("/assets/{name}", get(asset))
        .fallback(|| async { notice(StatusCode::NOT_FOUND, "There is no such page.", false) })
        .layer(from_fn_with_state(shared.clone(), protect))
        .with_state(shared)
}

/// Refuses requests with the name of another machine, and adds the headers that every answer has.
async fn protect(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let mut response = match shared.loopback && !login::is_this_machine(host) {
        true => notice(StatusCode::MISDIRECTED_REQUEST, "This page is found under localhost alone.", false),
        false => next.run(request).await,
    };
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

async fn admit(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let Some(origin) = request.extensions().get::<Origin>() else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let token = shared.cookies.token(request.headers());
    match shared.access.look(origin, token.as_deref(), request.uri().path()).await {
        Ok(()) => next.run(request).await,
        Err(status) => {
            let said = if token.is_none() && shared.access.knows_tokens() {
                "Show a token of this coordinator (`llink-coord token` makes one) to look at its jobs."
            } else {
                status.message()
            };
            notice(StatusCode::UNAUTHORIZED, said, shared.access.knows_tokens())
        }
    }
}

async fn log_in(State(shared): State<Arc<Shared>>, Extension(origin): Extension<Origin>, body: Body) -> Response {
    let form = to_bytes(body, login::FORM_BYTES).await.unwrap_or_default();
    let Some(token) = login::token_in(&form) else {
        return notice(StatusCode::BAD_REQUEST, "There is no token in what was sent.", true);
    };
    match shared.access.look(&origin, Some(&access::sha256_of(&token)), "/login").await {
        Ok(()) => ([(header::SET_COOKIE, shared.cookies.set(&token))], Redirect::to("/")).into_response(),
        Err(status) => notice(StatusCode::UNAUTHORIZED, status.message(), true),
    }
}

fn notice(code: StatusCode, said: &str, form: bool) -> Response {
    let page = markup::page("llink", None, &markup::notice(said, form));
    (code, Html(page)).into_response()
}

fn no_such_job() -> Response {
    notice(StatusCode::NOT_FOUND, "There is no such job.", false)
}

async fn asset(Path(name): Path<String>) -> Response {
    let (kind, content) = match name.as_str() {
        "page.css" => ("text/css", llink_datasets::page::STYLE),
        "page.js" => ("text/javascript", include_str!("../../../assets/page.js")),
        "uplot.css" => ("text/css", include_str!("../../../assets/uPlot.min.css")),
        "uplot.js" => ("text/javascript", include_str!("../../../assets/uPlot.iife.min.js")),
        _ => return notice(StatusCode::NOT_FOUND, "There is no such page.", false),
    };
    ([(header::CONTENT_TYPE, kind)], Bytes::from_static(content.as_bytes())).into_response()
}

async fn overview(State(shared): State<Arc<Shared>>) -> Response {
    let parts = markup::overview(&shared.board.borrow().clone(), &shared.plans.all());
    Html(markup::page("Jobs", Some("/live/"), &parts)).into_response()
}

async fn job(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    let Some((name, parts)) = shared.job(&id).await else {
        return no_such_job();
    };
    let live = format!("/live{}", markup::job_path(&id));
    Html(markup::page(&name, Some(&live), &parts)).into_response()
}

async fn plan(State(shared): State<Arc<Shared>>, Path(number): Path<usize>) -> Response {
    let plans = shared.plans.all();
    match plans.iter().find(|(known, _)| *known == number) {
        Some((_, job)) => Html(markup::page(&job.name, None, &markup::plan(job))).into_response(),
        None => notice(StatusCode::NOT_FOUND, "That plan is no longer known: `submit --dry-run` makes another.", false),
    }
}

impl Shared {
    async fn job(&self, id: &str) -> Option<(String, Vec<Part>)> {
        let wanted = id.to_owned();
        let events = self.engine.call(move |e| e.store.newest_events(&wanted, EVENTS));
        let events = events.await.ok()?.unwrap_or_default();
        let board = self.board.borrow().clone();
        let seen = match board.job(id) {
            Some(seen) => seen.clone(),
            // The job is older than those on the board, or newer than the last read.
            None => {
                let wanted = id.to_owned();
                let job = self.engine.call(move |e| e.cluster.view(&wanted)).await.ok()??;
                Arc::new(Seen { job, ..Seen::default() })
            }
        };
        Some((seen.job.name.clone(), markup::job(&seen, &board.workers, &events)))
    }
}

async fn live_overview(State(shared): State<Arc<Shared>>) -> Response {
    live(shared, None)
}

async fn live_job(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    live(shared, Some(id))
}

struct Viewer {
    shared: Arc<Shared>,
    job: Option<String>,
    board: watch::Receiver<Arc<Board>>,
    sent: BTreeMap<&'static str, String>,
    is_ended: bool,
    _place: OwnedSemaphorePermit,
}

fn live(shared: Arc<Shared>, job: Option<String>) -> Response {
    let Ok(place) = shared.viewers.clone().try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "Too many pages are open.").into_response();
    };
    let mut board = shared.board.clone();
    board.mark_changed();
    let viewer = Viewer { shared, job, board, sent: BTreeMap::new(), is_ended: false, _place: place };
    let events = stream::unfold(viewer, |mut viewer| async move {
        let event = viewer.next().await?;
        Some((Ok::<_, Infallible>(event), viewer))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT)).into_response()
}

impl Viewer {
    /// Returns the changed parts once some have changed. After the coordinator's last update it returns the end.
    async fn next(&mut self) -> Option<Event> {
        while !self.is_ended {
            if self.board.changed().await.is_err() {
                self.is_ended = true;
                return Some(Event::default().event("end").data("the coordinator ends"));
            }
            let parts = match &self.job {
                None => markup::overview(&self.board.borrow_and_update().clone(), &self.shared.plans.all()),
                Some(id) => self.shared.job(id).await.unwrap_or_default().1,
            };
            let mut changed = BTreeMap::new();
            for part in parts {
                let html = part.body.into_string();
                if self.sent.get(part.id) != Some(&html) {
                    self.sent.insert(part.id, html.clone());
                    changed.insert(part.id, html);
                }
            }
            if !changed.is_empty() {
                let data = serde_json::to_string(&changed).expect("texts by name are JSON");
                return Some(Event::default().event("parts").data(data));
            }
        }
        None
    }
}
