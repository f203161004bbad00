//! Compares published encoders with PyTorch: BERT's positions, pooling, dense layers and prefixes.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "../../datasets/tests/support/skip.rs"]
mod skip;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use llink_worker::models::{Backend, Encoder, FolderReading, Pooling, Reading, ReadingWishes, TextLimits, fingerprint};
use serde::Deserialize;
use serde_json::{Value, json};
use skip::python_with;

const TOLERANCE: f64 = 1e-5;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bert")
}

/// The expected results that `make.py` wrote.
#[derive(Deserialize)]
struct Expected {
    texts: Vec<String>,
    ids: Vec<Vec<u32>>,
    cases: Vec<Case>,
}

#[derive(Deserialize, Debug)]
struct Case {
    pooling: Pooling,
    normalize: bool,
    prefix: String,
    dense: bool,
    #[serde(skip_serializing)]
    vectors: Vec<Vec<f32>>,
}

impl Expected {
    fn load() -> Self {
        serde_json::from_slice(&std::fs::read(fixtures().join("expected.json")).unwrap()).unwrap()
    }
}

/// Returns a copy of the model without the named files.
fn copy_without(left_out: &[&str]) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let model = fixtures().join("labse");
    for folder in ["", "1_Pooling", "2_Dense"] {
        std::fs::create_dir_all(copy.path().join(folder)).unwrap();
        for entry in std::fs::read_dir(model.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(&model).unwrap();
            if path.is_file() && !left_out.contains(&name.to_str().unwrap()) {
                std::fs::copy(&path, copy.path().join(name)).unwrap();
            }
        }
    }
    copy
}

fn change(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

fn cpu() -> Backend {
    Backend::new(&Device::Cpu, DType::F32)
}

/// Returns ‖a − b‖ / ‖b‖.
fn relative_error(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    let widths = |rows: &[Vec<f32>]| rows.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(widths(a), widths(b));
    let pairs = || a.iter().flatten().zip(b.iter().flatten());
    let gap: f64 = pairs().map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    let norm: f64 = pairs().map(|(_, b)| f64::from(*b).powi(2)).sum();
    (gap / norm).sqrt()
}

#[test]
fn vectors_of_a_bert_equal_pytorchs_in_every_pooling() {
    let expected = Expected::load();
    let plain = copy_without(&["modules.json"]);
    let whole = copy_without(&[]);
    for case in &expected.cases {
        let reading =
            Reading { pooling: case.pooling, normalize: case.normalize, prefix: case.prefix.clone(), lowercase: false };
        let folder = if case.dense { whole.path() } else { plain.path() };
        for backend in [cpu(), Backend::of_tensors(&Device::Cpu, DType::F32)] {
            let encoder = Encoder::load_as(folder, &reading, &backend).unwrap();
            assert_eq!(encoder.width(), if case.dense { 24 } else { 32 });
            for budget in [1, 4096] {
                let found = encoder.embed(&expected.texts, TextLimits::default(), budget, &mut |_| {}).unwrap();
                let error = relative_error(&found, &case.vectors);
                let what = (case.pooling, case.normalize, &case.prefix, case.dense);
                assert!(error < TOLERANCE, "{what:?}: relative error {error:.2e}");
            }
        }
    }
}

#[test]
fn a_sentence_transformers_folder_says_itself_how_it_reads() {
    let expected = Expected::load();
    let encoder = Encoder::load(&fixtures().join("labse"), &Device::Cpu, DType::F32).unwrap();
    let asked = (encoder.reading().pooling, encoder.reading().normalize);
    assert_eq!(asked, (Pooling::Cls, true));
    assert_eq!(encoder.tokenize(&expected.texts, TextLimits::default()).unwrap(), expected.ids);
    let like_its_own = |case: &&Case| case.dense && case.normalize && case.prefix.is_empty();
    let case = expected.cases.iter().filter(like_its_own).find(|case| case.pooling == Pooling::Cls);
    let found = encoder.embed(&expected.texts, TextLimits::default(), 4096, &mut |_| {}).unwrap();
    assert!(relative_error(&found, &case.unwrap().vectors) < TOLERANCE);
}

#[test]
fn what_a_job_says_goes_before_the_folder_and_the_rest_stays() {
    let folder = fixtures().join("labse");
    let of = |wishes: ReadingWishes| FolderReading::of(&folder, &wishes).unwrap();
    let own = of(ReadingWishes::default());
    assert_eq!((own.max_tokens, own.dense.len()), (Some(32), 1));
    let mean =
        of(ReadingWishes { pooling: Some(Pooling::Mean), prefix: Some("query: ".into()), ..ReadingWishes::default() });
    assert_eq!((mean.reading.pooling, mean.reading.normalize), (Pooling::Mean, true));
    assert_eq!((mean.reading.prefix.as_str(), mean.dense.len()), ("query: ", 1));
    let bare = of(ReadingWishes { normalize: Some(false), ..ReadingWishes::default() });
    assert_eq!((bare.reading.pooling, bare.reading.normalize), (Pooling::Cls, false));

    let plain = copy_without(&["modules.json", "sentence_bert_config.json"]);
    let paper = FolderReading::of(plain.path(), &ReadingWishes::default()).unwrap();
    assert_eq!(paper, FolderReading::default());
}

#[test]
fn a_prefix_comes_after_the_cut() {
    let limits = TextLimits { max_chars: 4, max_tokens: 32 };
    let reading = Reading { prefix: "query: ".into(), ..Reading::default() };
    let folder = fixtures().join("labse");
    let (with, without) = (
        Encoder::load_as(&folder, &reading, &cpu()).unwrap(),
        Encoder::load_as(&folder, &Reading::default(), &cpu()).unwrap(),
    );
    assert_eq!(
        with.tokenize(&["fish and more"], limits).unwrap(),
        without.tokenize(&["query: fish"], TextLimits::default()).unwrap()
    );
}

#[test]
fn files_of_older_and_newer_versions_of_sentence_transformers_are_read() {
    // These are the files of sentence-transformers version 6.
    let dir = copy_without(&[]);
    change(&dir.path().join("modules.json"), |modules| {
        modules[0]["type"] = json!("sentence_transformers.base.modules.transformer.Transformer");
        modules[1]["type"] = json!("sentence_transformers.sentence_transformer.modules.pooling.Pooling");
        modules[2]["type"] = json!("sentence_transformers.base.modules.dense.Dense");
        modules[3]["type"] = json!("sentence_transformers.base.modules.normalize.Normalize");
    });
    std::fs::write(
        dir.path().join("1_Pooling/config.json"),
        "{\"embedding_dimension\": 32, \"pooling_mode\": \"cls\", \"include_prompt\": true}",
    )
    .unwrap();
    std::fs::write(dir.path().join("sentence_bert_config.json"), "{}").unwrap();
    change(&dir.path().join("tokenizer_config.json"), |config| config["model_max_length"] = json!(20));
    std::fs::write(
        dir.path().join("config_sentence_transformers.json"),
        "{\"prompts\": {\"query\": \"query: \"}, \"default_prompt_name\": \"query\"}",
    )
    .unwrap();
    let found = FolderReading::of(dir.path(), &ReadingWishes::default()).unwrap();
    assert_eq!((found.reading.pooling, found.reading.normalize), (Pooling::Cls, true));
    assert_eq!((found.max_tokens, found.dense.len()), (Some(20), 1));
    assert_eq!(found.reading.prefix, "query: ", "the prompt that is used if none is named");
    // This value means that there is no limit.
    let no_limit = |config: &mut Value| config["model_max_length"] = json!(1e30);
    change(&dir.path().join("tokenizer_config.json"), no_limit);
    let found = FolderReading::of(dir.path(), &ReadingWishes::default()).unwrap();
    assert_eq!(found.max_tokens, None);
    // BERT's own weights have the names of TensorFlow.
    let path = dir.path().join("model.safetensors");
    let weights = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let old: HashMap<String, Tensor> = weights
        .into_iter()
        .map(|(name, tensor)| {
            let old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
            (format!("bert.{old}"), tensor)
        })
        .collect();
    assert!(old.keys().any(|name| name.ends_with("gamma")));
    candle_core::safetensors::save(&old, &path).unwrap();
    change(&dir.path().join("config.json"), |c| c["architectures"] = json!(["BertForPreTraining"]));
    let texts = ["the river"];
    let vectors = |dir: &Path| {
        let encoder = Encoder::load_as(dir, &Reading::default(), &cpu()).unwrap();
        encoder.embed(&texts, TextLimits::default(), 64, &mut |_| {}).unwrap()
    };
    assert_eq!(vectors(dir.path()), vectors(&fixtures().join("labse")));
}

#[test]
fn modules_that_are_not_supported_are_refused_by_name() {
    type Edit = fn(&Path);
    let cases: [(Edit, &[&str]); 7] = [
        (
            |dir| change(&dir.join("1_Pooling/config.json"), |c| c["pooling_mode_max_tokens"] = json!(true)),
            &["1_Pooling/config.json", "pooling_mode_max_tokens", "[models.encoder] pooling"],
        ),
        (
            |dir| std::fs::write(dir.join("1_Pooling/config.json"), "{\"pooling_mode\": \"lasttoken\"}").unwrap(),
            &["1_Pooling/config.json", "lasttoken"],
        ),
        (|dir| change(&dir.join("1_Pooling/config.json"), |c| c["include_prompt"] = json!(false)), &["include_prompt"]),
        (
            |dir| change(&dir.join("modules.json"), |m| m[2]["type"] = json!("sentence_transformers.models.LSTM")),
            &["modules.json", "sentence_transformers.models.LSTM", "Dense"],
        ),
        (
            |dir| change(&dir.join("modules.json"), |m| m[0]["path"] = json!("0_Transformer")),
            &["modules.json", "0_Transformer", "pooling"],
        ),
        (
            |dir| {
                let relu = json!("torch.nn.modules.activation.ReLU");
                change(&dir.join("2_Dense/config.json"), |c| c["activation_function"] = relu);
            },
            &["2_Dense/config.json", "ReLU", "Tanh"],
        ),
        (
            |dir| change(&dir.join("2_Dense/config.json"), |c| c["in_features"] = json!(16)),
            &["2_Dense/config.json", "16", "32"],
        ),
    ];
    for (edit, words) in cases {
        let dir = copy_without(&[]);
        edit(dir.path());
        let error = Encoder::load(dir.path(), &Device::Cpu, DType::F32).map(|_| ()).unwrap_err();
        let said = error.to_string();
        for word in words {
            assert!(said.contains(word), "{word:?} is not in {said}");
        }
    }
    // The advice works.
    let dir = copy_without(&[]);
    change(&dir.path().join("1_Pooling/config.json"), |c| c["pooling_mode_max_tokens"] = json!(true));
    let wishes = ReadingWishes { pooling: Some(Pooling::Mean), ..ReadingWishes::default() };
    assert_eq!(FolderReading::of(dir.path(), &wishes).unwrap().reading.pooling, Pooling::Mean);
}

#[test]
fn a_fingerprint_holds_the_dense_layers() {
    let (a, b) = (copy_without(&[]), copy_without(&[]));
    assert_eq!(fingerprint(a.path()).unwrap(), fingerprint(b.path()).unwrap());
    change(&b.path().join("2_Dense/config.json"), |c| c["activation_function"] = json!("Identity"));
    assert_ne!(fingerprint(a.path()).unwrap(), fingerprint(b.path()).unwrap());
}

#[test]
fn a_tokenizer_with_more_tokens_than_the_model_is_refused_only_when_they_occur() {
    let dir = copy_without(&["modules.json"]);
    change(&dir.path().join("tokenizer.json"), |tokenizer| {
        let pad = json!({"id": 170, "content": "<pad>", "single_word": false, "lstrip": false, "rstrip": false,
                         "normalized": false, "special": true});
        tokenizer["added_tokens"].as_array_mut().unwrap().push(pad);
    });
    let encoder = Encoder::load(dir.path(), &Device::Cpu, DType::F32).unwrap();
    assert!(encoder.tokenize(&["the river"], TextLimits::default()).is_ok());
    let error = encoder.tokenize(&["the <pad> river"], TextLimits::default()).unwrap_err();
    let said = error.to_string();
    for word in ["tokenizer.json", "<pad>", "170"] {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
}

/// Writes small random models as Transformers saves them, and the results that it computes.
const PYTHON: &str = r#"
import json, sys, torch
from pathlib import Path
from transformers import (BertConfig, BertForMaskedLM, BertModel, CamembertConfig, CamembertModel, RobertaConfig, RobertaForMaskedLM,
                          RobertaModel, XLMRobertaConfig, XLMRobertaForSequenceClassification, XLMRobertaModel)
out, tokenizer = Path(sys.argv[1]), Path(sys.argv[2]).read_text()
shape = dict(vocab_size=170, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=50,
             initializer_range=0.3)
kinds = [(BertConfig, BertModel), (BertConfig, BertForMaskedLM), (RobertaConfig, RobertaModel), (RobertaConfig, RobertaForMaskedLM),
         (XLMRobertaConfig, XLMRobertaModel), (XLMRobertaConfig, XLMRobertaForSequenceClassification), (CamembertConfig, CamembertModel)]
ids = json.loads(sys.argv[3])
expected = {}
for i, (config, kind) in enumerate(kinds):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        torch.manual_seed(i)
        model = kind(config(**shape)).to(dtype).eval()
        name = f"{kind.__name__}-{str(dtype)[6:]}"
        model.save_pretrained(out / name)
        (out / name / "tokenizer.json").write_text(tokenizer)
        base = getattr(model, model.base_model_prefix, model).float()
        rows = []
        for row in ids:
            row = torch.tensor([row])
            with torch.no_grad():
                states = base(row, attention_mask=torch.ones_like(row)).last_hidden_state[0]
            rows.append({"mean": states.mean(0).tolist(), "cls": states[0].tolist()})
        expected[name] = rows
(out / "expected.json").write_text(json.dumps(expected))
"#;

#[test]
fn every_published_form_equals_transformers() {
    let Some(python) = python_with(&["torch", "transformers"]) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    // The ids include neither BERT's padding token 0 nor RoBERTa's 1.
    let ids: Vec<Vec<u32>> = vec![vec![2, 17, 40, 99, 3], vec![2, 169, 3], (0..40).map(|i| 2 + i * 4).collect()];
    let ran = std::process::Command::new(python)
        .args(["-c", PYTHON])
        .arg(dir.path())
        .arg(fixtures().join("labse/tokenizer.json"))
        .arg(json!(ids).to_string())
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let expected = std::fs::read(dir.path().join("expected.json")).unwrap();
    let expected: HashMap<String, Vec<HashMap<Pooling, Vec<f32>>>> = serde_json::from_slice(&expected).unwrap();
    assert_eq!(expected.len(), 21);
    for (name, rows) in &expected {
        for pooling in [Pooling::Mean, Pooling::Cls] {
            let reading = Reading { pooling, ..Reading::default() };
            let encoder = Encoder::load_as(&dir.path().join(name), &reading, &cpu()).unwrap();
            let found = encoder.embed_ids(&ids, 64, &mut |_| {}).unwrap();
            let wanted: Vec<Vec<f32>> = rows.iter().map(|row| row[&pooling].clone()).collect();
            let error = relative_error(&found, &wanted);
            println!("{name} {pooling:?}: relative error {error:.2e}");
            assert!(error < TOLERANCE, "{name} {pooling:?}: relative error {error:.2e}");
        }
    }
}
