//! Examples of Stage B laid end to end: prompts with slots, and answers whose tokens are learned.

use crate::llink::next_token_loss::AnswerTokens;
use crate::numerics::random::key;

/// One example in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstructExample {
    /// The instruction's id.
    pub id: u64,
    /// The prompt, with the slots.
    pub prompt: Vec<u32>,
    /// The positions of the slots in the prompt: K for the text, or for each of its sentences.
    pub slots: Vec<usize>,
    /// The answer, with the token that ends the turn.
    pub answer: Vec<u32>,
}

impl InstructExample {
    /// Returns the number of tokens of prompt and answer.
    pub fn tokens(&self) -> usize {
        self.prompt.len() + self.answer.len()
    }
}

/// Examples laid end to end without padding, T tokens in total.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InstructBatch {
    /// The token ids, `[T]`.
    pub ids: Vec<u32>,
    /// The start of each example, then T.
    pub offsets: Vec<usize>,
    /// The rows of the slots of all examples.
    pub slot_rows: Vec<usize>,
    /// A key for each row, made from its example and its place there.
    pub row_keys: Vec<u64>,
    /// The rows that predict answer tokens, and those tokens.
    pub answer: AnswerTokens,
}

impl InstructBatch {
    /// Lays examples end to end.
    pub fn new<'a>(examples: impl IntoIterator<Item = &'a InstructExample>) -> Self {
        let mut batch = Self { offsets: vec![0], ..Self::default() };
        for example in examples {
            let start = batch.ids.len();
            batch.ids.extend(example.prompt.iter().chain(&example.answer));
            batch.offsets.push(batch.ids.len());
            batch.slot_rows.extend(example.slots.iter().map(|slot| start + slot));
            batch.row_keys.extend((0..example.tokens() as u64).map(|place| key(&[example.id, place])));
            // The last token of the prompt predicts the first answer token.
            let first = start + example.prompt.len() - 1;
            batch.answer.positions.extend(first..first + example.answer.len());
            batch.answer.targets.extend(&example.answer);
        }
        batch
    }
}

/// Splits examples of these lengths into consecutive runs of at most `token_budget` tokens, but at least one example.
pub fn micro_batches(lengths: &[usize], token_budget: usize) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    let mut tokens = 0;
    for (index, length) in lengths.iter().enumerate() {
        match runs.last_mut() {
            Some(run) if tokens + length <= token_budget => {
                run.end = index + 1;
                tokens += length;
            }
            _ => {
                runs.push(index..index + 1);
                tokens = *length;
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_predicted_from_the_row_before() {
        let example = |id, prompt: &[u32], slots: &[usize], answer: &[u32]| InstructExample {
            id,
            prompt: prompt.to_vec(),
            slots: slots.to_vec(),
            answer: answer.to_vec(),
        };
        let batch = InstructBatch::new(&[
            example(7, &[1, 90, 91, 2], &[1, 2], &[5, 6]),
            example(8, &[90, 91, 3], &[0, 1], &[9]),
        ]);
        assert_eq!(batch.ids, [1, 90, 91, 2, 5, 6, 90, 91, 3, 9]);
        assert_eq!(batch.offsets, [0, 6, 10]);
        assert_eq!(batch.slot_rows, [1, 2, 6, 7]);
        assert_eq!(batch.answer, AnswerTokens { positions: vec![3, 4, 8], targets: vec![5, 6, 9] });
        assert_eq!(batch.row_keys[6], key(&[8, 0]));
    }

    #[test]
    fn micro_batches_hold_every_example_once_within_the_budget() {
        let lengths = [5, 9, 3, 3, 20, 1, 1, 8];
        for budget in [1, 8, 12, 100] {
            let runs = micro_batches(&lengths, budget);
            let seen: Vec<usize> = runs.iter().cloned().flatten().collect();
            assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for run in runs {
                assert!(run.len() == 1 || lengths[run].iter().sum::<usize>() <= budget);
            }
        }
        assert!(micro_batches(&[], 10).is_empty());
    }
}
