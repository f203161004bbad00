//! Compares chrF, chrF++ and BLEU with sacrebleu, bit by bit.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::super::chrf::{Words, chrf};
use super::{Tokens, bleu};
use crate::numerics::random::uniform;
use crate::skip;

/// Pairs with the scores that sacrebleu 2.6.0 gives them; `make.py` beside it made them.
const CASES: &str = include_str!("../../tests/fixtures/sacrebleu/cases.json");
const MAKE: &str = include_str!("../../tests/fixtures/sacrebleu/make.py");

#[derive(Serialize, Deserialize)]
struct Case {
    name: String,
    pairs: Vec<(String, String)>,
    /// The scores as texts, because a parser of JSON may lose the last bit of a number.
    #[serde(flatten)]
    scores: BTreeMap<String, String>,
}

fn compare(cases: &[Case]) {
    for Case { name, pairs, scores } in cases {
        let pairs = || pairs.iter().map(|(answer, reference)| (answer.as_str(), reference.as_str()));
        for (measure, ours) in [
            ("chrf", chrf(pairs(), Words::None)),
            ("chrf_pp", chrf(pairs(), Words::Two)),
            ("bleu", bleu(pairs(), Tokens::V13a)),
            ("bleu_zh", bleu(pairs(), Tokens::Chinese)),
        ] {
            assert_eq!(Ok(ours), scores[measure].parse(), "{measure} of {name}");
        }
    }
}

#[test]
fn scores_are_those_of_sacrebleu() {
    let cases: Vec<Case> = serde_json::from_str(CASES).unwrap();
    assert!(cases.len() >= 16);
    compare(&cases);
}

/// This test runs where a Python has sacrebleu: `LLINK_PYTHON`, else `python3`.
#[test]
fn scores_of_random_texts_are_those_of_sacrebleu() {
    let Some(python) = skip::python_with(&["sacrebleu"]) else {
        return;
    };
    let pieces = "a|fish|the| | | |  |,|.|1|25|-|(|'s|&amp;|“|…|鱼|河|，|ត្រី|ទន្លេ|\u{3000}|𠀀".split('|');
    let pieces: Vec<&str> = pieces.collect();
    let piece = |of: u64, at: u64| pieces[(uniform(of, at) * pieces.len() as f32) as usize % pieces.len()];
    let text = |of: u64| (0..1 + of % 23).map(|at| piece(of, at)).collect::<String>();
    let case = |of: u64| Case {
        name: of.to_string(),
        pairs: (0..1 + of % 7).map(|at| (text(100 * of + at), text(100 * of + at + 1))).collect(),
        scores: BTreeMap::new(),
    };
    let cases: Vec<Case> = (0..300).map(case).collect();
    let mut child =
        Command::new(python).args(["-c", MAKE]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&serde_json::to_vec(&cases).unwrap()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    compare(&serde_json::from_slice::<Vec<Case>>(&output.stdout).unwrap());
}
