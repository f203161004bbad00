//! Compares published encoders with PyTorch: BERT's positions, pooling, dense layers and prefixes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::skip::python_with;
use crate::common::{assert_refused, assert_rows_close, copy_of, edit_json, edit_weights, fixture, on_cpu, told_by};
use candle_core::{DType, Device};
use llink_worker::models::{Backend, Encoder, FolderReading, Pooling, Reading, ReadingWishes, TextLimits, fingerprint};
use serde::Deserialize;
use serde_json::{Value, json};

const TOLERANCE: f64 = 1e-5;

fn labse() -> PathBuf {
    fixture("bert/labse")
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
        serde_json::from_slice(&std::fs::read(fixture("bert/expected.json")).unwrap()).unwrap()
    }
}

/// Returns a copy of the model without the named files.
fn copy_without(left_out: &[&str]) -> tempfile::TempDir {
    let copy = copy_of(&labse());
    left_out.iter().for_each(|name| std::fs::remove_file(copy.path().join(name)).unwrap());
    copy
}

fn load(dir: &Path) -> llink_worker::Result<Encoder> {
    Encoder::load(dir, &Device::Cpu, DType::F32)
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
        for backend in [on_cpu(), Backend::of_tensors(&Device::Cpu, DType::F32)] {
            let encoder = Encoder::load_as(folder, &reading, &backend).unwrap();
            assert_eq!(encoder.width(), if case.dense { 24 } else { 32 });
            for budget in [1, 4096] {
                let found = encoder.embed(&expected.texts, TextLimits::default(), budget, &mut |_| {}).unwrap();
                let what = (case.pooling, case.normalize, &case.prefix, case.dense);
                assert_rows_close(&format!("{what:?}"), &found, &case.vectors, TOLERANCE);
            }
        }
    }
}

#[test]
fn a_sentence_transformers_folder_says_itself_how_it_reads() {
    let expected = Expected::load();
    let encoder = load(&labse()).unwrap();
    let asked = (encoder.reading().pooling, encoder.reading().normalize);
    assert_eq!(asked, (Pooling::Cls, true));
    assert_eq!(encoder.tokenize(&expected.texts, TextLimits::default()).unwrap(), expected.ids);
    let like_its_own = |case: &&Case| case.dense && case.normalize && case.prefix.is_empty();
    let case = expected.cases.iter().filter(like_its_own).find(|case| case.pooling == Pooling::Cls);
    let found = encoder.embed(&expected.texts, TextLimits::default(), 4096, &mut |_| {}).unwrap();
    assert_rows_close("its own reading", &found, &case.unwrap().vectors, TOLERANCE);
}

#[test]
fn what_a_job_says_goes_before_the_folder_and_the_rest_stays() {
    let of = |wishes: ReadingWishes| FolderReading::of(&labse(), &wishes).unwrap();
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
    let tokens = |prefix: &str, text: &str, limits| {
        let reading = Reading { prefix: prefix.into(), ..Reading::default() };
        Encoder::load_as(&labse(), &reading, &on_cpu()).unwrap().tokenize(&[text], limits).unwrap()
    };
    assert_eq!(tokens("query: ", "fish and more", limits), tokens("", "query: fish", TextLimits::default()));
}

#[test]
fn files_of_older_and_newer_versions_of_sentence_transformers_are_read() {
    // These are the files of sentence-transformers version 6.
    let dir = copy_of(&labse());
    let file = |name: &str| dir.path().join(name);
    edit_json(file("modules.json"), |modules| {
        modules[0]["type"] = json!("sentence_transformers.base.modules.transformer.Transformer");
        modules[1]["type"] = json!("sentence_transformers.sentence_transformer.modules.pooling.Pooling");
        modules[2]["type"] = json!("sentence_transformers.base.modules.dense.Dense");
        modules[3]["type"] = json!("sentence_transformers.base.modules.normalize.Normalize");
    });
    for (name, content) in [
        ("1_Pooling/config.json", json!({"embedding_dimension": 32, "pooling_mode": "cls", "include_prompt": true})),
        ("sentence_bert_config.json", json!({})),
        ("config_sentence_transformers.json", json!({"prompts": {"query": "query: "}, "default_prompt_name": "query"})),
    ] {
        std::fs::write(file(name), content.to_string()).unwrap();
    }
    edit_json(file("tokenizer_config.json"), |config| config["model_max_length"] = json!(20));
    let found = FolderReading::of(dir.path(), &ReadingWishes::default()).unwrap();
    assert_eq!((found.reading.pooling, found.reading.normalize), (Pooling::Cls, true));
    assert_eq!((found.max_tokens, found.dense.len()), (Some(20), 1));
    assert_eq!(found.reading.prefix, "query: ", "the prompt that is used if none is named");
    // This value means that there is no limit.
    edit_json(file("tokenizer_config.json"), |config| config["model_max_length"] = json!(1e30));
    let found = FolderReading::of(dir.path(), &ReadingWishes::default()).unwrap();
    assert_eq!(found.max_tokens, None);
    // BERT's own weights have the names of TensorFlow.
    edit_weights(dir.path(), |weights| {
        let renamed = std::mem::take(weights).into_iter().map(|(name, tensor)| {
            let old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
            (format!("bert.{old}"), tensor)
        });
        weights.extend(renamed);
        assert!(weights.keys().any(|name| name.ends_with("gamma")));
    });
    edit_json(file("config.json"), |c| c["architectures"] = json!(["BertForPreTraining"]));
    let vectors = |dir: &Path| {
        let encoder = Encoder::load_as(dir, &Reading::default(), &on_cpu()).unwrap();
        encoder.embed(&["the river"], TextLimits::default(), 64, &mut |_| {}).unwrap()
    };
    assert_eq!(vectors(dir.path()), vectors(&labse()));
}

#[test]
fn modules_that_are_not_supported_are_refused_by_name() {
    type Edit = fn(&mut Value);
    let max_tokens: Edit = |c| c["pooling_mode_max_tokens"] = json!(true);
    let cases: [(&str, Edit, &[&str]); 7] = [
        ("1_Pooling/config.json", max_tokens, &["pooling_mode_max_tokens", "[models.encoder] pooling"]),
        ("1_Pooling/config.json", |c| *c = json!({"pooling_mode": "lasttoken"}), &["lasttoken"]),
        ("1_Pooling/config.json", |c| c["include_prompt"] = json!(false), &["include_prompt"]),
        (
            "modules.json",
            |m| m[2]["type"] = json!("sentence_transformers.models.LSTM"),
            &["sentence_transformers.models.LSTM", "Dense"],
        ),
        ("modules.json", |m| m[0]["path"] = json!("0_Transformer"), &["0_Transformer", "pooling"]),
        (
            "2_Dense/config.json",
            |c| c["activation_function"] = json!("torch.nn.modules.activation.ReLU"),
            &["ReLU", "Tanh"],
        ),
        ("2_Dense/config.json", |c| c["in_features"] = json!(16), &["16", "32"]),
    ];
    for (file, edit, words) in cases {
        let dir = copy_of(&labse());
        edit_json(dir.path().join(file), edit);
        assert_refused(load(dir.path()), &[words, &[file]].concat());
    }
    // The advice works.
    let dir = copy_of(&labse());
    edit_json(dir.path().join("1_Pooling/config.json"), max_tokens);
    let wishes = ReadingWishes { pooling: Some(Pooling::Mean), ..ReadingWishes::default() };
    assert_eq!(FolderReading::of(dir.path(), &wishes).unwrap().reading.pooling, Pooling::Mean);
}

#[test]
fn a_fingerprint_holds_the_dense_layers() {
    let copy = copy_of(&labse());
    assert_eq!(fingerprint(copy.path()).unwrap(), fingerprint(&labse()).unwrap());
    edit_json(copy.path().join("2_Dense/config.json"), |c| c["activation_function"] = json!("Identity"));
    assert_ne!(fingerprint(copy.path()).unwrap(), fingerprint(&labse()).unwrap());
}

#[test]
fn a_tokenizer_with_more_tokens_than_the_model_is_refused_only_when_they_occur() {
    let dir = copy_without(&["modules.json"]);
    edit_json(dir.path().join("tokenizer.json"), |tokenizer| {
        let pad = json!({"id": 170, "content": "<pad>", "single_word": false, "lstrip": false, "rstrip": false,
                         "normalized": false, "special": true});
        tokenizer["added_tokens"].as_array_mut().unwrap().push(pad);
    });
    let encoder = load(dir.path()).unwrap();
    assert!(encoder.tokenize(&["the river"], TextLimits::default()).is_ok());
    let tokenized = encoder.tokenize(&["the <pad> river"], TextLimits::default());
    assert_refused(tokenized, &["tokenizer.json", "<pad>", "170"]);
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
    let tokenizer = labse().join("tokenizer.json");
    told_by(Command::new(python).args(["-c", PYTHON]).args([dir.path(), &tokenizer]).arg(json!(ids).to_string()));
    let expected = std::fs::read(dir.path().join("expected.json")).unwrap();
    let expected: HashMap<String, Vec<HashMap<Pooling, Vec<f32>>>> = serde_json::from_slice(&expected).unwrap();
    assert_eq!(expected.len(), 21);
    for (name, rows) in &expected {
        for pooling in [Pooling::Mean, Pooling::Cls] {
            let reading = Reading { pooling, ..Reading::default() };
            let encoder = Encoder::load_as(&dir.path().join(name), &reading, &on_cpu()).unwrap();
            let found = encoder.embed_ids(&ids, 64, &mut |_| {}).unwrap();
            let wanted: Vec<Vec<f32>> = rows.iter().map(|row| row[&pooling].clone()).collect();
            assert_rows_close(&format!("{name} {pooling:?}"), &found, &wanted, TOLERANCE);
        }
    }
}
