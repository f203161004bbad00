//! Requests to clouds that name the trace which they belong to.

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use opentelemetry::global::get_text_map_propagator;
use opentelemetry::propagation::Injector;
use reqwest::header::{HeaderMap, HeaderName};

/// Connects as usual and adds the `traceparent` of the current span to each request. Signatures do not cover it.
/// Without traces there is none to add.
#[derive(Debug)]
pub(super) struct WithTrace;

impl HttpConnector for WithTrace {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Traced(client)))
    }
}

#[derive(Debug)]
struct Traced(HttpClient);

#[async_trait]
impl HttpService for Traced {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        get_text_map_propagator(|trace| trace.inject(&mut Headers(request.headers_mut())));
        self.0.execute(request).await
    }
}

struct Headers<'a>(&'a mut HeaderMap);

impl Injector for Headers<'_> {
    fn set(&mut self, name: &str, value: String) {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse()) {
            self.0.insert(name, value);
        }
    }
}
