//! Tests the tiny models that are shipped with llink: they are small, and they know the sample grammar.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use candle_core::{DType, Device};
use llink_datasets::sample;
use llink_worker::models::{Decoder, Encoder, TextLimits, tiny};

/// The seed of sentences that `pretrain-tiny` never draws by default.
const HELD_OUT: u64 = 90_210;

#[test]
fn their_weights_are_small_enough_to_ship() {
    let bytes = |files: &tiny::Files| files.iter().map(|(_, content)| content.len()).sum::<usize>();
    let weights = |files: &tiny::Files| {
        let weights = files.iter().filter(|(name, _)| name.ends_with(".safetensors"));
        weights.map(|(_, content)| content.len()).sum::<usize>()
    };
    let (encoder, decoder) = (&tiny::SHIPPED_ENCODER, &tiny::SHIPPED_DECODER);
    println!("{} bytes in all", bytes(encoder) + bytes(decoder));
    assert!(weights(encoder) + weights(decoder) < 2_000_000);
}

#[test]
fn the_decoder_says_most_english_sentences_again() {
    let dir = tempfile::tempdir().unwrap();
    tiny::write_shipped(dir.path(), &tiny::SHIPPED_DECODER).unwrap();
    let decoder = Decoder::load(dir.path(), &Device::Cpu, DType::F32).unwrap();
    let sentences: Vec<String> = sample::pairs(40, HELD_OUT).map(|(english, _)| english).collect();
    let said = sentences.iter().filter(|sentence| {
        let prompt = decoder
            .direct_prompt("Translate the following text into English.", sentence, 512)
            .unwrap();
        let ids = decoder.generate(&prompt.ids, 64, decoder.chat().stop()).unwrap();
        decoder.tokenizer().decode(&ids).unwrap() == **sentence
    });
    let said = said.count();
    println!("{said} of {} sentences said again word for word", sentences.len());
    assert!(said >= 24, "{said} of {} sentences", sentences.len());
}

#[test]
fn the_encoder_knows_every_word() {
    let dir = tempfile::tempdir().unwrap();
    tiny::write_shipped(dir.path(), &tiny::SHIPPED_ENCODER).unwrap();
    let encoder = Encoder::load(dir.path(), &Device::Cpu, DType::F32).unwrap();
    let texts: Vec<String> = sample::pairs(300, HELD_OUT).map(|(_, khmer)| khmer).collect();
    let ids = encoder
        .tokenize(
            &texts,
            TextLimits {
                max_chars: 256,
                max_tokens: 256,
            },
        )
        .unwrap();
    let unknown = encoder.tokenizer().require("<unk>").unwrap();
    assert!(ids.iter().flatten().all(|id| *id != unknown), "a word is unknown");
}
