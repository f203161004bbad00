//! A worker accesses nothing outside its roots, whatever it is told.

use super::*;

fn roots() -> Roots {
    Roots::of(&["/data".into(), "https://models.example/v1".into()]).unwrap()
}

fn task(kind: Kind) -> Task {
    Task {
        output_url: "/data/out".into(),
        kind: Some(kind),
    }
}

fn model(url: &str) -> Option<ModelRef> {
    Some(ModelRef {
        url: url.into(),
        fingerprint: "0f".into(),
        ..ModelRef::default()
    })
}

fn endpoint(url: &str, api_key_env: &str) -> Option<ModelEndpoint> {
    Some(ModelEndpoint {
        url: url.into(),
        api_key_env: api_key_env.into(),
        ..ModelEndpoint::default()
    })
}

/// Returns tasks of every kind with an outside URL, `url` in one field each.
fn tasks_with(url: &str) -> Vec<(&'static str, Task)> {
    let source = |url: &str, foreign: &str| {
        let source = Some(Source {
            url: url.into(),
            foreign_url: foreign.into(),
            ..Source::default()
        });
        task(Kind::CleanSource(CleanSource {
            source,
            ..CleanSource::default()
        }))
    };
    let judge = |judge: Judge| {
        task(Kind::Evaluate(Evaluate {
            judge: Some(judge),
            ..Evaluate::default()
        }))
    };
    let export = |encoder: &str, decoder: &str| {
        task(Kind::Export(Export {
            encoder: model(encoder),
            decoder: model(decoder),
            ..Export::default()
        }))
    };
    let good = "/data/in";
    vec![
        ("source", source(url, "")),
        ("foreign side of a source", source(good, url)),
        (
            "synthesis",
            task(Kind::Synthesize(Synthesize {
                endpoint: endpoint(url, ""),
                ..Synthesize::default()
            })),
        ),
        (
            "model",
            task(Kind::PrepareModel(PrepareModel {
                source: url.into(),
                ..PrepareModel::default()
            })),
        ),
        (
            "embedding model",
            task(Kind::EmbedShard(EmbedShard {
                model: model(url),
                ..EmbedShard::default()
            })),
        ),
        (
            "decoder",
            task(Kind::Instruct(Instruct {
                decoder: model(url),
                ..Instruct::default()
            })),
        ),
        (
            "evaluated decoder",
            task(Kind::Evaluate(Evaluate {
                decoder: model(url),
                ..Evaluate::default()
            })),
        ),
        (
            "judge",
            judge(Judge {
                endpoint: endpoint(url, ""),
                ..Judge::default()
            }),
        ),
        (
            "direct answers",
            judge(Judge {
                direct_answers: url.into(),
                ..Judge::default()
            }),
        ),
        ("exported encoder", export(url, good)),
        ("exported decoder", export(good, url)),
        (
            "output",
            Task {
                output_url: url.into(),
                kind: None,
            },
        ),
    ]
}

#[test]
fn every_url_of_every_task_must_lie_below_a_root() {
    for (what, task) in tasks_with("/data/in/file") {
        assert_eq!(check(&task, &roots()), Ok(()), "{what}");
    }
    for url in ["/etc/passwd", "/data/../etc/passwd", "http://169.254.169.254/latest"] {
        for (what, task) in tasks_with(url) {
            let said = check(&task, &roots()).expect_err(what);
            assert!(said.contains(url), "{what}: {said}");
            assert_eq!(check(&task, &Roots::Any), Ok(()), "{what}");
        }
    }
}

#[test]
fn what_is_made_here_needs_no_root() {
    let made = |source: &str| {
        task(Kind::PrepareModel(PrepareModel {
            source: source.into(),
            ..PrepareModel::default()
        }))
    };
    assert_eq!(check(&made("tiny"), &roots()), Ok(()));
    assert_eq!(check(&made("random"), &roots()), Ok(()));
}

#[test]
fn the_workers_own_keys_are_sent_to_nobody() {
    let ask = |variable: &str| {
        task(Kind::Synthesize(Synthesize {
            endpoint: endpoint("https://models.example/v1", variable),
            ..Synthesize::default()
        }))
    };
    assert_eq!(check(&ask("OPENAI_API_KEY"), &roots()), Ok(()));
    let said = check(&ask("AWS_SECRET_ACCESS_KEY"), &roots()).unwrap_err();
    assert!(said.contains("AWS_SECRET_ACCESS_KEY"), "{said}");
}

#[test]
fn a_fingerprint_leads_nowhere() {
    let task = task(Kind::EmbedShard(EmbedShard {
        model: Some(ModelRef {
            url: "/data/model".into(),
            fingerprint: "../../home".into(),
            ..ModelRef::default()
        }),
        ..EmbedShard::default()
    }));
    for roots in [roots(), Roots::Any] {
        assert!(check(&task, &roots).unwrap_err().contains("fingerprint"));
    }
}
