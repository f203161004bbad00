//! A worker goes no further than its roots reach, whatever it is told.

use llink_proto::{CleanSource, CleaningRules, ModelRole, PrepareModel, Source, Synthesize};

use super::*;

const OUTSIDE: [&str; 3] = ["/etc/passwd", "/data/../etc/passwd", "http://169.254.169.254/latest"];

fn context(output: &str, roots: Roots) -> (tokio::runtime::Runtime, TaskContext) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let context = TaskContext {
        output_url: output.into(),
        roots,
        runtime: runtime.handle().clone(),
        control: Arc::default(),
        seat: None,
        rendezvous: Box::new(|_| unreachable!("these tasks are no gangs")),
        local_address: std::net::Ipv4Addr::LOCALHOST.into(),
        compute: Compute::cpu(),
        turns: Arc::default(),
        models: Arc::default(),
        built_in: Some(&llink_quickstart::Quickstart),
        token: 1,
    };
    (runtime, context)
}

fn roots() -> Roots {
    Roots::of(&["/data".into(), "https://models.example/v1".into()]).unwrap()
}

fn run_kind(context: &TaskContext, kind: Kind) -> String {
    let task = Task { output_url: context.output_url.clone(), kind: Some(kind) };
    run(context, task).unwrap_err().to_string()
}

fn clean(url: &str, foreign: &str) -> Kind {
    Kind::CleanSource(CleanSource {
        corpus: llink_proto::Corpus::Pairs.into(),
        source: Some(Source {
            url: url.into(),
            foreign_url: Some(foreign.to_owned()).filter(|url| !url.is_empty()),
            ..Source::default()
        }),
        rules: Some(CleaningRules { max_chars: 300, ..CleaningRules::default() }),
        ..CleanSource::default()
    })
}

fn prepare(source: &str) -> Kind {
    Kind::PrepareModel(PrepareModel {
        role: ModelRole::Encoder.into(),
        source: source.into(),
        ..PrepareModel::default()
    })
}

fn model(url: &str, fingerprint: &str) -> ModelRef {
    ModelRef { url: url.into(), fingerprint: fingerprint.into(), ..ModelRef::default() }
}

fn endpoint(url: &str, api_key_env: &str) -> ModelEndpoint {
    ModelEndpoint { url: url.into(), api_key_env: api_key_env.into(), timeout_s: 1.0, ..ModelEndpoint::default() }
}

#[test]
fn everything_that_opens_a_url_asks_the_roots_first() {
    let (_runtime, context) = context("/data/out", roots());
    for url in OUTSIDE {
        let said = [
            ("source", run_kind(&context, clean(url, ""))),
            ("foreign side of a source", run_kind(&context, clean("/data/in", url))),
            ("new model", run_kind(&context, prepare(url))),
            ("model", models::folder(&context, &model(url, "0f")).unwrap_err().to_string()),
            ("endpoint", context.client("judge", &endpoint(url, "")).unwrap_err().to_string()),
            ("direct answers", context.open(url).unwrap_err().to_string()),
        ];
        for (what, said) in said {
            assert!(said.contains(url) && said.contains("--allow-root"), "{what}: {said}");
        }
    }
}

#[test]
fn an_output_elsewhere_is_not_touched() {
    for url in OUTSIDE {
        let (_runtime, context) = context(url, roots());
        for kind in [clean("sample", ""), Kind::Synthesize(Synthesize::default())] {
            let said = context.opened().err().unwrap().to_string();
            assert!(said.contains(url) && said.contains("--allow-root"), "{said}");
            let said = run_kind(&context, kind);
            assert!(said.contains("--allow-root") || said.contains("without"), "{said}");
        }
    }
}

#[test]
fn what_lies_below_a_root_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("in.tsv");
    std::fs::write(&file, "a lamp\tx\n").unwrap();
    let root = folder.path().to_str().unwrap().to_owned();
    let output = format!("{root}/out");
    let (_runtime, context) = context(&output, Roots::of(&[root]).unwrap());
    for source in [file.to_str().unwrap(), "sample"] {
        let Kind::CleanSource(mut spec) = clean(source, "") else { unreachable!() };
        (spec.path, spec.sample_rows) = ("cleaned.parquet".into(), 3);
        let task = Task { output_url: output.clone(), kind: Some(Kind::CleanSource(spec)) };
        assert!(!run(&context, task).unwrap().artifacts.is_empty(), "{source}");
    }
}

#[test]
fn the_workers_own_keys_are_sent_to_nobody() {
    let (_runtime, context) = context("/data/out", roots());
    let ask = |variable| context.client("judge", &endpoint("https://models.example/v1", variable));
    let said = ask("AWS_SECRET_ACCESS_KEY").unwrap_err().to_string();
    assert!(said.contains("AWS_SECRET_ACCESS_KEY"), "{said}");
    assert!(ask("").is_ok());
}

#[test]
fn a_fingerprint_leads_nowhere() {
    for roots in [roots(), Roots::Any] {
        let (_runtime, context) = context("/data/out", roots);
        for print in ["../../home", ""] {
            let said = models::folder(&context, &model("/data/model", print)).unwrap_err().to_string();
            assert!(said.contains("fingerprint"), "{said}");
        }
    }
}
