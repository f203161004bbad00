//! Tests that the shipped models are small and know the sample grammar, and that random models load and follow from their seed and texts.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use llink_datasets::built_in::{BuiltIn, ModelFiles};
use llink_quickstart::{Quickstart, models, sample};
use llink_worker::models::{Decoder, Encoder, SpecialTokens, TextLimits, fingerprint};

/// The seed of sentences that `examples/pretrain` never draws by default.
const HELD_OUT: u64 = 90_210;

fn loaded_encoder(files: &ModelFiles) -> Encoder {
    let dir = tempfile::tempdir().unwrap();
    models::write(dir.path(), files).unwrap();
    Encoder::load(dir.path(), &Device::Cpu, DType::F32).unwrap()
}

fn loaded_decoder(files: &ModelFiles) -> Decoder {
    let dir = tempfile::tempdir().unwrap();
    models::write(dir.path(), files).unwrap();
    Decoder::load(dir.path(), &Device::Cpu, DType::F32).unwrap()
}

#[test]
fn their_weights_are_small_enough_to_ship() {
    let files = [models::tiny_encoder(), models::tiny_decoder()].concat();
    let weights = files.iter().filter(|(name, _)| name.ends_with(".safetensors"));
    println!("{} bytes in all", files.iter().map(|(_, content)| content.len()).sum::<usize>());
    assert!(weights.map(|(_, content)| content.len()).sum::<usize>() < 2_000_000);
}

#[test]
fn the_decoder_says_most_english_sentences_again() {
    let decoder = loaded_decoder(&models::tiny_decoder());
    let sentences: Vec<String> = sample::pairs(40, HELD_OUT).map(|(english, _)| english).collect();
    let said = sentences.iter().filter(|sentence| {
        let prompt = decoder.direct_prompt("Translate the following text into English.", sentence, 512).unwrap();
        let ids = decoder.generate(&prompt.ids, 64, decoder.chat().stop()).unwrap();
        decoder.tokenizer().decode(&ids).unwrap() == **sentence
    });
    let said = said.count();
    println!("{said} of {} sentences said again word for word", sentences.len());
    assert!(said >= 24, "{said} of {} sentences", sentences.len());
}

#[test]
fn the_encoder_knows_every_word() {
    let encoder = loaded_encoder(&models::tiny_encoder());
    let texts: Vec<String> = sample::pairs(300, HELD_OUT).map(|(_, khmer)| khmer).collect();
    let limits = TextLimits { max_chars: 256, max_tokens: 256 };
    let ids = encoder.tokenize(&texts, limits).unwrap();
    let unknown = encoder.tokenizer().require("<unk>").unwrap();
    assert!(ids.iter().flatten().all(|id| *id != unknown), "a word is unknown");
}

fn sentences() -> Vec<String> {
    sample::pairs(200, 1).flat_map(|(english, khmer)| [english, khmer]).collect()
}

/// Run by [`random_models_are_the_same_bytes_in_every_process`] in a process of its own.
#[test]
#[ignore = "writes what another test compares"]
fn write_random_models() {
    let Some(dir) = std::env::var_os("LLINK_RANDOM_OUT").map(PathBuf::from) else {
        return;
    };
    let encoder = Quickstart.encoder("random", sentences(), 7).unwrap();
    models::write(&dir.join("encoder"), &encoder).unwrap();
    let decoder = Quickstart.decoder("random", sentences(), 7).unwrap();
    models::write(&dir.join("decoder"), &decoder).unwrap();
}

#[test]
fn random_models_are_the_same_bytes_in_every_process() {
    let written = |threads: &str| {
        let dir = tempfile::tempdir().unwrap();
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["write_random_models", "--exact", "--ignored"])
            .env("LLINK_RANDOM_OUT", dir.path())
            .env("RAYON_NUM_THREADS", threads)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let read = |model: &str| fingerprint(&Path::join(dir.path(), model)).unwrap();
        (read("encoder"), read("decoder"))
    };
    let first = written("1");
    for threads in ["3", "2", "2"] {
        assert_eq!(written(threads), first, "{threads} threads");
    }
}

#[test]
fn random_models_follow_their_seed_and_load() {
    let encoder = Quickstart.encoder("random", sentences(), 1).unwrap();
    assert_ne!(encoder, Quickstart.encoder("random", sentences(), 2).unwrap());
    let texts = sentences();
    let vectors = loaded_encoder(&encoder).embed(&texts[..8], TextLimits::default(), 256, &mut |_| {}).unwrap();
    assert!(vectors.iter().flatten().all(|x| x.is_finite()));
    let decoder = loaded_decoder(&Quickstart.decoder("random", sentences(), 1).unwrap());
    let vectors = decoder.teacher(&texts[..8], 256, &mut |_| {}).unwrap();
    assert_eq!((vectors.len(), vectors[0].len()), (8, decoder.hidden_size()));
    let text = "The king counts 7 cheap chairs.";
    let ids = decoder.tokenizer().encode(text, SpecialTokens::Add).unwrap();
    assert_eq!(decoder.tokenizer().decode(&ids).unwrap(), text);
    let refused = Quickstart.encoder("random", Vec::new(), 1).unwrap_err().to_string();
    assert!(refused.contains("no word"), "{refused}");
}
