//! Warnings about settings that can have no effect, as far as the job file alone tells. They are shown before the job
//! starts.

use llink_proto::settings::{AlignSettings, InstructMode, InstructSettings};

use super::JobFile;

/// Returns a warning for each setting with another effect than its value says.
pub fn warnings(job: &JobFile) -> Vec<String> {
    let mut found = Vec::new();
    align(&job.align, job.corpus.holdout_pairs, &mut found);
    if let Some(section) = &job.instruct {
        instruct(section, job, &mut found);
    }
    evaluate(job, &mut found);
    unused(job, &mut found);
    ranks(job, &mut found);
    found
}

fn align(a: &AlignSettings, holdout: u64, found: &mut Vec<String>) {
    let (steps, warmup) = (a.steps, a.warmup_steps);
    if warmup >= steps {
        found.push(format!(
            "`align.warmup_steps` is {warmup} of {steps} steps: the learning rate never reaches `align.learning_rate`. Lower it, to a \
             tenth of `align.steps` for example"
        ));
    }
    let (wanted, queue) = (u64::from(a.hard_negatives), u64::from(a.queue));
    let seen = steps.saturating_mul(a.batch.into());
    if wanted > queue {
        found.push(format!(
            "`align.hard_negatives` is {wanted} and `align.queue` holds {queue}: no more than {queue} are ever mined. Raise the queue \
             or ask for fewer"
        ));
    } else if wanted > seen {
        found.push(format!(
            "`align.hard_negatives` is {wanted}, and {steps} steps of {} pairs put only {seen} into the queue: no more are ever \
             mined. Train longer or ask for fewer",
            a.batch
        ));
    }
    let looked_at = u64::from(a.validation_pairs);
    let looks = a.validate_every.is_some_and(|every| every <= steps);
    if looks && looked_at > holdout {
        found.push(format!(
            "`align.validation_pairs` is {looked_at} and `corpus.holdout_pairs` {holdout}: validation looks at {holdout}"
        ));
    }
}

fn instruct(i: &InstructSettings, job: &JobFile, found: &mut Vec<String>) {
    if i.numbers && i.mode == InstructMode::Direct {
        found.push(
            "`instruct.numbers` is true and `instruct.mode` is direct: without slots, no numbers stand beside them"
                .to_owned(),
        );
    }
    for (key, parts) in [("windows", i.windows), ("sentences", i.sentences)] {
        if parts > 0 && i.mode == InstructMode::Direct {
            found.push(format!(
                "`instruct.{key}` is given and `instruct.mode` is direct: without slots, nothing reads {key}"
            ));
        }
    }
    let Some((key, validation)) = validation_rows(job) else {
        return;
    };
    let looked_at = u64::from(i.validation_examples);
    if i.validate_every.is_some() && looked_at > validation {
        found.push(format!(
            "`instruct.validation_examples` is {looked_at} and `{key}` {validation}: validation looks at {validation}"
        ));
    }
    let asked = u64::from(job.evaluate.answers);
    if asked > validation {
        found.push(format!("`evaluate.answers` is {asked} and `{key}` {validation}: {validation} are answered"));
    }
}

/// Returns the number of held-out instructions, and the key that sets it.
fn validation_rows(job: &JobFile) -> Option<(&'static str, u64)> {
    match (&job.synthesize, &job.instructions) {
        (Some(section), _) => Some(("synthesize.validation", section.validation)),
        (None, Some(section)) => Some(("instructions.validation", section.validation)),
        (None, None) => None,
    }
}

fn evaluate(job: &JobFile, found: &mut Vec<String>) {
    let (benchmark, holdout) = (job.evaluate.benchmark_pairs, job.corpus.holdout_pairs);
    if benchmark > holdout {
        found.push(format!(
            "`evaluate.benchmark_pairs` is {benchmark} and `corpus.holdout_pairs` {holdout}: retrieval is measured among {holdout}, which \
             is easier than among more. Hold out more pairs or lower it"
        ));
    }
    let answers = match job.instruct {
        Some(_) => job.evaluate.answers,
        None => 0,
    };
    if let Some(judge) = &job.evaluate.judge
        && judge.examples > answers
    {
        found.push(format!(
            "`evaluate.judge.examples` is {} and {answers} answers are made: the judge compares {answers}",
            judge.examples
        ));
    }
}

/// Warns about sections that are read and not used.
fn unused(job: &JobFile, found: &mut Vec<String>) {
    let trained = job.instruct.is_some();
    if job.instructions.is_some() && !trained {
        found.push(
            "[instructions] is given without [instruct]: the examples are sharded and nothing is trained on them"
                .to_owned(),
        );
    }
    if job.synthesize.is_some() && !trained {
        found.push(
            "[synthesize] is given without [instruct]: examples are asked for and nothing is trained on them"
                .to_owned(),
        );
    }
    if job.synthesize.is_some() && job.instructions.is_some() {
        found.push(
            "[synthesize] and [instructions] are both given: Stage B trains on what [synthesize] makes, and on nothing of \
             `instructions.source`"
                .to_owned(),
        );
    }
}

/// Warns about gangs that a job with its own coordinator cannot form.
fn ranks(job: &JobFile, found: &mut Vec<String>) {
    let local = job.workers.local;
    let align = ("align.min_ranks", job.align.min_ranks);
    let instruct = job.instruct.as_ref().map(|i| ("instruct.min_ranks", i.min_ranks));
    for (key, ranks) in std::iter::once(align).chain(instruct).filter(|(_, ranks)| *ranks > local) {
        found.push(format!(
            "`{key}` is {ranks} and `workers.local` {local}: without --coordinator or --workers {ranks} the training never starts"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::parse;

    fn said(change: &str) -> Vec<String> {
        warnings(&parse("job.toml", &format!("[corpus]\nsource = \"sample\"\n{change}")).unwrap())
    }

    #[test]
    fn each_setting_that_cannot_hold_is_named_with_its_numbers() {
        assert_eq!(said(""), [""; 0]);
        let with_b = "[instructions]\nsource = \"sample\"\n[instruct]\n";
        assert_eq!(said(with_b), [""; 0]);
        let judge = "[evaluate.judge]\nurl = \"https://models.example/v1\"\nmodel = \"m\"\nexamples = 3\n";
        for (change, expected) in [
            ("[align]\nsteps = 3000\n".to_owned(), "`align.warmup_steps` is 3000 of 3000 steps"),
            ("[align]\nqueue = 100\n".to_owned(), "`align.queue` holds 100"),
            ("[align]\nsteps = 3\nbatch = 64\nwarmup_steps = 1\n".to_owned(), "put only 192 into the queue"),
            (
                "holdout_pairs = 500\n[align]\nvalidation_pairs = 501\n[evaluate]\nbenchmark_pairs = 500\n".to_owned(),
                "validation looks at 500",
            ),
            ("holdout_pairs = 1000\n".to_owned(), "retrieval is measured among 1000"),
            (format!("[evaluate]\nanswers = 2001\n{with_b}"), "`instructions.validation` 2000: 2000 are answered"),
            (format!("{with_b}validation_examples = 2001\n"), "validation looks at 2000"),
            (format!("{with_b}numbers = true\nmode = \"direct\"\n"), "without slots, no numbers"),
            (format!("{with_b}windows = 8\nmode = \"direct\"\n"), "nothing reads windows"),
            (format!("{with_b}sentences = 3\nmode = \"direct\"\n"), "nothing reads sentences"),
            (format!("[evaluate]\nanswers = 2\n{judge}{with_b}"), "the judge compares 2"),
            ("[instructions]\nsource = \"sample\"\n".to_owned(), "nothing is trained on them"),
            ("[align]\nmin_ranks = 3\n".to_owned(), "--workers 3 the training never starts"),
        ] {
            let said = said(&change);
            assert_eq!(said.len(), 1, "{change}: {said:?}");
            assert!(said[0].contains(expected), "{change}: {said:?}");
        }
    }

    #[test]
    fn lowering_what_a_warning_names_silences_it() {
        for advised in [
            "[align]\nsteps = 3000\nwarmup_steps = 300\n",
            "[align]\nqueue = 100\nhard_negatives = 100\n",
            "holdout_pairs = 1000\n[evaluate]\nbenchmark_pairs = 1000\n",
            "[align]\nmin_ranks = 3\n[workers]\nlocal = 3\n",
        ] {
            assert_eq!(said(advised), [""; 0], "{advised}");
        }
    }
}
