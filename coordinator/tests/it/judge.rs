//! A judge on loopback prefers answers. The report shows whose, in tables and on a page.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::{BUNDLED, Place, figure, json_lines, says_all};
use serde_json::{Value, json};

fn answering() -> String {
    BUNDLED.replace("answers = 4", "answers = 6")
}

/// Serves verdicts, and returns the URL and the number of requests. `judge` gets answers A and B.
fn serve(judge: fn(&str, &str) -> &'static str) -> (String, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let url = crate::http::serve(move |request| {
        let request: Value = serde_json::from_slice(&request.body).unwrap();
        let prompt = request["messages"][1]["content"].as_str().unwrap();
        let (_, answers) = prompt.split_once("\n\nAnswer A: ").unwrap();
        let (a, rest) = answers.split_once("\n\nAnswer B: ").unwrap();
        let (b, _) = rest.split_once("\n\nWhich is better").unwrap();
        count.fetch_add(1, Ordering::SeqCst);
        json!({"choices": [{"message": {"content": judge(a, b)}, "finish_reason": "stop"}]}).to_string()
    });
    (format!("{url}/v1"), asked)
}

fn job(url: &str, more: &str) -> String {
    let judge = format!("model = \"judge\"\nurl = \"{url}\"\nexamples = 5\nattempts = 2\n");
    format!("{}[evaluate.judge]\n{judge}{more}", answering())
}

#[test]
fn answers_are_judged_in_both_orders_and_the_report_counts_them() {
    // This judge takes the answer whose text is greater, in either position.
    let (url, asked) = serve(|a, b| match a.cmp(b) {
        std::cmp::Ordering::Greater => "A",
        std::cmp::Ordering::Less => "B.",
        std::cmp::Ordering::Equal => "T",
    });
    let place = Place::new(&job(&url, ""));
    let said = place.ok(&["submit", "job.toml"]);
    assert_eq!(asked.load(Ordering::SeqCst), 10, "five examples in both orders");
    assert!(said.contains("the base decoder"), "{said}");
    let found = json_lines(place.artifact("evaluate", "judgements.jsonl"));
    assert_eq!(found.len(), 5);
    let mut counted = [0.0; 3];
    for row in &found {
        let text = |key: &str| row[key].as_str().unwrap();
        let (place, preference) = match text("ours").cmp(text("theirs")) {
            std::cmp::Ordering::Greater => (0, "win"),
            std::cmp::Ordering::Equal => (1, "tie"),
            std::cmp::Ordering::Less => (2, "loss"),
        };
        assert_eq!(row["preference"], preference, "{row}");
        counted[place] += 1.0;
    }
    for (name, count) in ["win", "tie", "loss"].iter().zip(counted) {
        assert_eq!(figure(&place, &format!("judged.base.{name}")), count);
    }
    assert_eq!(figure(&place, "judged.base.unclear"), 0.0);
    assert_eq!(figure(&place, "judged.base.order_flips"), 0.0);
    let preferred = (counted[0] + counted[1] / 2.0) / 5.0;
    assert!((figure(&place, "judged.base.preferred") - preferred).abs() < 1e-9);
    assert!(figure(&place, "judged.base.low") <= preferred && preferred <= figure(&place, "judged.base.high"));

    let page = place.read("out/report.html");
    let titles = ["Retrieval among 100 held-out pairs", "Judged preference", "How steady the judge"];
    says_all(&page, &titles);
    says_all(&page, &["Some answers", "Token inflation"]);
    assert!(page.matches("<svg").count() >= 7, "curves of both trainings");
    assert!(!page.contains("http://") || page.matches("http://").count() == page.matches("http://www.w3.org/").count());

    // Earlier judgments are not asked for again, and a judge who always takes the first answer prefers neither side.
    let rows = found.iter().map(|row| format!("{}\n", json!({"id": row["id"], "answers": {"direct": "x"}})));
    place.write("direct.jsonl", rows.collect::<String>());
    let (first, asked) = serve(|_, _| "A");
    place.write("job.toml", job(&first, "direct_answers = \"direct.jsonl\"\n"));
    place.ok(&["submit", "job.toml"]);
    assert_eq!(asked.load(Ordering::SeqCst), 10, "the base decoder's were judged before");
    assert_eq!(figure(&place, "judged.direct.tie"), 5.0);
    assert_eq!(figure(&place, "judged.direct.order_flips"), 1.0);
    assert_eq!(figure(&place, "judged.direct.preferred"), 0.5);
    assert_eq!(figure(&place, "judged.base.win"), counted[0]);
    assert!(found.iter().all(|row| row["ours"] != "x"));
}

#[test]
fn a_second_run_shows_how_many_verdicts_change() {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    // The ten replies of the first run name A, and those of the second run name B.
    let (url, asked) = serve(|_, _| match ASKED.fetch_add(1, Ordering::SeqCst) {
        ..10 => "A",
        _ => "B",
    });
    let place = Place::new(&job(&url, "runs = 2\n"));
    place.ok(&["submit", "job.toml"]);
    assert_eq!(asked.load(Ordering::SeqCst), 20);
    for (name, expected) in [("run_flips", 1.0), ("order_flips", 1.0), ("tie", 5.0)] {
        assert_eq!(figure(&place, &format!("judged.base.{name}")), expected, "{name}");
    }
    let row = &json_lines(place.artifact("evaluate", "judgements.jsonl"))[0];
    assert_eq!(row["verdicts"], json!(["ours", "theirs", "theirs", "ours"]));
    let card = std::fs::read_to_string(place.artifact("export", "README.md")).unwrap();
    assert!(card.contains("| the base decoder | all |") && card.contains("differ by run"), "{card}");
}

#[test]
fn an_evaluation_set_is_scored_apart_and_an_answer_has_its_cost() {
    let files =
        "set = { english = \"flores/devtest/eng_Latn.devtest\", foreign = \"flores/devtest/khm_Khmr.devtest\" }\n";
    let place = Place::new(&format!("{}{files}", answering()));
    // Half of the sentences are the job's own, by their seed.
    let pairs = |seed| llink_quickstart::sample::pairs(8, seed);
    let (english, foreign): (Vec<String>, Vec<String>) = pairs(11).chain(pairs(123_456)).unzip();
    for (name, lines) in [("eng_Latn", english), ("khm_Khmr", foreign)] {
        place.write(&format!("flores/devtest/{name}.devtest"), lines.join("\n") + "\n");
    }
    let said = place.ok(&["submit", "job.toml"]);
    assert!(said.contains("Answers to 16 sentences of the evaluation set"), "{said}");
    assert_eq!(figure(&place, "set.zeroed.count"), 16.0);
    assert!((1.0..=8.0).contains(&figure(&place, "set.trained_on")), "{said}");
    let artifact = |stage: &str, end: &str| std::fs::read_to_string(place.artifact(stage, end)).unwrap();
    assert_eq!(artifact("evaluate", "set-answers.jsonl").lines().count(), 16);

    let cost = |name: &str| figure(&place, &format!("cost.{name}"));
    assert!(cost("slots.prompt_tokens") < cost("base.prompt_tokens"), "{said}");
    assert!(cost("slots.encoder_ms") > 0.0 && cost("base.first_token_ms") > 0.0, "{said}");
    let card = artifact("export", "README.md");
    let row = card.lines().find(|line| line.starts_with("| with slots |") && line.ends_with("|  |  |  |"));
    assert!(row.is_some(), "the card has the cost without times: {card}");

    // A file of the set that changes is evaluated again.
    place.write("flores/devtest/eng_Latn.devtest", "A fish.\n".repeat(16));
    assert!(place.ok(&["submit", "job.toml", "--dry-run"]).contains("evaluate   will run"));
}

#[test]
fn a_judge_who_thinks_aloud_is_read_and_one_who_cannot_be_read_is_quoted() {
    let (url, asked) = serve(|_, _| "<think>\nBoth are close. Answer B names it.\n</think>\n\n**A**");
    let place = Place::new(&job(&url, ""));
    place.ok(&["submit", "job.toml"]);
    assert_eq!(figure(&place, "judged.base.unclear"), 0.0);
    assert_eq!(figure(&place, "judged.base.tie"), 5.0, "who always takes the first prefers nobody");
    assert_eq!(asked.load(Ordering::SeqCst), 10);

    // Verdicts are kept, so another output is needed to ask again.
    let (url, asked) = serve(|_, _| "I would rather talk about the \u{1b}[2Jweather.");
    let other = || job(&url, "").replace("output = \"out\"", "output = \"other\"");
    place.write("job.toml", other());
    let said = place.fails(3, &["submit", "job.toml"]);
    assert!(said.contains("none of the judge's 10 replies"), "{said}");
    let last = said.lines().last().unwrap();
    assert_eq!(last.matches("rather talk about the \\u{1b}[2Jweather").count(), 3, "three are quoted: {said}");
    assert_eq!(asked.load(Ordering::SeqCst), 10);
    assert!(!place.path("other/judge-cache").exists(), "no failure is kept as a verdict");
}

#[test]
fn a_judge_that_cant_be_reached_or_is_meant_otherwise_is_named() {
    let place = Place::new(&job("http://127.0.0.1:9/v1", "timeout_s = 1\n"));
    place.refuses(3, &["submit", "job.toml"], &["http://127.0.0.1:9/v1"]);
    place.write("job.toml", job("127.0.0.1/v1", "direct_answers = \"nowhere.jsonl\"\n"));
    place.refuses(2, &["submit", "job.toml"], &["evaluate.judge.url"]);
    place.write("job.toml", job("http://127.0.0.1:9/v1", "direct_answers = \"nowhere.jsonl\"\n"));
    place.refuses(3, &["submit", "job.toml"], &["evaluate.judge.direct_answers", "nowhere.jsonl"]);
}
