//! The models in training compute what the frozen ones do.

use std::path::PathBuf;

use super::share::SHARE_TOKENS;
use super::*;

fn fixture(model: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/golden/seed8").join(model)
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    let gap: f32 = found.iter().zip(expected).map(|(a, b)| (a - b).powi(2)).sum();
    let norm: f32 = expected.iter().map(|b| b.powi(2)).sum();
    assert!((gap / norm).sqrt() < 1e-5, "relative error {}", (gap / norm).sqrt());
}

#[test]
fn the_encoder_in_training_computes_what_the_frozen_one_does() {
    let frozen = Encoder::load(&fixture("encoder"), &Device::Cpu, DType::F32).unwrap();
    let graph = TrainableEncoder::read(&fixture("encoder")).unwrap();
    let ids = vec![vec![0, 17, 200, 31, 2], vec![0, 5, 2], (0..40).map(|i| 3 + i * 7).collect()];
    let expected = frozen.embed_ids(&ids, 4096, &mut |_| ()).unwrap();
    let found = graph.vectors(&Padded::new(&ids, 1).unwrap()).unwrap();
    assert_close(&found.flatten_all().unwrap().to_vec1().unwrap(), &expected.concat());
}

#[test]
fn the_decoder_in_training_computes_what_the_frozen_one_does() {
    let frozen = Decoder::load(&fixture("decoder"), &Device::Cpu, DType::F32).unwrap();
    let graph = TrainableDecoder::read(&fixture("decoder")).unwrap();
    let ids = [vec![7, 9, 300, 12], (0..30).map(|i| 11 + i * 5).collect(), vec![40]];
    let documents: Vec<Document> = ids.iter().map(|ids| Document::plain(ids.clone(), 0)).collect();
    let share = Share::new(&documents.iter().collect::<Vec<_>>(), 0).unwrap();
    let rows = share.batch.rows_from(&[0, 0, 0]);
    let found = graph.logits(&graph.states(&share).unwrap(), &rows).unwrap();
    let expected: Vec<f32> = ids
        .iter()
        .flat_map(|ids| frozen.logits(ids).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap())
        .collect();
    assert_close(&found.flatten_all().unwrap().to_vec1().unwrap(), &expected);
}

#[test]
fn parts_of_a_batch_hold_each_text_once() {
    let ids = (1..60).map(|length: u32| vec![length; 20 * length as usize % 97 + 1]);
    let documents: Vec<Document> = ids.map(|ids| Document::plain(ids, 0)).collect();
    let shares = shares(&documents, 0).unwrap();
    let tokens: usize = shares.iter().map(|(_, tokens)| tokens).sum();
    assert_eq!(tokens, documents.iter().map(|document| document.ids.len()).sum::<usize>());
    assert!(shares.len() > 1);
    for (Share { batch, .. }, _) in &shares {
        assert!(batch.lengths.len() == 1 || batch.shape.0 * batch.shape.1 <= SHARE_TOKENS);
    }
}

#[test]
fn a_packed_place_holds_the_mean_of_its_tokens_at_the_usual_length() {
    let words = Tensor::new(&[[2f32, 0.0], [0.0, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
    let packed = Document { packed: vec![(1, vec![0, 1])], ..Document::plain(vec![2, 0, 2], 0) };
    let plain = Document::plain(vec![1], 0);
    let share = Share::new(&[&plain, &packed], 0).unwrap();
    let embedded = words.index_select(&share.batch.ids, 0).unwrap();
    let placed = share.packed.placed(embedded.clone(), &words).unwrap();
    let (before, after) = (embedded.to_vec2::<f32>().unwrap(), placed.to_vec2::<f32>().unwrap());
    // The rows' norms are 2, 2, 5: the median is 2.
    let half = std::f32::consts::SQRT_2;
    for (row, (before, after)) in before.iter().zip(&after).enumerate() {
        let expected = if row == 4 { &vec![half, half] } else { before };
        assert!(after.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "row {row}: {after:?}");
    }
}

#[test]
fn a_few_steps_teach_something_and_leave_models_that_load() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        dir: dir.path().into(),
        seed: 5,
        sentences: 200,
        batch: 8,
        encoder_steps: 40,
        decoder_steps: 40,
        threads: 2,
    };
    let mut looks = Vec::new();
    pretrain(&options, &mut |model, step, look| {
        looks.push((model.to_owned(), step, look));
    })
    .unwrap();
    // A model that knows nothing has the loss of its vocabulary: ln 900 = 6.8.
    let last = |name: &str| looks.iter().rfind(|(model, ..)| model == name).unwrap();
    assert!(last("encoder").2.loss < 6.0 && last("decoder, from tokens").2.loss < 5.0, "{looks:?}");
    assert_eq!((last("encoder").1, last("decoder, from tokens").1), (40, 40));
    let encoder = Encoder::load(&dir.path().join("encoder"), &Device::Cpu, DType::F32).unwrap();
    assert_eq!(encoder.width(), Shape::PRETRAINED_ENCODER.hidden_size);
    let decoder = Decoder::load(&dir.path().join("decoder"), &Device::Cpu, DType::F32).unwrap();
    assert!(decoder.config().dtype == Some(DType::BF16));
}

#[test]
fn what_is_drawn_follows_from_seed_and_step() {
    let draw = |seed, step| drawn(seed, step, 16).collect::<Vec<_>>();
    assert_eq!(draw(1, 4), draw(1, 4));
    assert_ne!(draw(1, 4), draw(1, 5));
    assert_ne!(draw(1, 4), draw(2, 4));
}
