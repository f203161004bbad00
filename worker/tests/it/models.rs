//! Tests the properties of the models that hold for every batch, and their refusals.

use std::path::Path;

use crate::common::{assert_refused, cut, edit_json, edit_weights, golden, on_cpu, relative};
use candle_core::{DType, Device, Tensor};
use llink_worker::models::config::LlamaConfig;
use llink_worker::models::{
    Backend, ChatPrompt, Continuations, Decoder, Encoder, GenerateOptions, LoadedAdapter, NO_TOKEN, Sampling, Step,
    TextLimits, common_head,
};
use serde_json::{Value, json};

/// Returns a copy of one of the golden models, for changes.
fn copy_of(model: &str) -> tempfile::TempDir {
    crate::common::copy_of(&golden().join(model))
}

/// Returns a copy of one of the golden models with another configuration.
fn configured(model: &str, change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let dir = copy_of(model);
    edit_json(dir.path().join("config.json"), change);
    dir
}

fn load_decoder(dir: &Path) -> llink_worker::Result<Decoder> {
    Decoder::load(dir, &Device::Cpu, DType::F32)
}

fn load_encoder(dir: &Path) -> llink_worker::Result<Encoder> {
    Encoder::load(dir, &Device::Cpu, DType::F32)
}

/// Pseudo-random numbers for the property tests, which print the seed.
struct Draw(u64);

impl Draw {
    fn new() -> Self {
        let seed = std::env::var("LLINK_TEST_SEED").ok().map_or_else(
            || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64,
            |seed| seed.parse().unwrap(),
        );
        println!("LLINK_TEST_SEED={seed}");
        Self(seed | 1)
    }

    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }

    fn sequences(&mut self, n: usize, longest: usize, vocab: usize) -> Vec<Vec<u32>> {
        (0..n).map(|_| (0..1 + self.below(longest)).map(|_| 2 + self.below(vocab - 2) as u32).collect()).collect()
    }

    fn shuffle(&mut self, order: &mut [usize]) {
        for i in (1..order.len()).rev() {
            order.swap(i, self.below(i + 1));
        }
    }
}

#[track_caller]
fn assert_same(what: &str, a: &[f32], b: &[f32], tolerance: f64) {
    let gap = relative(a, b);
    assert!(gap <= tolerance, "{what}: differs by {gap:.2e}");
}

/// Checks that vectors are the same up to rounding when computed one by one, and in batches of every size and order.
fn batches_change_nothing(vocab: usize, embed: impl Fn(&[Vec<u32>], usize) -> Vec<Vec<f32>>, tolerance: f64) {
    let mut draw = Draw::new();
    let mut sequences = draw.sequences(40, 90, vocab);
    sequences.extend([1, 2, 3].map(|n| (0..n).map(|i| 2 + i).collect())); // few rows have a form of their own
    let alone: Vec<Vec<f32>> = sequences.iter().map(|ids| embed(std::slice::from_ref(ids), 4096).remove(0)).collect();
    for budget in [1, 64, 300, 1000, 4096] {
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        draw.shuffle(&mut order);
        let shuffled: Vec<Vec<u32>> = order.iter().map(|&index| sequences[index].clone()).collect();
        for (&index, vector) in order.iter().zip(embed(&shuffled, budget)) {
            assert_same(&format!("budget {budget}, sequence {index}"), &vector, &alone[index], tolerance);
        }
    }
}

/// The tolerances. In bf16 the product of a single row sums in another order, which may round an activation
/// differently, by up to 2⁻⁸.
const BATCH_TOLERANCES: [(DType, f64); 2] = [(DType::F32, 1e-5), (DType::BF16, 1.0 / 256.0)];

#[test]
fn a_batch_never_changes_an_encoder_vector() {
    for (dtype, tolerance) in BATCH_TOLERANCES {
        let encoder = Encoder::load(&golden().join("encoder"), &Device::Cpu, dtype).unwrap();
        let embed = |ids: &[Vec<u32>], budget| encoder.embed_ids(ids, budget, &mut |_| {}).unwrap();
        batches_change_nothing(encoder.config().vocab_size, embed, tolerance);
    }
}

#[test]
fn a_batch_never_changes_a_teacher_vector() {
    for (dtype, tolerance) in BATCH_TOLERANCES {
        let decoder = Decoder::load(&golden().join("decoder"), &Device::Cpu, dtype).unwrap();
        let embed = |ids: &[Vec<u32>], budget| decoder.last_hidden(ids, budget, &mut |_| {}).unwrap();
        batches_change_nothing(decoder.config().vocab_size, embed, tolerance);
    }
}

/// Returns the tokens of prompts that are continued together. Each joins after a number of passes.
fn continued(
    decoder: &Decoder,
    prompts: &[ChatPrompt],
    at_once: usize,
    joins: impl Fn(usize) -> usize,
) -> Vec<Vec<u32>> {
    let (model, adapter) = (decoder.model(), LoadedAdapter::default());
    let mut continuations = Continuations::new(at_once).begin_with(common_head(prompts), model, &adapter).unwrap();
    let mut generated = vec![Vec::new(); prompts.len()];
    let (mut passes, mut joined) = (0, 0);
    while joined < prompts.len() || !continuations.is_empty() {
        while joined < prompts.len() && joins(joined) <= passes {
            let (prompt, slots) = (&prompts[joined], slots_of(decoder, &prompts[joined]));
            assert_eq!(continuations.add(model, prompt, slots, options(joined)).unwrap(), joined);
            joined += 1;
        }
        for (id, step) in continuations.step(model, &adapter).unwrap() {
            if let Step::Token(token) = step {
                generated[id].push(token);
            }
        }
        passes += 1;
    }
    generated
}

fn options(number: usize) -> GenerateOptions {
    let sampled = Sampling::Nucleus { temperature: 0.9, top_p: 0.9, seed: number as u64 };
    GenerateOptions {
        max_tokens: 3 * (number % 7),
        stop: vec![7, 11, 30],
        sampling: if number % 4 == 3 { sampled } else { Sampling::Greedy },
    }
}

/// Returns slots that are rows of the embedding, or none for a prompt without places.
fn slots_of(decoder: &Decoder, prompt: &ChatPrompt) -> Option<Vec<f32>> {
    let ids: Vec<u32> = prompt.slots.iter().map(|place| 3 + *place as u32).collect();
    let rows = decoder.embed(&ids).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    (!ids.is_empty()).then_some(rows)
}

#[test]
fn prompts_that_are_continued_together_get_the_answers_that_each_gets_alone() {
    let mut draw = Draw::new();
    for backend in [on_cpu(), Backend::of_tensors(&Device::Cpu, DType::F32)] {
        let decoder = Decoder::load_on(&golden().join("decoder"), &backend).unwrap();
        let vocab = decoder.config().vocab_size;
        let head = [1, 5, 9, 2];
        let prompts: Vec<ChatPrompt> = (0..23)
            .map(|number| {
                let own = (0..1 + draw.below(40)).map(|_| draw.below(vocab) as u32);
                let ids: Vec<u32> = head.into_iter().chain(own).collect();
                let slots = match number % 3 {
                    0 if ids.len() > 8 => vec![5, 6, 7],
                    _ => Vec::new(),
                };
                ChatPrompt { ids, slots }
            })
            .collect();
        assert_eq!(common_head(&prompts)[..4], head);
        let alone: Vec<Vec<u32>> = prompts
            .iter()
            .enumerate()
            .map(|(number, prompt)| {
                let slots = slots_of(&decoder, prompt);
                let adapter = LoadedAdapter::default();
                let model = decoder.model();
                model.generate(prompt, slots.as_deref(), &adapter, &options(number)).unwrap()
            })
            .collect();
        assert!(alone.iter().any(|ids| ids.len() > 9) && alone.iter().any(Vec::is_empty), "{alone:?}");
        assert_eq!(continued(&decoder, &prompts, 16, |_| 0), alone, "all at once");
        assert_eq!(continued(&decoder, &prompts, 3, |_| 0), alone, "three at once");
        assert_eq!(continued(&decoder, &prompts, 64, |number| 2 * number), alone, "one joins after the other");
        assert_eq!(continued(&decoder, &prompts[..1], 4, |_| 0), alone[..1], "one alone");
    }
}

#[test]
fn a_continuation_that_is_dropped_changes_no_other() {
    let decoder = load_decoder(&golden().join("decoder")).unwrap();
    let (model, adapter) = (decoder.model(), LoadedAdapter::default());
    let prompt = |ids: &[u32]| ChatPrompt { ids: ids.to_vec(), slots: Vec::new() };
    let options = GenerateOptions { max_tokens: 12, stop: Vec::new(), sampling: Sampling::Greedy };
    let mut continuations = Continuations::new(2);
    let mut add = |ids: &[u32]| continuations.add(model, &prompt(ids), None, options.clone()).unwrap();
    let (kept, dropped, never_run) = (add(&[1, 5, 9]), add(&[1, 8]), add(&[1, 6]));
    let mut generated = vec![Vec::new(); 3];
    for pass in 0.. {
        if continuations.is_empty() {
            break;
        }
        if pass == 4 {
            continuations.drop_one(dropped);
            continuations.drop_one(never_run);
        }
        for (id, step) in continuations.step(model, &adapter).unwrap() {
            if let Step::Token(token) = step {
                generated[id].push(token);
            }
        }
    }
    assert_eq!(generated[kept], decoder.generate(&[1, 5, 9], 12, &[]).unwrap());
    assert_eq!((generated[dropped].len(), generated[never_run].len()), (4, 0));
}

#[test]
fn padding_on_either_side_changes_nothing() {
    let encoder = load_encoder(&golden().join("encoder")).unwrap();
    let ids = vec![0u32, 17, 40, 9, 2];
    let padded = |left: usize, right: usize| [vec![1; left], ids.clone(), vec![1; right]].concat();
    let vectors = encoder
        .embed_ids(&[ids.clone(), padded(3, 0), padded(0, 7), padded(2, 5), vec![1, 1]], 64, &mut |_| {})
        .unwrap();
    for vector in &vectors[1..4] {
        assert_same("padded", vector, &vectors[0], 1e-5);
    }
    assert!(vectors[4].iter().all(|x| *x == 0.0), "nothing attended gives zeros, as in the reference");
}

#[test]
fn texts_are_cut_by_characters_and_then_by_tokens() {
    let encoder = load_encoder(&golden().join("encoder")).unwrap();
    let text = "ថ្ងៃនេះ អ្នកនេសាទ".repeat(40);
    let limits = TextLimits { max_chars: 10, max_tokens: 256 };
    let short: String = text.chars().take(10).collect();
    let ids = encoder.tokenize(&[&text, &short], limits).unwrap();
    assert_eq!(ids[0], ids[1]);
    let whole = encoder.tokenize(&[&text], TextLimits::default()).unwrap().remove(0);
    let cut = encoder.tokenize(&[&text], TextLimits { max_chars: 256, max_tokens: 7 }).unwrap().remove(0);
    assert_eq!(cut, whole[..7], "a plain cut: the closing token goes too");
}

#[test]
fn too_long_and_foreign_ids_are_refused() {
    let encoder = load_encoder(&golden().join("encoder")).unwrap();
    let embed = |ids: Vec<u32>| encoder.embed_ids(&[vec![0, 2], ids], 64, &mut |_| {});
    assert_refused(embed(vec![5; 513]), &["sequence 1", "513", "512"]);
    assert!(embed(vec![5; 512]).is_ok());
    assert_refused(embed(vec![419]), &["sequence 1", "419"]);
    let decoder = load_decoder(&golden().join("decoder")).unwrap();
    assert_refused(decoder.last_hidden(&[vec![]], 64, &mut |_| {}), &["without tokens"]);
}

#[test]
fn unsupported_configs_are_refused_by_name() {
    let decoder_cases: [(&str, Value, &[&str]); 7] = [
        ("architectures", json!(["GemmaForCausalLM"]), &["GemmaForCausalLM", "LlamaForCausalLM"]),
        ("hidden_act", json!("gelu"), &["hidden_act", "gelu", "silu"]),
        ("dtype", json!("float8_e4m3fn"), &["float8_e4m3fn"]),
        ("quantization_config", json!({"quant_method": "gptq"}), &["gptq"]),
        ("rope_parameters", json!({"rope_type": "yarn", "rope_theta": 1e4}), &["yarn", "llama3"]),
        ("rope_parameters", json!({"rope_type": "llama3", "factor": 8.0}), &["low_freq_factor"]),
        ("num_key_value_heads", json!(4), &["num_key_value_heads", "4"]),
    ];
    for (key, value, words) in decoder_cases {
        let dir = configured("decoder", |config| config[key] = value);
        assert_refused(load_decoder(dir.path()), &[words, &["config.json"]].concat());
    }
    let encoder_cases: [(&str, Value, &[&str]); 3] = [
        ("architectures", json!(["T5EncoderModel"]), &["T5EncoderModel", "XLMRobertaModel", "BertModel"]),
        ("hidden_act", json!("relu"), &["hidden_act", "relu"]),
        ("position_embedding_type", json!("relative_key"), &["relative_key"]),
    ];
    for (key, value, words) in encoder_cases {
        let dir = configured("encoder", |config| config[key] = value);
        assert_refused(load_encoder(dir.path()), &[words, &["config.json"]].concat());
    }
}

#[test]
fn missing_misshapen_and_damaged_weights_are_refused_by_name() {
    let cases: [(&str, Value, &[&str]); 3] = [
        ("num_hidden_layers", json!(4), &["layers.3.input_layernorm.weight", "missing", "[96]"]),
        ("intermediate_size", json!(260), &["layers.0.mlp.gate_proj.weight", "[256, 96]", "[260, 96]"]),
        ("tie_word_embeddings", json!(false), &["lm_head.weight"]),
    ];
    for (key, value, words) in cases {
        assert_refused(load_decoder(configured("decoder", |config| config[key] = value).path()), words);
    }
    let dir = copy_of("decoder_sharded");
    cut(&dir.path().join("model-00003-of-00003.safetensors"), 0.5);
    assert_refused(load_decoder(dir.path()), &["model-00003-of-00003.safetensors"]);
    let dir = copy_of("decoder_sharded");
    std::fs::remove_file(dir.path().join("model-00002-of-00003.safetensors")).unwrap();
    assert_refused(load_decoder(dir.path()), &["model-00002-of-00003.safetensors", "index.json"]);
    let dir = copy_of("encoder");
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    assert_refused(load_encoder(dir.path()), &["model.safetensors"]);
    assert_refused(load_encoder(Path::new("/no/such/model")), &["/no/such/model"]);
}

#[test]
fn rotary_frequencies_are_read_from_either_layout() {
    let load = |change: &dyn Fn(&mut Value)| {
        let dir = configured("decoder", |config| {
            for key in ["rope_parameters", "rope_scaling", "rope_theta"] {
                config.as_object_mut().unwrap().remove(key);
            }
            config["head_dim"] = json!(64);
            change(config);
        });
        LlamaConfig::load(dir.path()).unwrap()
    };
    let plain = |theta: f64| (0..32).map(move |i| theta.powf(-f64::from(2 * i) / 64.0));
    let close = |found: Vec<f32>, expected: Vec<f64>| {
        assert_eq!(found.len(), expected.len());
        for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
            assert!((f64::from(*a) / b - 1.0).abs() < 1e-5, "{i}: {a}, not {b}");
        }
    };
    close(load(&|_| {}).rope_frequencies(), plain(1e4).collect());
    let theta = load(&|config| config["rope_theta"] = json!(5e5));
    close(theta.rope_frequencies(), plain(5e5).collect());
    let scaling = json!({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    let old = load(&|config| {
        config["rope_theta"] = json!(5e5);
        config["rope_scaling"] = scaling.clone();
    });
    let new = load(&|config| {
        config["rope_parameters"] = scaling.clone();
        config["rope_parameters"]["rope_theta"] = json!(5e5);
    });
    assert_eq!(old, new);
    // In Llama 3.2, wavelengths up to 2048 are kept, those from 8192 on are stretched 32 times, and those between are
    // interpolated.
    let expected = plain(5e5).map(|f| {
        let wavelength = 2.0 * std::f64::consts::PI / f;
        let smooth = ((8192.0 / wavelength - 1.0) / 3.0).clamp(0.0, 1.0);
        f * (smooth + (1.0 - smooth) / 32.0)
    });
    close(new.rope_frequencies(), expected.collect());
}

#[test]
fn a_tensor_in_a_foreign_format_is_refused_by_name() {
    let dir = copy_of("decoder");
    edit_weights(dir.path(), |weights| {
        let tensor = weights.get_mut("model.layers.1.mlp.up_proj.weight").unwrap();
        *tensor = tensor.to_dtype(DType::F64).unwrap();
    });
    assert_refused(load_decoder(dir.path()), &["layers.1.mlp.up_proj.weight", "F64", "BF16"]);
}

#[test]
fn halves_in_the_file_give_the_vectors_of_their_values() {
    let ids = [vec![461u32, 300, 12, 7, 90], vec![5, 6, 7]];
    for dtype in [DType::F16, DType::BF16] {
        let [halves, whole] = [dtype, DType::F32].map(|stored| {
            let dir = copy_of("decoder");
            edit_weights(dir.path(), |weights| {
                weights.values_mut().for_each(|x| *x = x.to_dtype(dtype).unwrap().to_dtype(stored).unwrap());
            });
            load_decoder(dir.path()).unwrap().last_hidden(&ids, 64, &mut |_| {}).unwrap().concat()
        });
        assert_same(&format!("{dtype:?}"), &halves, &whole, 1e-6);
    }
}

#[test]
fn a_decoder_without_reserved_tokens_teaches_at_another_position() {
    let dir = copy_of("decoder");
    let path = dir.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&path).unwrap();
    // The names of special tokens do not matter.
    std::fs::write(&path, text.replace("reserved_special_token", "other")).unwrap();
    let texts = ["The king counts 7 cheap chairs."];
    let teacher = |dir: &Path| load_decoder(dir).unwrap().teacher(&texts, 64, &mut |_| {}).unwrap();
    assert_eq!(teacher(dir.path()), teacher(&golden().join("decoder")));
    // Without special tokens, the position has the mean of the embedding.
    edit_json(&path, |tokenizer| {
        let added = tokenizer["added_tokens"].as_array_mut().unwrap();
        added.retain(|token| token["content"].as_str().is_some_and(|content| !content.contains("other")));
    });
    let with_table = |rows: usize, change: &dyn Fn(&Tensor) -> Tensor| {
        edit_json(dir.path().join("config.json"), |config| config["vocab_size"] = json!(rows));
        edit_weights(dir.path(), |weights| {
            let table = weights.get_mut("model.embed_tokens.weight").unwrap();
            *table = change(table);
        });
    };
    with_table(466, &|table| table.narrow(0, 0, 466).unwrap().contiguous().unwrap());
    let without = load_decoder(dir.path()).unwrap();
    assert_eq!(without.teacher_slot(), NO_TOKEN);
    let found = without.teacher(&texts, 64, &mut |_| {}).unwrap();
    let ids = without.tokenize_teacher(&texts).unwrap().remove(0);
    with_table(467, &|table| Tensor::cat(&[table, &table.mean_keepdim(0).unwrap()], 0).unwrap());
    let with_mean = load_decoder(dir.path()).unwrap();
    let ids: Vec<u32> = ids.into_iter().map(|id| if id == NO_TOKEN { 466 } else { id }).collect();
    let expected = with_mean.last_hidden(&[ids], 64, &mut |_| {}).unwrap();
    assert_same("the mean's state", &found[0], &expected[0], 1e-5);
}

#[test]
fn a_teacher_sentence_begins_with_bos_whether_or_not_the_template_adds_it() {
    let texts = ["The king counts 7 cheap chairs.", ""];
    let ids = |dir: &Path| load_decoder(dir).unwrap().tokenize_teacher(&texts).unwrap();
    let expected = ids(&golden().join("decoder"));
    assert_eq!(expected[1].len(), 2, "BOS and the slot");
    let dir = copy_of("decoder");
    for other in
        [json!(null), json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false})]
    {
        edit_json(dir.path().join("tokenizer.json"), |tokenizer| tokenizer["post_processor"] = other.clone());
        assert_eq!(ids(dir.path()), expected, "{other}");
    }
    // The text is cut to 127 tokens with BOS.
    let long = "chairs ".repeat(200);
    let cut = load_decoder(dir.path()).unwrap().tokenize_teacher(&[&long]).unwrap();
    assert_eq!(cut, load_decoder(&golden().join("decoder")).unwrap().tokenize_teacher(&[&long]).unwrap());
    assert_eq!(cut[0].len(), 128);
    edit_json(dir.path().join("config.json"), |config| config["bos_token_id"] = json!(null));
    assert_eq!(ids(dir.path())[0], expected[0][1..], "a model without BOS gets none");
}

#[test]
fn an_encoder_saved_with_its_head_is_found_under_its_prefix() {
    let dir = configured("encoder", |config| config["architectures"] = json!(["XLMRobertaForMaskedLM"]));
    edit_weights(dir.path(), |weights| {
        let bare = std::mem::take(weights);
        weights.extend(bare.into_iter().map(|(name, tensor)| (format!("roberta.{name}"), tensor)));
    });
    let embed = |dir: &Path| load_encoder(dir).unwrap().embed(&["សួស្តី"], TextLimits::default(), 64, &mut |_| {}).unwrap();
    assert_eq!(embed(dir.path()), embed(&golden().join("encoder")));
}

#[test]
fn an_untied_head_is_read() {
    let dir = configured("decoder", |config| config["tie_word_embeddings"] = json!(false));
    edit_weights(dir.path(), |weights| {
        let doubled = (&weights["model.embed_tokens.weight"] * 2.0).unwrap();
        weights.insert("lm_head.weight".into(), doubled);
    });
    let row = |dir: &Path| load_decoder(dir).unwrap().logits(&[461, 300]).unwrap().to_vec2::<f32>().unwrap();
    let tied: Vec<f32> = row(&golden().join("decoder"))[1].iter().map(|x| x * 2.0).collect();
    assert_same("untied logits", &row(dir.path())[1], &tied, 1e-5);
}
