//! Tests that a model that cannot be used is refused before anything is computed. The refusal names all faults, each
//! with what to do.

use std::path::{Path, PathBuf};

use crate::common::{assert_says, copy_of, cut, edit_json, edit_weights, fixture};
use candle_core::{DType, Device, Tensor};
use llink_datasets::store::Store;
use llink_proto::ModelRole;
use llink_worker::models::{Decoder, ReadingWishes, check};
use serde_json::{Value, json};

const LFS: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:68a2\nsize 2471645608\n";

fn of_role(role: ModelRole) -> PathBuf {
    match role {
        ModelRole::Encoder => fixture("bert/labse"),
        _ => fixture("golden/seed8/decoder"),
    }
}

/// Returns a copy of the role's model after `edit`.
fn edited(role: ModelRole, edit: Edit) -> tempfile::TempDir {
    let dir = copy_of(&of_role(role));
    edit(dir.path());
    dir
}

async fn problems(store: &Store, role: ModelRole) -> Vec<String> {
    check(store, role, &ReadingWishes::default()).await.unwrap()
}

/// Returns the folder in an object store.
async fn in_memory(dir: &Path, name: &str) -> Store {
    let store = Store::open(&format!("memory://model-check-{name}/m")).unwrap();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
            store.put(&name, std::fs::read(&path).unwrap().into()).await.unwrap();
        }
    }
    store
}

type Edit = fn(&Path);

const FAULTS: &[(&str, ModelRole, Edit, &[&str])] = &[
    (
        "pointers",
        ModelRole::Decoder,
        |dir| {
            std::fs::write(dir.join("model.safetensors"), LFS).unwrap();
            std::fs::write(dir.join("tokenizer.json"), LFS).unwrap();
        },
        &["model.safetensors is a Git LFS pointer", "tokenizer.json", "git lfs pull"],
    ),
    (
        "pointer-config",
        ModelRole::Encoder,
        |dir| std::fs::write(dir.join("config.json"), LFS).unwrap(),
        &["config.json", "Git LFS pointer"],
    ),
    (
        "all-missing",
        ModelRole::Encoder,
        |dir| {
            for name in ["tokenizer.json", "model.safetensors", "2_Dense/model.safetensors"] {
                std::fs::remove_file(dir.join(name)).unwrap();
            }
            edit_json(dir.join("config.json"), |c| c["hidden_act"] = json!("relu"));
        },
        &[
            "tokenizer.json is missing",
            "holds neither model.safetensors",
            "2_Dense: holds neither",
            "hidden_act",
            "relu",
        ],
    ),
    (
        "pytorch-only",
        ModelRole::Encoder,
        |dir| {
            std::fs::rename(dir.join("model.safetensors"), dir.join("pytorch_model.bin")).unwrap();
            std::fs::rename(dir.join("tokenizer.json"), dir.join("vocab.txt")).unwrap();
        },
        &["pytorch_model.bin", "save_pretrained", "vocab.txt", "AutoTokenizer"],
    ),
    (
        "shards-missing",
        ModelRole::Decoder,
        |dir| {
            std::fs::rename(dir.join("model.safetensors"), dir.join("model-00001-of-00003.safetensors")).unwrap();
            let map = json!({"weight_map": {"a": "model-00001-of-00003.safetensors", "b": "model-00002-of-00003.safetensors",
                                            "c": "model-00003-of-00003.safetensors"}});
            std::fs::write(dir.join("model.safetensors.index.json"), map.to_string()).unwrap();
        },
        &["model-00002-of-00003.safetensors, model-00003-of-00003.safetensors"],
    ),
    (
        "quantized-config",
        ModelRole::Decoder,
        |dir| edit_json(dir.join("config.json"), |c| c["quantization_config"] = json!({"quant_method": "awq"})),
        &["config.json", "awq"],
    ),
    (
        "quantized-weights",
        ModelRole::Decoder,
        |dir| {
            let packed = Tensor::zeros((4, 4), DType::U8, &Device::Cpu).unwrap();
            edit_weights(dir, |weights| drop(weights.insert("model.layers.0.mlp.up_proj.qweight".into(), packed)));
        },
        &["model.safetensors", "qweight is U8", "quantized"],
    ),
    (
        "cut-off",
        ModelRole::Encoder,
        |dir| cut(&dir.join("model.safetensors"), 0.5),
        &["model.safetensors is cut off", "download"],
    ),
    (
        "gated",
        ModelRole::Decoder,
        |dir| {
            let stub = "Access to model meta-llama/Llama-3.2-1B is restricted. You must be authenticated to access it.";
            std::fs::write(dir.join("config.json"), stub).unwrap();
            std::fs::write(dir.join("model.safetensors"), "<!doctype html><html>Sign in</html>").unwrap();
        },
        &["config.json", "Access to model", "model.safetensors is a web page"],
    ),
    (
        "adapter",
        ModelRole::Decoder,
        |dir| std::fs::rename(dir.join("model.safetensors"), dir.join("adapter_model.safetensors")).unwrap(),
        &["LoRA adapter", "merge"],
    ),
    (
        "anothers-weights",
        ModelRole::Encoder,
        |dir| edit_json(dir.join("config.json"), |c| c["num_hidden_layers"] = json!(3)),
        &["encoder.layer.2.output.dense.weight"],
    ),
    (
        "unknown-architecture",
        ModelRole::Encoder,
        |dir| {
            edit_json(dir.join("config.json"), |c| {
                c["architectures"] = json!(["DistilBertModel"]);
                c["model_type"] = json!("distilbert");
            })
        },
        &["DistilBertModel", "XLMRobertaModel", "BertModel"],
    ),
    (
        "hub-cache",
        ModelRole::Encoder,
        |dir| {
            let inner = dir.join("snapshots/0a1b");
            std::fs::create_dir_all(&inner).unwrap();
            for name in ["config.json", "tokenizer.json", "model.safetensors"] {
                std::fs::rename(dir.join(name), inner.join(name)).unwrap();
            }
        },
        &["Hub's cache", "snapshots/0a1b"],
    ),
    (
        "pooling",
        ModelRole::Encoder,
        |dir| edit_json(dir.join("1_Pooling/config.json"), |c| c["pooling_mode_max_tokens"] = json!(true)),
        &["1_Pooling/config.json", "pooling_mode_max_tokens"],
    ),
];

#[tokio::test]
async fn what_is_wrong_is_said_wherever_the_model_lies() {
    for (name, role, edit, words) in FAULTS {
        let dir = edited(*role, *edit);
        let local = problems(&Store::open(dir.path().to_str().unwrap()).unwrap(), *role).await;
        let remote = problems(&in_memory(dir.path(), name).await, *role).await;
        assert_eq!(local, remote, "{name}");
        let said = local.join("\n");
        assert_says(&said, words);
        assert!(!said.contains(dir.path().to_str().unwrap()), "{name}: files are named within the folder: {said}");
    }
}

const FINE: &[(&str, ModelRole, Edit)] = &[
    ("as-it-is", ModelRole::Encoder, |_| {}),
    ("decoder", ModelRole::Decoder, |_| {}),
    ("null", ModelRole::Decoder, |dir| {
        edit_json(dir.join("config.json"), |c| {
            let keys = ["attention_bias", "mlp_bias", "head_dim", "quantization_config", "torch_dtype"];
            for key in keys {
                c[key] = Value::Null;
            }
            c["dtype"] = json!("auto");
        });
    }),
    ("mark", ModelRole::Decoder, |dir| {
        for name in ["config.json", "tokenizer.json"] {
            let text = std::fs::read_to_string(dir.join(name)).unwrap();
            std::fs::write(dir.join(name), format!("\u{feff}{text}")).unwrap();
        }
    }),
    ("nan", ModelRole::Decoder, |dir| {
        let text = std::fs::read_to_string(dir.join("config.json")).unwrap();
        let text = text.replacen('{', "{\"classifier_dropout\": NaN, \"router\": -Infinity,", 1);
        std::fs::write(dir.join("config.json"), text).unwrap();
    }),
    ("only-the-head", ModelRole::Decoder, |dir| {
        edit_weights(dir, |weights| {
            let embedding = weights.remove("model.embed_tokens.weight").unwrap();
            weights.insert("lm_head.weight".into(), embedding);
        });
    }),
    ("one-more-token", ModelRole::Decoder, |dir| {
        let rows = 10_000;
        edit_json(dir.join("tokenizer.json"), |tokenizer| {
            let pad = json!({"id": rows, "content": "<pad>", "single_word": false, "lstrip": false, "rstrip": false,
                             "normalized": false, "special": true});
            tokenizer["added_tokens"].as_array_mut().unwrap().push(pad);
        });
    }),
    ("beside", ModelRole::Decoder, |dir| {
        std::fs::create_dir_all(dir.join("checkpoint-500")).unwrap();
        std::fs::write(dir.join("checkpoint-500/optimizer.safetensors"), "x").unwrap();
        std::fs::write(dir.join("training_args.bin"), "x").unwrap();
    }),
];

#[tokio::test]
async fn what_python_reads_can_be_used() {
    for (name, role, edit) in FINE {
        let dir = edited(*role, *edit);
        let store = Store::open(dir.path().to_str().unwrap()).unwrap();
        assert_eq!(problems(&store, *role).await, [""; 0], "{name}");
        assert_eq!(problems(&in_memory(dir.path(), name).await, *role).await, [""; 0], "{name}");
        if *role == ModelRole::Decoder {
            let loaded = Decoder::load(dir.path(), &Device::Cpu, DType::F32);
            assert!(loaded.is_ok(), "{name}: {}", loaded.err().unwrap());
        }
    }
}
