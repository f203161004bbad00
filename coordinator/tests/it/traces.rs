//! A trace leads from `submit` through the coordinator and the tasks to the object store, and OpenTelemetry's variables
//! alone decide whether it is sent.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use crate::common::{Place, SMALL, text};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use tonic::{Request, Response, Status};

const GIVEN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const SECRET: &str = "5ecret";

#[derive(Debug, Clone, Default)]
struct Seen {
    service: String,
    name: String,
    trace: String,
    id: String,
    parent: String,
    attributes: HashMap<String, String>,
    error: Option<String>,
}

impl Seen {
    fn number(&self, name: &str) -> u64 {
        self.attributes.get(name).map_or(0, |text| text.parse().unwrap())
    }
}

/// A collector of OTLP that keeps what it gets from callers with the key.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Seen>>>);

impl Collector {
    fn start() -> (Self, tokio::runtime::Runtime, SocketAddr) {
        let collector = Self::default();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector.clone()));
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        runtime.spawn(server.serve_with_incoming(incoming));
        (collector, runtime, address)
    }

    fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(attributes: Vec<KeyValue>) -> HashMap<String, String> {
    let text = |value| match value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    let each = attributes.into_iter();
    each.map(|pair| (pair.key, text(pair.value.and_then(|value| value.value)))).collect()
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let key = request.metadata().get("x-key").and_then(|key| key.to_str().ok());
        if key != Some(SECRET) {
            return Err(Status::unauthenticated("no key"));
        }
        for resource in request.into_inner().resource_spans {
            let service = texts(resource.resource.unwrap().attributes)["service.name"].clone();
            let seen = resource.scope_spans.into_iter().flat_map(|scope| scope.spans).map(|span| Seen {
                service: service.clone(),
                name: span.name,
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                attributes: texts(span.attributes),
                // 2 is an error.
                error: span.status.filter(|status| status.code == 2).map(|status| status.message),
            });
            self.0.lock().unwrap().extend(seen);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn submit(place: &Place, variables: &[(&str, &str)]) -> std::process::Output {
    let mut command = place.command(&["submit", "job.toml", "--workers", "1"]);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OTEL_")) {
        command.env_remove(name);
    }
    command.env("TRACEPARENT", GIVEN).envs(variables.iter().copied());
    command.env("OTEL_EXPORTER_OTLP_HEADERS", format!("x-key={SECRET}"));
    command.output().unwrap()
}

#[test]
fn one_trace_leads_from_submit_through_each_task_to_the_store() {
    let (collector, _runtime, address) = Collector::start();
    let endpoint = format!("http://{address}");
    let place = Place::new(SMALL);
    let output = submit(&place, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)]);
    assert!(output.status.success(), "{}", text(&output));
    let seen = collector.take();
    let named = |name: &str| seen.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    for span in &seen {
        assert_eq!(span.trace, GIVEN[3..35], "{span:?}");
        assert!(!format!("{span:?}").contains(SECRET), "{span:?}");
        assert_eq!(span.error, None, "{span:?}");
    }
    let [submit_span] = named("submit")[..] else { panic!("{seen:#?}") };
    let [accepted] = named("JobService/Submit")[..] else { panic!("{seen:#?}") };
    assert_eq!((&*submit_span.parent, &*accepted.parent), (&GIVEN[36..52], &*submit_span.id));
    assert_eq!((&*submit_span.service, &*accepted.service), ("llink-coord", "llink-coord"));

    let tasks: HashMap<&str, &Seen> =
        seen.iter().filter(|span| span.name.starts_with("task ")).map(|span| (span.id.as_str(), span)).collect();
    for task in tasks.values() {
        assert_eq!((&task.parent, &*task.service), (&accepted.id, "llink-worker"), "{task:?}");
        assert_eq!(task.attributes["job"], accepted.attributes["job"], "{task:?}");
        assert!(task.number("task") > 0 && task.number("attempt") > 0, "{task:?}");
    }
    let stages: BTreeSet<&str> = tasks.values().map(|task| &*task.attributes["stage"]).collect();
    for stage in ["shard", "models", "embed", "baseline", "align", "evaluate"] {
        assert!(stages.contains(stage), "{stages:?}");
    }
    let embedded: u64 = named("task embed").iter().map(|task| task.number("rows")).sum();
    assert!(embedded >= 1500, "{:#?}", named("task embed"));
    let [align] = named("task align")[..] else { panic!("{tasks:#?}") };
    assert!(align.attributes.contains_key("rank") && align.number("bytes") > 0, "{align:?}");

    let requests: Vec<&Seen> = seen.iter().filter(|span| span.attributes.contains_key("store")).collect();
    for request in &requests {
        let of_task = tasks.contains_key(&*request.parent);
        assert!(of_task || request.parent == accepted.id, "{request:?}");
    }
    // What a rank writes beside its training, and what is read ahead, belongs to its task too.
    for (name, of) in [("put", "embed"), ("get", "embed"), ("put", "align"), ("get", "evaluate")] {
        let is_such = |span: &&&Seen| {
            span.name == name && tasks.get(&*span.parent).is_some_and(|task| task.attributes["stage"] == of)
        };
        let found = requests.iter().find(is_such).unwrap_or_else(|| panic!("{name} of {of}: {requests:#?}"));
        assert!(found.attributes["status"] == "ok" && found.number("bytes") > 0, "{found:?}");
    }

    // Without an endpoint, or where OpenTelemetry is turned off, nothing is sent.
    let off = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_SDK_DISABLED", "true")];
    for variables in [&off[..], &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]] {
        let output = submit(&place, variables);
        assert!(text(&output).contains("nothing to do"), "{}", text(&output));
        assert_eq!(collector.take().len(), 0, "{variables:?}");
    }
    let http = [off[0], ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")];
    let said = text(&submit(&place, &http));
    assert!(said.contains("only grpc is supported") && said.contains("nothing to do"), "{said}");
}

#[test]
fn requests_to_s3_name_their_trace_and_an_error_shows_no_secret() {
    let (collector, _runtime, address) = Collector::start();
    let (heard, requests) = std::sync::mpsc::channel();
    let s3 = crate::http::serve(move |request| {
        // Nobody listens after the test.
        let _ = heard.send(request.headers);
        axum::http::StatusCode::NOT_FOUND
    });
    let place = Place::new("output = \"out\"\n[corpus]\nsource = \"s3://bucket/pairs.tsv\"\n");
    let output = submit(
        &place,
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://{address}")),
            ("AWS_ENDPOINT", &s3),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "me"),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
            ("OTEL_SERVICE_NAME", "nightly"),
        ],
    );
    assert!(!output.status.success(), "{}", text(&output));
    let seen = collector.take();
    let request = requests.recv().unwrap();
    let store = seen.iter().find(|span| span.attributes.contains_key("store")).unwrap();
    assert_eq!(request["traceparent"], format!("{}-{}-01", &GIVEN[..35], store.id));
    assert_eq!((&*store.attributes["store"], &*store.attributes["status"]), ("s3://bucket", "not found"));
    for name in ["submit", "JobService/Submit"] {
        let span = seen.iter().find(|span| span.name == name).unwrap();
        assert!(span.error.as_ref().unwrap().contains("s3://bucket/pairs.tsv"), "{span:?}");
    }
    for span in &seen {
        assert!(span.service == "nightly" && !format!("{span:?}").contains(SECRET), "{span:?}");
    }
}
