//! Instructions whose texts are all on the training side: the error's text, and a run that follows its advice.

use crate::common::{Place, figure, says_all};
use llink_datasets::shards::Share;
use llink_datasets::text::comparison_key;

const JOB: &str = "
name = \"one-sided\"
output = \"out\"

[corpus]
source = \"pairs.tsv\"
train_pairs = 300
holdout_pairs = 100

[cleaning]
near_duplicates = \"keep\"

[instructions]
source = \"instructions.jsonl\"
train = 180
validation = 20

[models]
encoder = \"random\"
decoder = \"random\"

[align]
steps = 4
batch = 16
warmup_steps = 1

[instruct]
steps = 2
batch = 8

[evaluate]
benchmark_pairs = 50
answers = 4
max_answer_tokens = 4
";

/// Writes 420 pairs, and two instructions about each training pair.
fn write_corpus(place: &Place) {
    let share = Share { train_rows: Some(300), holdout_rows: 100 };
    let (mut pairs, mut instructions) = (String::new(), String::new());
    for n in 0..420 {
        let (english, foreign) = (format!("Sentence number {n} is here."), format!("ប្រយោគទី {n} នៅទីនេះ"));
        pairs.push_str(&format!("{english}\t{foreign}\n"));
        if share.holds_out(comparison_key(&foreign)) {
            continue;
        }
        for task in ["translate", "summarize"] {
            instructions.push_str(&format!(
                "{{\"task_type\":\"{task}\",\"input\":\"Do {task}: <foreign_emb>\",\"output\":\"{english}\",\"foreign_raw\":\"{foreign}\",\"english_ref\":\"{english}\"}}\n"
            ));
        }
    }
    place.write("pairs.tsv", pairs);
    place.write("instructions.jsonl", instructions);
}

#[test]
fn the_advice_for_instructions_from_training_pairs_alone_leads_to_a_report_that_states_the_leak() {
    let place = Place::new(JOB);
    write_corpus(&place);
    let advice = "`instructions.validation_from = \"train\"`";
    let words = ["no row is left for instructions/validation", "fall on the training side", advice];
    place.refuses(3, &["submit", "job.toml"], &words);

    place.write("job.toml", JOB.replace("validation = 20", "validation = 20\nvalidation_from = \"train\""));
    let said = place.ok(&["submit", "job.toml"]);
    assert!(said.contains("Stage A may have been trained on it"), "{said}");
    assert!(figure(&place, "answers.trained_as_pairs") > 0.0);
    for path in [place.path("out/report.html"), place.artifact("export", "README.md")] {
        says_all(&std::fs::read_to_string(path).unwrap(), &["that Stage A may have been trained on"]);
    }
}
