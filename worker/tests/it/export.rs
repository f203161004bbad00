//! A bundle from `export` is complete, loads strictly, and gives the trained results. PEFT reads the adapter.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::common::skip::python_with;
use crate::common::{assert_refused, edit_json, fixture, told_by};
use bytes::Bytes;
use candle_core::{DType, Device};
use half::f16;
use llink_datasets::manifest::{Manifest, sha256_hex};
use llink_datasets::role::{Corpus, Role, Side};
use llink_datasets::roots::Roots;
use llink_datasets::rows::InstructionExample;
use llink_datasets::shards::encode_instructions;
use llink_datasets::store::Store;
use llink_proto::settings::Metric;
use llink_proto::task::Kind;
use llink_proto::{Artifact, EncoderReading, Export, ModelRef, ModelRole, Task, TaskResult};
use llink_worker::bundle::{Answering, Bundle, BundleFolder, Generator, Opening};
use llink_worker::device::{Arithmetic, Compute};
use llink_worker::llink::projector::{Projector, ProjectorShape};
use llink_worker::llink::slot_expander::{SlotExpander, SlotExpanderShape};
use llink_worker::llink::statistics::Statistics;
use llink_worker::llink::whitening::Whitening;
use llink_worker::models::lora::{LoraAdapter, LoraOptions};
use llink_worker::models::{Decoder, Encoder, GenerateOptions, LoadedAdapter, Sampling, TextLimits, fingerprint, peft};
use llink_worker::numerics::random::uniform;
use llink_worker::numerics::tensor_file::{self, TensorFile, Values};
use llink_worker::tasks::{self, TaskContext};
use serde_json::{Value, json};

const KEY: &str = "0123456789abcdef";
const SLOTS: usize = 4;
const TEXT: &str = "ថ្ងៃនេះ អ្នកនេសាទចូលចិត្តត្រីតូច ៤ នៅផ្សារ។";

fn golden(model: &str) -> PathBuf {
    fixture("golden/seed8").join(model)
}

fn decoder() -> Decoder {
    Decoder::load(&golden("decoder"), &Device::Cpu, DType::F32).unwrap()
}

fn encoder() -> Encoder {
    Encoder::load(&golden("encoder"), &Device::Cpu, DType::F32).unwrap()
}

fn model(role: ModelRole, folder: &Path) -> ModelRef {
    let url = folder.to_str().unwrap().into();
    ModelRef { role: role.into(), url, fingerprint: fingerprint(folder).unwrap(), reading: None }
}

/// A job's output in which all stages before `export` are done.
struct Job {
    folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    adapter: LoraAdapter,
    expander: SlotExpander,
    projector: Projector,
}

impl Job {
    fn new() -> Self {
        let (decoder, encoder) = (decoder(), encoder());
        let width = decoder.hidden_size();
        let mut adapter = LoraAdapter::new(decoder.config(), LoraOptions::default(), 3).unwrap();
        // B is not zero after training.
        for (index, value) in (0..).zip(&mut adapter.parameters) {
            *value += 0.2 * (uniform(5, index) - 0.5);
        }
        let shape = ProjectorShape { input: encoder.width(), hidden: 80, output: width };
        let slots = SlotExpanderShape { width, hidden: 2 * width, slots: SLOTS };
        Self {
            folder: tempfile::tempdir().unwrap(),
            runtime: tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap(),
            adapter,
            expander: SlotExpander::new(slots, 0.777_209_4, 9),
            projector: Projector::new(shape, 4),
        }
    }

    fn url(&self) -> String {
        self.folder.path().to_str().unwrap().into()
    }

    fn store(&self) -> Store {
        Store::open(&self.url()).unwrap()
    }

    fn bundle(&self) -> String {
        format!("{}/export/{KEY}", self.url())
    }

    fn put(&self, path: &str, content: Bytes) -> Artifact {
        let sha256 = sha256_hex(&content);
        self.runtime.block_on(self.store().put(path, content)).unwrap();
        Artifact { path: path.into(), sha256, ..Artifact::default() }
    }

    fn instructions(&self) -> Artifact {
        let row = |task: &str, instruction: &str, n: usize| InstructionExample {
            task: task.into(),
            instruction: instruction.into(),
            foreign: format!("{TEXT} {n}"),
            english_ref: "x".into(),
            answer: n.to_string(),
            source: "x".into(),
        };
        let questions = (10..30).map(|n| row("answer", &format!("How many are {n}?"), n));
        let rows = [
            row("translate", "Say it in English.", 1),
            row("translate", "Translate this.", 2),
            row("translate", "Translate this.", 3),
            row("summarize", "In short?", 4),
        ];
        let rows: Vec<_> = rows.into_iter().chain(questions).collect();
        let path = "shard/k/instructions/train/00000.parquet";
        self.put(path, encode_instructions(&rows, path, &Role::Shard(Corpus::Instructions, Side::Train), "k").unwrap())
    }

    /// Returns the task as the coordinator would assign it.
    fn task(&self) -> Export {
        let put = |path: &str, content: Vec<u8>| Some(self.put(path, content.into()));
        let reading = EncoderReading { pooling: "mean".into(), ..EncoderReading::default() };
        let (encoder, decoder) = (golden("encoder"), golden("decoder"));
        Export {
            directory: format!("export/{KEY}"),
            projector: put("align/k/projector.safetensors", self.projector.to_safetensors(HashMap::new()).unwrap()),
            adapter: put("instruct/k/adapter_model.safetensors", peft::weights(&self.adapter).unwrap()),
            adapter_config: put(
                "instruct/k/adapter_config.json",
                peft::config_json(self.adapter.options(), "tiny").into(),
            ),
            slots: put("instruct/k/slots.safetensors", self.expander.to_safetensors(HashMap::new()).unwrap()),
            encoder: Some(ModelRef { reading: Some(reading), ..model(ModelRole::Encoder, &encoder) }),
            decoder: Some(model(ModelRole::Decoder, &decoder)),
            encoder_name: "tiny-encoder".into(),
            decoder_name: "tiny-decoder".into(),
            encoder_source: encoder.to_str().unwrap().into(),
            decoder_source: decoder.to_str().unwrap().into(),
            max_chars: 256,
            max_tokens: 128,
            instructions: vec![self.instructions()],
            model_card: "# A card\n".into(),
            ..Export::default()
        }
    }

    fn run(&self, task: Export) -> llink_worker::Result<TaskResult> {
        let context = TaskContext {
            output_url: self.url(),
            roots: Roots::Any,
            runtime: self.runtime.handle().clone(),
            control: Arc::default(),
            seat: None,
            rendezvous: Box::new(|_| unreachable!("an export has no gang")),
            local_address: std::net::Ipv4Addr::LOCALHOST.into(),
            compute: Compute::cpu(),
            models: Arc::default(),
            turns: Arc::default(),
            built_in: None,
            token: 1,
        };
        tasks::run(&context, Task { output_url: self.url(), kind: Some(Kind::Export(task)) })
    }

    /// Runs the task and commits what it wrote, as the coordinator does.
    fn export(&self, task: Export) {
        let written = self.run(task).unwrap();
        let artifact = |a: &Artifact| json!({ "path": a.path, "role": a.role, "rows": a.rows, "bytes": a.bytes, "sha256": a.sha256 });
        let artifacts: Vec<Value> = written.artifacts.iter().map(artifact).collect();
        let manifest = json!({ "version": 1, "stage": "export", "key": KEY, "artifacts": artifacts });
        let manifest: Manifest = serde_json::from_value(manifest).unwrap();
        let path = format!("export/{KEY}/manifest.json");
        self.runtime.block_on(manifest.write(&self.store(), &path)).unwrap();
    }

    fn opening(&self) -> Opening {
        Opening {
            encoder: None,
            decoder: None,
            vectors: Some(self.folder.path().join("vectors")),
            downloads: self.folder.path().join("downloads"),
            compute: Arithmetic::F32,
        }
    }

    fn open(&self, url: &str, opening: Opening) -> llink_worker::Result<Generator> {
        Generator::open(url, opening, self.runtime.handle())
    }

    /// Reads the exported bundle.
    fn read(&self) -> Bundle {
        Bundle::read(&BundleFolder::open(&self.bundle(), self.runtime.handle()).unwrap()).unwrap()
    }
}

const GREEDY: Answering = Answering { max_tokens: 12, sampling: Sampling::Greedy };

fn silent(_: &str) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Returns the answer of the trained parts without any bundle.
fn expected_answer(job: &Job, text: &str, instruction: &str) -> String {
    let (decoder, limits) = (decoder(), TextLimits { max_chars: 256, max_tokens: 128 });
    let vector = encoder().embed(&[text], limits, 4096, &mut |_| {}).unwrap().remove(0);
    let vector: Vec<f32> = vector.into_iter().map(|x| f16::from_f32(x).to_f32()).collect();
    let slots = job.expander.expand(&job.projector.project(&vector).unwrap(), 0).unwrap();
    let options = GenerateOptions {
        max_tokens: GREEDY.max_tokens,
        stop: vec![decoder.tokenizer().require("<|eot_id|>").unwrap()],
        sampling: GREEDY.sampling,
    };
    let ids = decoder
        .model()
        .generate(
            &decoder.slot_prompt(instruction, SLOTS).unwrap(),
            Some(&slots),
            &LoadedAdapter::new(&job.adapter, decoder.model()).unwrap(),
            &options,
        )
        .unwrap();
    decoder.tokenizer().decode(&ids).unwrap()
}

#[test]
fn a_bundle_answers_as_what_was_trained_does_word_by_word() {
    let job = Job::new();
    job.export(job.task());
    let mut generator = job.open(&job.bundle(), job.opening()).unwrap();
    assert_eq!(generator.key(), KEY);
    assert_eq!(generator.instruction("translate").unwrap(), "Translate this.", "the most common");
    // No question represents all tasks.
    assert_refused(generator.instruction("rhyme"), &["it knows summarize, translate."]);
    let sentence = generator.read(&[TEXT]).unwrap().remove(0);
    for instruction in ["Translate this.", "Who is it about?"] {
        let mut pieces = Vec::new();
        let answer = generator
            .answer(&sentence, instruction, GREEDY, &mut |piece| {
                pieces.push(piece.to_owned());
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(answer, expected_answer(&job, TEXT, instruction));
        assert_eq!(pieces.concat(), answer);
        assert!(pieces.len() > 1, "the answer comes word by word: {pieces:?}");
        let mut heard = 0;
        let cut = generator
            .answer(&sentence, instruction, GREEDY, &mut |_| {
                heard += 1;
                ControlFlow::Break(())
            })
            .unwrap();
        assert!(heard == 1 && cut.len() < answer.len(), "the answer ends when the listener stops");
    }
    let sampled = |seed| {
        let sampling = Sampling::Nucleus { temperature: 1.5, top_p: 0.95, seed };
        let answering = Answering { sampling, ..GREEDY };
        generator.answer(&sentence, "Translate this.", answering, &mut silent).unwrap()
    };
    assert_eq!(sampled(1), sampled(1));
    assert_ne!(sampled(1), sampled(2));
}

#[test]
fn a_sentence_that_was_read_needs_no_encoder_any_more() {
    let job = Job::new();
    job.export(job.task());
    let mut first = job.open(&job.bundle(), job.opening()).unwrap();
    let read = first.read(&[TEXT]).unwrap();
    let without = Opening { encoder: Some("/nowhere".into()), ..job.opening() };
    let mut again = job.open(&job.bundle(), without.clone()).unwrap();
    // White space and accents are normalized, as in training.
    assert_eq!(again.read(&[&format!("  {TEXT}\n")]).unwrap(), read);
    assert_refused(again.read(&["ត្រី"]), &["/nowhere", "--encoder"]);
    let forgetful = Opening { vectors: None, ..without };
    assert_refused(job.open(&job.bundle(), forgetful).unwrap().read(&[TEXT]), &["--encoder"]);
    assert_refused(first.read(&[" \u{200b}"]), &["nothing to read"]);
    let long = "ក".repeat(300);
    assert_eq!(first.read(&[&long]).unwrap()[0].unread_chars, 44);
}

/// Returns the file with one tensor removed, or one added.
fn changed(content: &[u8], remove: Option<&str>, add: Option<&str>) -> Bytes {
    let file = TensorFile::new("x", content).unwrap();
    let names: Vec<&str> = file.names().filter(|name| Some(*name) != remove).collect();
    let read: Vec<_> = names.iter().map(|name| file.f32(name).unwrap()).collect();
    let mut tensors: Vec<tensor_file::Tensor<'_>> = names
        .iter()
        .zip(&read)
        .map(|(name, (shape, values))| ((*name).to_owned(), shape.clone(), Values::F32(values)))
        .collect();
    if let Some(name) = add {
        tensors.push((name.into(), vec![1], Values::F32(&[1.0])));
    }
    let metadata = file.text("median_norm").map(|text| HashMap::from([("median_norm".to_owned(), text.to_owned())]));
    tensor_file::write(&tensors, metadata.unwrap_or_default()).unwrap().into()
}

#[test]
fn what_cant_be_loaded_strictly_is_not_exported_and_the_tensor_is_named() {
    let job = Job::new();
    let missing = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight";
    let read = |artifact: &Option<Artifact>| {
        let path = &artifact.as_ref().unwrap().path;
        job.runtime.block_on(job.store().get(path)).unwrap()
    };
    for (remove, add, named) in [
        (Some(missing), None, missing),
        (None, Some("base_model.model.lm_head.weight"), "lm_head.weight"),
        (None, Some("base_model.model.model.layers.9.mlp.up_proj.lora_A.weight"), "layers.9"),
    ] {
        let mut task = job.task();
        let content = changed(&read(&task.adapter), remove, add);
        task.adapter = Some(job.put("instruct/k/other.safetensors", content));
        assert_refused(job.run(task), &[named]);
    }
    for (part, named) in [("projector", "up.bias"), ("slots", "norm.weight")] {
        for (remove, add, named) in [(Some(named), None, named), (None, Some("extra.weight"), "extra.weight")] {
            let mut task = job.task();
            let artifact = if part == "slots" { &mut task.slots } else { &mut task.projector };
            let content = changed(&read(artifact), remove, add);
            *artifact = Some(job.put("other.safetensors", content));
            assert_refused(job.run(task), &[named]);
        }
    }
}

#[test]
fn a_damaged_bundle_and_other_models_are_refused_by_name() {
    let job = Job::new();
    job.export(job.task());
    let folder = PathBuf::from(job.bundle());
    let refused = |url: &str, opening: Opening, words: &[&str]| assert_refused(job.open(url, opening), words);

    refused(&job.url(), job.opening(), &["no bundle here"]);
    std::fs::write(
        job.folder.path().join("report.json"),
        format!("{{\"stages\": [{{\"stage\": \"export\", \"directory\": \"export/{KEY}\"}}]}}"),
    )
    .unwrap();
    assert_eq!(job.open(&job.url(), job.opening()).unwrap().key(), KEY, "by the job's output");

    let other = Opening { decoder: Some(golden("decoder_sharded").to_str().unwrap().into()), ..job.opening() };
    refused(&job.bundle(), other, &["fingerprint", "--decoder"]);
    let nowhere = Opening { decoder: Some("/nowhere".into()), ..job.opening() };
    refused(&job.bundle(), nowhere, &["/nowhere", "tiny-decoder"]);

    let slots = folder.join("slots.safetensors");
    let whole = std::fs::read(&slots).unwrap();
    let mut content = whole.clone();
    *content.last_mut().unwrap() ^= 1;
    std::fs::write(&slots, &content).unwrap();
    refused(&job.bundle(), job.opening(), &["slots.safetensors", "altered"]);
    std::fs::remove_file(&slots).unwrap();
    refused(&job.bundle(), job.opening(), &["slots.safetensors"]);
    std::fs::write(&slots, &whole).unwrap();

    // A moved bundle is still complete. A bundle of another version says which version of llink reads it.
    let moved = job.folder.path().join("moved");
    std::fs::rename(&folder, &moved).unwrap();
    let moved = moved.to_str().unwrap();
    assert!(job.open(moved, job.opening()).is_ok());
    let config = std::fs::read_to_string(format!("{moved}/config.json")).unwrap();
    let config = config.replace("\"bundle_version\": 2", "\"bundle_version\": 3");
    std::fs::write(format!("{moved}/config.json"), &config).unwrap();
    edit_json(format!("{moved}/manifest.json"), |manifest| {
        let mut listed = manifest["artifacts"].as_array_mut().unwrap().iter_mut();
        let listed = listed.find(|a| a["path"].as_str().unwrap().ends_with("/config.json")).unwrap();
        listed["sha256"] = sha256_hex(config.as_bytes()).into();
    });
    refused(moved, job.opening(), &["version 3", "reads version 2"]);
}

#[test]
fn a_job_without_stage_b_exports_its_projector_alone() {
    let job = Job::new();
    let task = Export { adapter: None, adapter_config: None, slots: None, instructions: Vec::new(), ..job.task() };
    job.export(task);
    let mut files: Vec<_> = std::fs::read_dir(job.bundle())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(files, ["README.md", "config.json", "manifest.json", "projector.safetensors"]);
    assert!(job.read().projector == job.projector);
    assert_refused(job.open(&job.bundle(), job.opening()), &["[instruct]"]);
}

#[test]
fn an_older_bundle_may_spell_its_metric_in_the_british_way() {
    assert_eq!(serde_json::from_value::<Metric>(json!("centred")).unwrap(), Metric::Centered);
    for metric in [Metric::Cosine, Metric::Centered, Metric::Whitened] {
        assert_eq!(serde_json::to_value(metric).unwrap(), metric.name());
    }
}

#[test]
fn what_stage_a_fitted_travels_with_the_bundle_and_is_checked() {
    let job = Job::new();
    let shape = job.projector.shape();
    let mean: Vec<f32> = (0..shape.output as u64).map(|i| uniform(4, i)).collect();
    let matrix = (0..(shape.output * shape.output) as u64).map(|i| uniform(5, i)).collect();
    let statistics = Statistics { metric: Some(Whitening::new(mean, Some(matrix)).unwrap()), ..Statistics::default() };
    let with = |statistics: &Statistics| {
        let path = "align/k/statistics.safetensors";
        Export { statistics: Some(job.put(path, statistics.to_safetensors().unwrap().into())), ..job.task() }
    };
    job.export(with(&statistics));
    let bundle = job.read();
    assert_eq!(bundle.statistics, statistics);
    assert_eq!(bundle.config.statistics.unwrap().metric, Metric::Whitened);
    assert!(job.open(&job.bundle(), job.opening()).is_ok());

    let narrow = Some(Whitening::new(vec![0.0; shape.output - 1], None).unwrap());
    let narrow = Statistics { metric: narrow, ..Statistics::default() };
    assert_refused(job.run(with(&narrow)), &["statistics.safetensors", "teacher vectors"]);
}

/// Loads the adapter with PEFT. Prints the largest difference of its logits from those of llink, and the largest of
/// llink's.
const WITH_PEFT: &str = r#"
import json, sys, torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

bundle, decoder, probe = sys.argv[1:]
probe = json.load(open(probe))
base = AutoModelForCausalLM.from_pretrained(decoder, dtype=torch.float32)
model = PeftModel(base, PeftConfig.from_pretrained(bundle)).eval()
loaded = model.load_adapter(bundle, "default")
missing = [key for key in loaded.missing_keys if "lora_" in key]
assert not missing and not loaded.unexpected_keys, (missing, loaded.unexpected_keys)
expected, found = set(get_peft_model_state_dict(model)), set(load_file(f"{bundle}/adapter_model.safetensors"))
assert expected == found, expected ^ found
ids, slots = torch.tensor([probe["ids"]]), torch.tensor(probe["slots"])
with torch.no_grad():
    embeddings = model.get_input_embeddings()(ids)
    embeddings[0, probe["places"]] = slots
    logits = model(inputs_embeds=embeddings).logits[0, -1]
    with model.disable_adapter():
        without = model(inputs_embeds=embeddings).logits[0, -1]
ours = torch.tensor(probe["logits"])
scale = ours.abs().max()
print(json.dumps({"apart": ((logits - ours).abs().max() / scale).item(),
                  "adapter": ((logits - without).abs().max() / scale).item()}))
"#;

#[test]
fn peft_loads_the_adapter_and_gives_our_logits() {
    let Some(python) = python_with(&["torch", "transformers", "peft"]) else {
        return;
    };
    let job = Job::new();
    job.export(job.task());
    let (decoder, bundle) = (decoder(), job.read());
    let prompt = decoder.slot_prompt("Translate this.", SLOTS).unwrap();
    let vector: Vec<f32> = (0..bundle.projector.shape().input as u64).map(|i| uniform(8, i)).collect();
    let expander = bundle.expander.as_ref().unwrap();
    let expanded = expander.expand(&bundle.projector.project(&vector).unwrap(), 0).unwrap();
    let adapter = LoadedAdapter::new(&bundle.adapter(decoder.config()).unwrap(), decoder.model()).unwrap();
    let logits = decoder.model().next_logits(&prompt, Some(&expanded), &adapter).unwrap();
    let slots: Vec<&[f32]> = expanded.chunks_exact(decoder.hidden_size()).collect();
    let probe = job.folder.path().join("probe.json");
    let content = json!({ "ids": prompt.ids, "places": prompt.slots, "slots": slots, "logits": logits });
    std::fs::write(&probe, content.to_string()).unwrap();
    let mut python = Command::new(python);
    let found = told_by(python.args(["-c", WITH_PEFT, &job.bundle()]).args([golden("decoder"), probe]));
    println!("PEFT's logits: {found}");
    assert!(found["apart"].as_f64().unwrap() < 1e-4, "{found}");
    assert!(found["adapter"].as_f64().unwrap() > 1e-2, "the adapter changes something: {found}");
}

/// Saves a decoder in bf16, as decoders are published.
const IN_BF16: &str = r#"
import shutil, sys, torch
from transformers import AutoModelForCausalLM

source, target = sys.argv[1:]
AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(target)
shutil.copy(f"{source}/tokenizer.json", target)
"#;

/// Compares a merged folder with PEFT's own merge of the bundle's adapter. Prints the largest difference of the logits,
/// the effect of the adapter on them, and the share of values that were rounded to another neighbor in bf16.
const MERGED: &str = r#"
import glob, json, sys, torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

bundle, decoder = sys.argv[1:]
read = lambda folder: {k: v for file in sorted(glob.glob(f"{folder}/*.safetensors")) for k, v in load_file(file).items()}
base, merged = read(decoder), read(f"{bundle}/merged")
describe = lambda tensors: {name: (t.dtype, t.shape) for name, t in tensors.items()}
assert describe(base) == describe(merged), describe(base).items() ^ describe(merged).items()
assert all(t.dtype == torch.bfloat16 for t in merged.values())

load = lambda folder: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
theirs = PeftModel.from_pretrained(load(decoder), bundle).merge_and_unload()
other = 0
for name, weight in theirs.state_dict().items():
    if name not in merged:
        continue  # a tied head
    ours, weight = merged[name].float(), weight.bfloat16().float()
    # Sums in another order may lie on the other side of the middle between two numbers of bf16.
    assert torch.all((ours - weight).abs() <= 2.0**-7 * weight.abs()), name
    other += (ours != weight).sum().item()
changed = [name for name in merged if not torch.equal(merged[name], base[name])]
assert changed and all("_proj." in name for name in changed), changed

model, with_adapter, without = load(f"{bundle}/merged"), PeftModel.from_pretrained(load(decoder), bundle), load(decoder)
ids = torch.arange(5, 45)[None]
with torch.no_grad():
    a, b, c = (m(input_ids=ids).logits for m in (model, with_adapter, without))
scale = b.abs().max()
AutoTokenizer.from_pretrained(f"{bundle}/merged")
print(json.dumps({"apart": ((a - b).abs().max() / scale).item(), "adapter": ((c - b).abs().max() / scale).item(),
                  "other": other / sum(t.numel() for t in merged.values())}))
"#;

#[test]
fn transformers_loads_the_merged_decoder_and_gives_pefts_logits() {
    let Some(python) = python_with(&["torch", "transformers", "peft"]) else {
        return;
    };
    let job = Job::new();
    let decoder = job.folder.path().join("bf16");
    let run = |script: &str, places: [&Path; 2]| told_by(Command::new(&python).args(["-c", script]).args(places));
    run(IN_BF16, [&golden("decoder"), &decoder]);
    job.export(Export { merged: true, decoder: Some(model(ModelRole::Decoder, &decoder)), ..job.task() });
    let found = run(MERGED, [Path::new(&job.bundle()), &decoder]);
    println!("the merged decoder's logits: {found}");
    let (apart, adapter) = (found["apart"].as_f64().unwrap(), found["adapter"].as_f64().unwrap());
    // bf16 keeps 8 bits, so each corrected weight is rounded by up to 0.4 %. Python's own merge is 0.008 apart.
    assert!(apart < 0.02 && adapter > 4.0 * apart, "{found}");
    assert!(found["other"].as_f64().unwrap() < 1e-3, "{found}");
}
