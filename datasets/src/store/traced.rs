//! Spans for the requests of a store, for traces. A request outside of a trace has none.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tracing::field::Empty;
use tracing::{Instrument, Span};

use crate::shown::ShownUrl;

/// The target of the spans that belong in traces.
pub const SPANS: &str = "llink_span";

/// True if this process collects spans. `tracing::span_enabled!` would tell it too, but it makes a log with a filter of its
/// own lose the next event.
static COLLECTED: AtomicBool = AtomicBool::new(false);

/// Makes stores that are opened from now on make a span of each request.
pub fn trace_requests() {
    COLLECTED.store(true, Ordering::Relaxed);
}

/// Returns a store that makes a span of each request, or `objects` itself where nobody collects spans.
pub(super) fn traced(url: &str, objects: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
    match COLLECTED.load(Ordering::Relaxed) {
        true => Arc::new(Traced { url: ShownUrl::of(url), objects }),
        false => objects,
    }
}

#[derive(Debug)]
struct Traced {
    url: ShownUrl,
    objects: Arc<dyn ObjectStore>,
}

impl Traced {
    fn request(&self, name: &str, object: Option<&Path>) -> Span {
        if Span::current().is_none() {
            return Span::none();
        }
        tracing::info_span!(
            target: SPANS,
            "store",
            otel.name = name,
            otel.kind = "client",
            store = %self.url,
            object = object.map(Path::as_ref),
            bytes = Empty,
            status = Empty,
            otel.status_code = Empty,
        )
    }
}

/// Notes how a request ended; once, because a span keeps both values of an attribute that is recorded twice.
fn note(span: &Span, status: &str) {
    span.record("status", status);
    if matches!(status, "denied" | "failed") {
        span.record("otel.status_code", "ERROR");
    }
}

/// Returns the kind of an error. Its text is left out, because it may hold what a server says.
fn kind_of(error: &Error) -> &'static str {
    match error {
        Error::NotFound { .. } => "not found",
        Error::AlreadyExists { .. } => "already exists",
        Error::Precondition { .. } => "changed meanwhile",
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => "denied",
        _ => "failed",
    }
}

/// The span lasts until the stream is dropped, and everything that the stream requests belongs to the span.
fn streamed<T: Send + 'static>(span: Span, mut parts: BoxStream<'static, Result<T>>) -> BoxStream<'static, Result<T>> {
    let mut is_noted = false;
    let next = move |context: &mut Context<'_>| {
        let polled = span.in_scope(|| parts.poll_next_unpin(context));
        let status = match &polled {
            Poll::Ready(Some(Err(e))) => Some(kind_of(e)),
            Poll::Ready(None) => Some("ok"),
            _ => None,
        };
        if let Some(status) = status.filter(|_| !is_noted) {
            note(&span, status);
            is_noted = true;
        }
        polled
    };
    stream::poll_fn(next).boxed()
}

impl fmt::Display for Traced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.objects.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Traced {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let span = self.request("put", Some(location));
        span.record("bytes", payload.content_length());
        let put = self.objects.put_opts(location, payload, options);
        let result = put.instrument(span.clone()).await;
        note(&span, result.as_ref().map_or_else(kind_of, |_| "ok"));
        result
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let is_head = options.head;
        let span = self.request(if is_head { "head" } else { "get" }, Some(location));
        let answer = self.objects.get_opts(location, options).instrument(span.clone()).await;
        let mut result = answer.inspect_err(|e| note(&span, kind_of(e)))?;
        if !is_head {
            span.record("bytes", result.range.end - result.range.start);
        }
        result.payload = match result.payload {
            GetResultPayload::Stream(parts) if !is_head => GetResultPayload::Stream(streamed(span, parts)),
            other => {
                note(&span, "ok");
                other
            }
        };
        Ok(result)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let span = self.request("delete", None);
        let named = span.clone();
        let locations = locations.inspect_ok(move |path| {
            named.record("object", path.as_ref());
        });
        streamed(span, self.objects.delete_stream(locations.boxed()))
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        streamed(self.request("list", prefix), self.objects.list(prefix))
    }

    // Stores use none of the rest.

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(location, options).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}
