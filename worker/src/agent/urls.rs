//! What a task reads and writes outside of its own output, checked against the roots that this worker was given: a
//! coordinator that was taken over gets no further than they reach.

use llink_datasets::roots::Roots;
use llink_proto::task::Kind;
use llink_proto::{ModelRef, Task};

/// Refuses a task whose URLs lie below none of the roots.
pub(super) fn check(task: &Task, roots: &Roots) -> Result<(), String> {
    let mut urls = vec![task.output_url.as_str()];
    let model = |m: &'_ Option<ModelRef>| m.as_ref().map_or(String::new(), |m| m.url.clone());
    let mut models = Vec::new();
    match &task.kind {
        Some(Kind::CleanSource(t)) => {
            if let Some(source) = &t.source {
                urls.extend([source.url.as_str(), source.foreign_url.as_str()]);
            }
        }
        Some(Kind::PrepareModel(t)) => urls.push(&t.source),
        Some(Kind::Synthesize(t)) => urls.extend(t.endpoint.as_ref().map(|e| e.url.as_str())),
        Some(Kind::EmbedShard(t)) => models.push(model(&t.model)),
        Some(Kind::Instruct(t)) => models.push(model(&t.decoder)),
        Some(Kind::Evaluate(t)) => models.push(model(&t.decoder)),
        Some(Kind::Align(_) | Kind::SplitCorpus(_) | Kind::WriteShard(_)) | None => {}
    }
    urls.extend(models.iter().map(String::as_str));
    let made_up = |url: &&str| url.is_empty() || *url == "sample" || *url == "tiny";
    urls.iter()
        .filter(|url| !made_up(url))
        .try_for_each(|url| roots.admit(url))
}

#[cfg(test)]
mod tests {
    use super::*;
    use llink_proto::{CleanSource, EmbedShard, PrepareModel, Source};

    #[test]
    fn a_task_beyond_the_roots_is_refused_whatever_kind_it_is() {
        let roots = Roots::of(&["/data".into()]).unwrap();
        let task = |kind: Kind| Task {
            output_url: "/data/out".into(),
            kind: Some(kind),
        };
        let source = |url: &str| {
            let source = Some(Source {
                url: url.into(),
                ..Source::default()
            });
            task(Kind::CleanSource(CleanSource {
                source,
                ..CleanSource::default()
            }))
        };
        assert_eq!(check(&source("/data/a.tsv"), &roots), Ok(()));
        assert_eq!(check(&source("sample"), &roots), Ok(()));
        assert!(check(&source("/etc/passwd"), &roots).is_err());
        let model = |url: &str| {
            let model = Some(ModelRef {
                url: url.into(),
                ..ModelRef::default()
            });
            task(Kind::EmbedShard(EmbedShard {
                model,
                ..EmbedShard::default()
            }))
        };
        assert!(check(&model("/data/../root/model"), &roots).is_err());
        let prepare = |source: &str| {
            task(Kind::PrepareModel(PrepareModel {
                source: source.into(),
                ..PrepareModel::default()
            }))
        };
        assert_eq!(check(&prepare("tiny"), &roots), Ok(()));
        assert!(check(&prepare("http://elsewhere/model"), &roots).is_err());
        let elsewhere = Task {
            output_url: "s3://elsewhere".into(),
            ..source("sample")
        };
        assert!(check(&elsewhere, &roots).is_err());
        assert_eq!(check(&elsewhere, &Roots::Any), Ok(()));
    }
}
