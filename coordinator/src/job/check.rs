//! Finds values that parse but are invalid.

use llink_datasets::script::WritingSystem;

use super::{CleaningSection, ColumnName, JobFile, Problem, Sources};

/// Records a key whose value is not as expected: (holds, key, given, expected).
pub(super) type Expect<'a> = &'a mut dyn FnMut(bool, &str, &dyn std::fmt::Display, &str);

/// Returns every value out of range, by its key. The parser fills in the places.
pub(super) fn problems(job: &JobFile) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut expect = |holds: bool, key: &str, given: &dyn std::fmt::Display, expected: &str| {
        if !holds {
            found.push(Problem {
                key: key.into(),
                span: None,
                what: format!("`{key}` is {given}: expected {expected}"),
                help: None,
            });
        }
    };
    let name_ok = !job.name.is_empty()
        && job
            .name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.');
    expect(
        name_ok,
        "name",
        &format!("{:?}", job.name),
        "letters, digits, `-`, `_` or `.`",
    );
    expect(
        !job.output.is_empty() && !job.output.starts_with("hf://"),
        "output",
        &format!("{:?}", job.output),
        "a folder or an object-store URL",
    );

    let c = &job.corpus;
    expect(
        !c.source.as_slice().is_empty(),
        "corpus.source",
        &"empty",
        "at least one source",
    );
    sources(&c.source, "corpus.source", &mut expect);
    let columns = [
        ("corpus.english_column", &c.english_column),
        ("corpus.foreign_column", &c.foreign_column),
    ];
    for (key, column) in columns {
        if let Some(column) = column {
            let counted = *column != ColumnName::Number(0) && *column != ColumnName::Name(String::new());
            expect(counted, key, column, "a column's number, from 1, or its name");
        }
    }
    if let (Some(english), Some(foreign)) = (&c.english_column, &c.foreign_column) {
        let differ = english != foreign;
        expect(
            differ,
            "corpus.foreign_column",
            foreign,
            "another column than `corpus.english_column`",
        );
    }
    cleaning(&job.cleaning, &mut expect);
    for (key, given, expected) in job.synthesize.iter().flat_map(super::synthesize::faults) {
        expect(false, key, &given, expected);
    }
    expect(
        c.holdout_pairs >= 2,
        "corpus.holdout_pairs",
        &c.holdout_pairs,
        "at least 2, to measure retrieval on",
    );
    expect(
        c.min_chars <= c.max_chars,
        "corpus.min_chars",
        &c.min_chars,
        "at most `corpus.max_chars`",
    );
    expect(
        (1..=65_535).contains(&c.max_chars),
        "corpus.max_chars",
        &c.max_chars,
        "1 to 65535",
    );
    expect(c.shard_rows >= 1, "corpus.shard_rows", &c.shard_rows, "at least 1");
    let sample_sized = c.train_pairs > 0 || !c.source.has_sample();
    expect(
        sample_sized,
        "corpus.train_pairs",
        &c.train_pairs,
        "how many pairs of the sample corpus to make",
    );

    if let Some(i) = &job.instructions {
        expect(
            !i.source.as_slice().is_empty(),
            "instructions.source",
            &"empty",
            "at least one source",
        );
        sources(&i.source, "instructions.source", &mut expect);
        expect(
            i.validation >= 1,
            "instructions.validation",
            &i.validation,
            "at least 1",
        );
        expect(
            i.min_chars <= i.max_chars,
            "instructions.min_chars",
            &i.min_chars,
            "at most `instructions.max_chars`",
        );
        expect(
            (1..=65_535).contains(&i.max_chars),
            "instructions.max_chars",
            &i.max_chars,
            "1 to 65535",
        );
        expect(
            i.shard_rows >= 1,
            "instructions.shard_rows",
            &i.shard_rows,
            "at least 1",
        );
        let sized = i.train > 0 || !i.source.has_sample();
        expect(
            sized,
            "instructions.train",
            &i.train,
            "how many sample instructions to make",
        );
    }
    super::models::problems(job, &mut expect);
    expect(
        job.embed.token_budget >= 256,
        "embed.token_budget",
        &job.embed.token_budget,
        "at least 256",
    );
    expect(
        job.embed.max_chars >= 1,
        "embed.max_chars",
        &job.embed.max_chars,
        "at least 1",
    );
    expect(
        (3..=512).contains(&job.embed.max_tokens),
        "embed.max_tokens",
        &job.embed.max_tokens,
        "3 to 512",
    );

    job.embed.teacher.problems(&mut expect);

    let a = &job.align;
    let positive = |x: f64| x.is_finite() && x > 0.0;
    let fraction = |x: f64| (0.0..1.0).contains(&x);
    expect(a.steps >= 1, "align.steps", &a.steps, "at least 1");
    expect(
        a.batch >= 2,
        "align.batch",
        &a.batch,
        "at least 2: a contrastive loss needs negatives",
    );
    let batch_fits = c.train_pairs == 0 || u64::from(a.batch) <= c.train_pairs;
    expect(batch_fits, "align.batch", &a.batch, "at most `corpus.train_pairs`");
    expect(
        positive(a.temperature_start),
        "align.temperature_start",
        &a.temperature_start,
        "above 0",
    );
    expect(
        positive(a.temperature_end),
        "align.temperature_end",
        &a.temperature_end,
        "above 0",
    );
    expect(
        positive(a.learning_rate),
        "align.learning_rate",
        &a.learning_rate,
        "above 0",
    );
    let floor_ok = (0.0..=a.learning_rate).contains(&a.learning_rate_floor);
    expect(
        floor_ok,
        "align.learning_rate_floor",
        &a.learning_rate_floor,
        "0 to `align.learning_rate`",
    );
    expect(
        a.weight_decay >= 0.0 && a.weight_decay.is_finite(),
        "align.weight_decay",
        &a.weight_decay,
        "0 or more",
    );
    expect(fraction(a.beta1), "align.beta1", &a.beta1, "0 up to, not including, 1");
    expect(fraction(a.beta2), "align.beta2", &a.beta2, "0 up to, not including, 1");
    expect(
        positive(a.gradient_clip),
        "align.gradient_clip",
        &a.gradient_clip,
        "above 0",
    );
    expect(
        fraction(a.dropout),
        "align.dropout",
        &a.dropout,
        "0 up to, not including, 1",
    );
    expect(
        a.direction_weight >= 0.0,
        "align.direction_weight",
        &a.direction_weight,
        "0 or more",
    );
    expect(
        a.log_norm_weight >= 0.0,
        "align.log_norm_weight",
        &a.log_norm_weight,
        "0 or more",
    );
    expect(
        a.whitening_eps > 0.0 && a.whitening_eps <= 1.0,
        "align.whitening_eps",
        &a.whitening_eps,
        "above 0, at most 1",
    );
    let minutes_ok = (0.0..=10_000.0).contains(&a.checkpoint_minutes);
    expect(
        minutes_ok,
        "align.checkpoint_minutes",
        &a.checkpoint_minutes,
        "0 to 10000",
    );
    expect(
        a.checkpoints_kept >= 1,
        "align.checkpoints_kept",
        &a.checkpoints_kept,
        "at least 1",
    );
    let measurable = a.validate_every == 0 || a.validation_pairs >= 2;
    expect(
        measurable,
        "align.validation_pairs",
        &a.validation_pairs,
        "at least 2, or `align.validate_every = 0`",
    );
    expect(
        positive(a.step_timeout_s),
        "align.step_timeout_s",
        &a.step_timeout_s,
        "above 0",
    );
    expect(a.min_ranks >= 1, "align.min_ranks", &a.min_ranks, "at least 1");
    let ranks_ok = a.max_ranks == 0 || a.max_ranks >= a.min_ranks;
    expect(
        ranks_ok,
        "align.max_ranks",
        &a.max_ranks,
        "0, or at least `align.min_ranks`",
    );
    let batch_spreads = a.max_ranks <= a.batch && a.min_ranks <= a.batch;
    expect(batch_spreads, "align.max_ranks", &a.max_ranks, "at most `align.batch`");
    super::instruct::problems(job, &mut expect);
    super::export::problems(job, &mut expect);
    super::judge::problems(job, &mut expect);
    expect(
        job.evaluate.max_answer_tokens >= 1,
        "evaluate.max_answer_tokens",
        &job.evaluate.max_answer_tokens,
        "at least 1",
    );
    expect(
        job.evaluate.benchmark_pairs >= 2,
        "evaluate.benchmark_pairs",
        &job.evaluate.benchmark_pairs,
        "at least 2",
    );
    expect(
        (1..=256).contains(&job.workers.local),
        "workers.local",
        &job.workers.local,
        "1 to 256",
    );
    expect(
        (-100..=100).contains(&job.workers.priority),
        "workers.priority",
        &job.workers.priority,
        "-100 to 100",
    );
    let fewest = job
        .instruct
        .as_ref()
        .map_or(1, |instruct| instruct.min_ranks)
        .max(a.min_ranks);
    expect(
        job.workers.at_most == 0 || job.workers.at_most >= fewest,
        "workers.at_most",
        &job.workers.at_most,
        "0 for any number, or at least the `min_ranks` of `align` and `instruct`",
    );
    found
}

fn sources(sources: &Sources, key: &str, expect: Expect<'_>) {
    for entry in sources.as_slice() {
        if let Some(expected) = entry.fault() {
            let given = match entry.name() {
                "" => "without a file".to_owned(),
                name => format!("{name:?}"),
            };
            expect(false, key, &given, expected);
        }
        for column in [&entry.english_column, &entry.foreign_column].into_iter().flatten() {
            let counted = *column != ColumnName::Number(0) && *column != ColumnName::Name(String::new());
            expect(counted, key, column, "a column's number, from 1, or its name");
        }
    }
}

fn cleaning(c: &CleaningSection, expect: Expect<'_>) {
    let is_script = |code: &str| code.parse::<WritingSystem>().is_ok();
    let expected = "an ISO 15924 code of a script, such as Khmr, Laoo or Latn";
    let script = c.script.as_deref();
    expect(
        script.is_none_or(is_script),
        "cleaning.script",
        &format!("{:?}", script.unwrap_or_default()),
        expected,
    );
    expect(
        is_script(&c.english_script),
        "cleaning.english_script",
        &format!("{:?}", c.english_script),
        expected,
    );
    expect(
        (0.0..=1.0).contains(&c.min_script_share),
        "cleaning.min_script_share",
        &c.min_script_share,
        "0 to 1",
    );
    expect(
        c.max_length_ratio == 0.0 || (c.max_length_ratio >= 1.0 && c.max_length_ratio.is_finite()),
        "cleaning.max_length_ratio",
        &c.max_length_ratio,
        "0 for any ratio, or at least 1",
    );
    expect(
        c.similarity > 0.0 && c.similarity <= 1.0,
        "cleaning.similarity",
        &c.similarity,
        "above 0, at most 1",
    );
}
