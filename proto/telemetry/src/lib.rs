//! Logs, and traces by OpenTelemetry: how both programs set them up, and the trace that a job carries.
//!
//! Traces are configured by OpenTelemetry's own variables. Without an endpoint no span is made and nothing is sent.

use std::collections::HashMap;
use std::time::Duration;

use llink_datasets::shown::redacted;
use llink_proto::shown;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{Status, TracerProvider};
use opentelemetry::{Context, global};
use opentelemetry_otlp::{SpanExporter, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tonic::transport::ClientTlsConfig;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::{Directive, filter_fn};
use tracing_subscriber::fmt::format::debug_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt, registry};

pub use llink_datasets::store::SPANS;

const PARENT: &str = "traceparent";
const STATE: &str = "tracestate";
/// W3C asks for at least so many characters of `tracestate` to be passed on. A longer one is dropped.
const STATE_BYTES: usize = 512;
/// The time for the last spans at the end of the program. It is shorter than the time after which `submit` kills a
/// local worker.
const PATIENCE: Duration = Duration::from_millis(1500);

/// The traces of this process.
#[derive(Debug)]
#[must_use = "spans that are not sent yet are lost without `shut_down`"]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
    /// The reason why no traces are sent although an endpoint is set.
    pub fault: Option<String>,
}

/// Sets up logs on standard error and, if OpenTelemetry's variables name an endpoint, traces. `LLINK_LOG` overrides
/// `level`. It must be called once, within the runtime that sends the spans.
pub fn set_up(service: &'static str, level: &str) -> Telemetry {
    let (provider, fault) = match provider(service) {
        Ok(provider) => (provider, None),
        Err(fault) => (None, Some(format!("no traces are sent: {fault}"))),
    };
    let spans = provider.as_ref().map(|provider| {
        llink_datasets::store::trace_requests();
        global::set_text_map_propagator(TraceContextPropagator::new());
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("llink"))
            .with_location(false)
            .with_target(false)
            .with_threads(false)
            .with_level(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(|meta| meta.is_span() && meta.target() == SPANS))
    });
    let no_spans: Directive = format!("{SPANS}=off").parse().expect("a target and a level");
    let shown = EnvFilter::try_from_env("LLINK_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let logs = fmt::layer()
        .with_writer(std::io::stderr)
        .fmt_fields(
            debug_fn(|out, field, value| out.write_str(&redacted(&shown::log_field(field.name(), value))))
                .delimited(" "),
        )
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_filter(shown.add_directive(no_spans));
    registry().with(spans).with(logs).init();
    Telemetry { provider, fault }
}

impl Telemetry {
    /// Sends the spans that are left. A collector that does not answer delays the end of the program only shortly.
    pub fn shut_down(self) {
        if let Some(provider) = self.provider
            && let Err(e) = provider.shutdown_with_timeout(PATIENCE)
        {
            tracing::warn!("the last spans were not sent: {e}");
        }
    }
}

/// Returns what makes spans and sends them by OTLP, or `None` if the variables ask for no traces.
fn provider(service: &'static str) -> Result<Option<SdkTracerProvider>, String> {
    let is_off = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
        || variable("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none");
    let Some(endpoint) = of_traces("ENDPOINT").filter(|_| !is_off) else {
        return Ok(None);
    };
    if let Some(protocol) = of_traces("PROTOCOL").filter(|protocol| !protocol.eq_ignore_ascii_case("grpc")) {
        return Err(format!(
            "OTEL_EXPORTER_OTLP_PROTOCOL is {protocol}, and only grpc is supported. Set it to grpc, and the endpoint to \
             the collector's port for gRPC (usually 4317)"
        ));
    }
    let mut exporter = SpanExporter::builder().with_tonic();
    if endpoint.starts_with("https://") {
        exporter = exporter.with_tls_config(ClientTlsConfig::new().with_enabled_roots());
    }
    let exporter = exporter.build().map_err(|e| redacted(&e.to_string()).into_owned())?;
    let is_named = variable("OTEL_SERVICE_NAME").is_some()
        || variable("OTEL_RESOURCE_ATTRIBUTES").is_some_and(|pairs| pairs.contains("service.name="));
    let resource = match is_named {
        true => Resource::builder(),
        false => Resource::builder().with_service_name(service),
    };
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter);
    Ok(Some(provider.with_resource(resource.build()).build()))
}

fn variable(name: &str) -> Option<String> {
    let value = std::env::var(name).ok()?;
    (!value.trim().is_empty()).then(|| value.trim().to_owned())
}

/// Returns the variable for traces, or the one for all signals.
fn of_traces(name: &str) -> Option<String> {
    variable(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}")).or_else(|| variable(&format!("OTEL_EXPORTER_OTLP_{name}")))
}

/// Returns the trace that a request or the environment names by `traceparent` and `tracestate`: the first, and behind a
/// space the second if there is one. Without a valid `traceparent` the text is empty.
#[must_use]
pub fn trace_in(find: impl Fn(&str) -> Option<String>) -> String {
    let found = [PARENT, STATE].map(|name| (name, find(name).unwrap_or_default()));
    let fitting = found.iter().filter(|(name, value)| *name == PARENT || value.len() <= STATE_BYTES);
    written(&context_of(fitting.map(|(name, value)| (*name, value.as_str()))))
}

/// Returns the trace with `span` as its newest span, in the form of [`trace_in`]. Where no spans are made, it is the
/// trace that the span was to continue.
#[must_use]
pub fn trace_with(span: &Span, continued: &str) -> String {
    match written(&span.context()) {
        own if own.is_empty() => continued.to_owned(),
        own => own,
    }
}

/// Makes `span` a child of the newest span of a trace, which has the form of [`trace_in`].
pub fn continue_trace(span: &Span, trace: &str) {
    // This fails only if the span has begun, and then it has a parent.
    let _ = span.set_parent(context_of(headers(trace)));
}

/// Returns the headers that name a trace, which has the form of [`trace_in`].
pub fn headers(trace: &str) -> impl Iterator<Item = (&'static str, &str)> {
    let (parent, state) = trace.split_once(' ').unwrap_or((trace, ""));
    [(PARENT, parent), (STATE, state)].into_iter().filter(|(_, value)| !value.is_empty())
}

/// Notes that the operation of a span failed, and why.
pub fn failed(span: &Span, why: &str) {
    span.set_status(Status::error(shown::bounded(&redacted(why), 1 << 10).into_owned()));
}

fn context_of<'a>(headers: impl Iterator<Item = (&'static str, &'a str)>) -> Context {
    let carrier: HashMap<_, _> = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier)
}

fn written(context: &Context) -> String {
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(context, &mut carrier);
    let [parent, state] = [PARENT, STATE].map(|name| carrier.remove(name).unwrap_or_default());
    match parent.is_empty() || state.is_empty() {
        true => parent,
        false => format!("{parent} {state}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn found(parent: &str, state: &str) -> String {
        trace_in(|name| Some(if name == PARENT { parent } else { state }.to_owned()))
    }

    #[test]
    fn only_a_valid_trace_is_passed_on() {
        assert_eq!(found(TRACE, ""), TRACE);
        assert_eq!(found(TRACE, "ci=a b,x=1"), format!("{TRACE} ci=a b,x=1"));
        assert_eq!(found(TRACE, &format!("ci={}", "x".repeat(600))), TRACE);
        let all_zero = "00-00000000000000000000000000000000-b7ad6b7169203331-01";
        for wrong in ["", "1", all_zero, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nx: y"] {
            assert_eq!(found(wrong, "ci=1"), "", "{wrong:?}");
        }
        assert_eq!(trace_in(|_| None), "");
        let given = format!("{TRACE} ci=1");
        assert_eq!(trace_with(&Span::none(), &given), given);
        assert!(headers(&given).eq([(PARENT, TRACE), (STATE, "ci=1")]));
        assert_eq!(headers("").count(), 0);
    }
}
