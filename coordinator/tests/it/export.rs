//! A job with Stage B writes a bundle, from which `generate` and the model card's own Python answer.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::{BUNDLED, Place, done, json_lines, says_all, text};
use crate::skip::python_with;
use llink_datasets::numbers::Scanner;
use llink_datasets::text::Splitter;
use llink_worker::device::Compute;
use llink_worker::models::Decoder;
use serde_json::Value;

/// Returns a job whose Stage B takes seconds, with everything that Stage A can fit.
fn with_stage_b() -> String {
    let job = BUNDLED.replace("output =", "recipe = \"sharp\"\noutput =");
    job.replace("learning_rate = 2e-3", "learning_rate = 2e-3\nnumbers = true") + EXPORT
}

const EXPORT: &str = "
[export]
encoder = \"somebody/tiny-encoder\"
decoder = \"somebody/tiny-decoder\"
license = \"apache-2.0\"
merged = true
";

fn bundle(place: &Place) -> String {
    let report = place.report();
    format!("out/{}", report["bundle"].as_str().unwrap())
}

fn piped(place: &Place, args: &[&str], input: &str) -> String {
    let mut child = place.command(args).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_jobs_bundle_answers_as_it_was_evaluated_in_every_way_of_asking() {
    let place = Place::new(&with_stage_b());
    let said = place.ok(&["submit", "job.toml"]);
    let folder = bundle(&place);
    assert!(said.contains("llink-coord generate --bundle") && said.contains(&folder[4..]), "{said}");
    assert!(place.ok(&["verify", &folder]).contains("all as the manifests say"));
    let card = place.read(&format!("{folder}/README.md"));
    let expected = [
        "base_model:\n- \"somebody/tiny-decoder\"\n- \"somebody/tiny-encoder\"\n",
        "license: \"apache-2.0\"",
        "- \"km\"",
        "| sentence pairs | 600 | 100 | sample |",
        "| 20 × 64 |",
        "| encoder alone | centered |",
        "| after Stage A | cosine |",
        "| after Stage A | whitened |",
        "| after Stage B, by mean slot | whitened |",
        "| recipe | sharp |",
        "the text's numbers in ASCII behind the slots",
        "whitened cosine, eps 0.01; encoder vectors standardized",
        "| after Stage B, by mean slot | cosine |",
        "vllm serve merged --enable-prompt-embeds",
        "hf upload OWNER/NAME .",
    ];
    says_all(&card, &expected);
    assert!(place.path(&folder).join("statistics.safetensors").is_file());

    let ask = ["generate", "--bundle", &folder, "--max-tokens", "12"];
    let batch = [&ask[..], &BATCH].concat();
    let (evaluated, answered) = answered_as_evaluated(&place, &batch);
    let input = place.read("in.jsonl");

    // A single text comes from the command line, a pipe and a dialogue.
    let (foreign, instruction) =
        (evaluated[0]["foreign"].as_str().unwrap(), evaluated[0]["instruction"].as_str().unwrap());
    let answer = format!("{}\n", answered[0]["generated"].as_str().unwrap());
    let asked = [&ask[..], &["--instruction", instruction]].concat();
    assert_eq!(place.ok(&[&asked[..], &[foreign]].concat()), answer);
    assert_eq!(piped(&place, &asked, &format!("{foreign}\n\n{foreign}\n")), answer.repeat(2));
    let dialogue = [&ask[..], &["--interactive", "--encoder", "/nowhere", foreign]].concat();
    let questions = format!("{instruction}\nsummarize\n\n{foreign}\n{instruction}\n");
    let heard = piped(&place, &dialogue, &questions);
    assert!(
        heard.starts_with(&answer) && heard.ends_with(&answer) && heard.len() > 2 * answer.len(),
        "the text is read once, and never again: {heard}"
    );

    // A batch that was stopped continues, and one with other settings is not mixed with it.
    let whole = place.read("answers.jsonl");
    place.write("answers.jsonl", &whole[..whole.len() - 30]);
    assert!(place.ok(&batch).contains("1 answers") && place.read("answers.jsonl") == whole);
    let hotter = [&batch[..], &["--temperature", "0.7"]].concat();
    assert!(place.fails(2, &hotter).contains("answers.jsonl:1:"));
    place.write("in.jsonl", format!("{}\n{{\"txt\": 1}}\n", input.lines().next().unwrap()));
    faulty_lines_cost_no_others_their_answer(&place, &ask, foreign);

    // Errors are reported.
    assert!(place.fails(2, &[&ask[..], &["--task", "rhyme", foreign]].concat()).contains("summarize"));
    assert!(place.fails(2, &[&ask[..], &["--top-p", "2", foreign]].concat()).contains("--top-p"));
    assert!(place.fails(3, &["generate", "--bundle", "out/align", foreign]).contains("no bundle here"));
    let shards = place.artifacts(&["shard"])[0].0.clone();
    let shard = format!("out/{}", shards.split('/').take(2).collect::<Vec<_>>().join("/"));
    assert!(place.fails(3, &["generate", "--bundle", &shard, foreign]).contains("`shard`"));

    // The output may be moved as a whole.
    std::fs::rename(place.path("out"), place.path("elsewhere")).unwrap();
    let asked = ["generate", "--bundle", "elsewhere", "--max-tokens", "12", "--no-cache", "--instruction", instruction];
    assert_eq!(place.ok(&[&asked[..], &[foreign]].concat()), answer);
    std::fs::rename(place.path("elsewhere"), place.path("out")).unwrap();
    the_cards_python_answers_alike(&place, &folder, foreign, instruction, answer.trim_end());
}

#[test]
fn a_bundle_whose_slots_read_windows_answers_as_it_was_evaluated() {
    let job = with_stage_b().replace("recipe = \"sharp\"\n", "");
    let read = ("windows = 4", "from the text's vector and those of its 4 windows");
    let place = answers_as_it_was_evaluated(&job, read, |_| true);

    // A job without windows takes everything up to Stage A from this one.
    let stages = ["shard", "models", "embed", "baseline", "align"];
    let before = place.artifacts(&stages);
    place.write("job.toml", job);
    place.ok(&["submit", "job.toml"]);
    assert_eq!(place.artifacts(&stages), before);
}

#[test]
fn a_bundle_whose_slots_read_sentences_answers_as_it_was_evaluated() {
    let job = with_stage_b().replace("recipe = \"sharp\"\n", "").replace("answers = 4\n", "answers = 8\nbase = true\n");
    let read = ("sentences = 2", "from the vectors of the text, a group for each of its sentences, at most 2");
    let place = answers_as_it_was_evaluated(&job, read, |foreign| Splitter::new(2).split(foreign).len() == 2);
    let report = place.read("out/report.json");
    assert!(report.contains("answers.base.chrf"), "{report}");
}

/// The arguments by which `generate` answers what was evaluated.
const BATCH: [&str; 4] = ["--jsonl", "in.jsonl", "--output", "answers.jsonl"];

/// Asks by `batch` what was evaluated, and returns the rows of both. The encoder reads one text here and a batch there, so its
/// vectors agree to rounding, and most answers are the same.
fn answered_as_evaluated(place: &Place, batch: &[&str]) -> (Vec<Value>, Vec<Value>) {
    let evaluated = json_lines(place.artifact("evaluate", "/answers.jsonl"));
    place.write("in.jsonl", evaluated.iter().map(|row| format!("{row}\n")).collect::<String>());
    says_all(&place.ok(batch), &[&format!("answers.jsonl: {} answers", evaluated.len())]);
    let answered = json_lines(place.path("answers.jsonl"));
    let same = |(ours, theirs): &(&Value, &Value)| ours["generated"] == theirs["answers"]["slots"];
    let equal = answered.iter().zip(&evaluated).filter(same).count();
    assert!(4 * equal >= 3 * evaluated.len(), "{equal} answers are those that were evaluated: {answered:#?}");
    (evaluated, answered)
}

/// Runs the job with the key `read` in `[instruct]`, and asks its bundle what was evaluated. The first text that is `told` is asked
/// about again, by llink and by the card's Python.
fn answers_as_it_was_evaluated(job: &str, (read, shown): (&str, &str), told: impl Fn(&str) -> bool) -> Place {
    let place = Place::new(&job.replace("numbers = true", &format!("numbers = true\n{read}")));
    let said = place.ok(&["submit", "job.toml"]);
    assert!(said.contains("windows"), "the stage is shown: {said}");
    let folder = bundle(&place);
    says_all(&place.read(&format!("{folder}/README.md")), &[shown]);
    let ask = ["generate", "--bundle", &folder, "--max-tokens", "12"];
    let (evaluated, answered) = answered_as_evaluated(&place, &[&ask[..], &BATCH].concat());
    let at = evaluated.iter().position(|row| told(row["foreign"].as_str().unwrap())).unwrap();
    let [foreign, instruction] = ["foreign", "instruction"].map(|key| evaluated[at][key].as_str().unwrap());
    // The vectors of the parts are kept, so the text needs no encoder any more.
    let asked = ["--instruction", instruction, "--encoder", "/nowhere", foreign];
    let answer = place.ok(&[&ask[..], &asked].concat());
    assert_eq!(answer.trim(), answered[at]["generated"].as_str().unwrap().trim());
    the_cards_python_answers_alike(&place, &folder, foreign, instruction, answer.trim_end());
    place
}

/// Tests byte order marks, white space, Python's own JSON and lines without text, in each form of input for many texts.
fn faulty_lines_cost_no_others_their_answer(place: &Place, ask: &[&str], foreign: &str) {
    let quoted = Value::from(foreign).to_string();
    let lines = [
        format!("\u{FEFF}{{\"text\":{quoted},\"id\":18446744073709551616}}\r"),
        "{\"text\":\"\u{200B}\"}".to_owned(),
        "{\"text\":null,\"id\":3}".to_owned(),
        String::new(),
        "text".to_owned(),
        format!("{{\"text\":{quoted},\"score\":NaN}}"),
    ];
    place.write("faulty.jsonl", lines.join("\n"));
    let batch = [ask, &["--jsonl", "faulty.jsonl", "--output", "faulty.out"]].concat();
    let named =
        ["faulty.jsonl:2: has nothing to read", "faulty.jsonl:3: has no \"text\"", "faulty.jsonl:5: is not JSON"];
    says_all(&text(&place.run(&batch)), &named);
    let answers = place.read("faulty.out");
    assert!(answers.starts_with(&format!("{{\"text\":{quoted},\"id\":18446744073709551616,")), "{answers}");
    let found = json_lines(place.path("faulty.out"));
    let generated: Vec<bool> = found.iter().map(|row| row["generated"].is_string()).collect();
    assert_eq!(generated, [true, false, false, false, true]);
    // The run continues after a stop, also over faulty lines.
    let kept: String = answers.lines().take(3).map(|line| format!("{line}\n")).collect();
    place.write("faulty.out", kept);
    assert!(place.ok(&batch).contains("2 answers"));
    assert_eq!(place.read("faulty.out"), answers);

    let texts = [&b"\xEF\xBB\xBF"[..], foreign.as_bytes(), b"\r\n\xE2\x80\x8B\ncaf\xE9\n", foreign.as_bytes()].concat();
    place.write("faulty.txt", &texts);
    let one = format!("{}\n", found[0]["generated"].as_str().unwrap());
    let output = done(&mut place.command(&[ask, &["--file", "faulty.txt"]].concat()));
    let (said, heard) = (String::from_utf8(output.stderr).unwrap(), String::from_utf8(output.stdout).unwrap());
    assert_eq!(heard, format!("{one}\n\n{one}"), "{said}");
    says_all(&said, &["faulty.txt:2: ", "faulty.txt:3: is not UTF-8"]);
    place.write("none.jsonl", "[1]\n");
    place.refuses(3, &[ask, &["--jsonl", "none.jsonl"]].concat(), &["no line could be answered", "none.jsonl:1: "]);
}

/// Runs the model card's own Python, with the models' folders in it.
fn the_cards_python_answers_alike(place: &Place, folder: &str, foreign: &str, instruction: &str, answer: &str) {
    let Some(python) = python_with(&["torch", "transformers", "peft"]) else {
        return;
    };
    let card = place.read(&format!("{folder}/README.md"));
    let (_, code) = card.split_once("```python\n").unwrap();
    let (code, _) = code.split_once("```").unwrap();
    let model = |name: &str| {
        let models = std::fs::read_dir(place.path("out/models")).unwrap().next().unwrap().unwrap();
        models.path().join(name).display().to_string()
    };
    let places = "bundle, encoder_id, decoder_id = \".\", \"somebody/tiny-encoder\", \"somebody/tiny-decoder\"";
    assert!(code.contains(places), "{code}");
    let (encoder, decoder) = (model("encoder"), model("decoder"));
    let code = code.replace(places, &format!("bundle, encoder_id, decoder_id = \".\", {encoder:?}, {decoder:?}"));
    let (code, _) = code.split_once("\nprint(").unwrap();
    let code = code.replace("max_new_tokens=128", "max_new_tokens=12");
    // A string has the same form in JSON and in Python. The card cleans a text as llink does.
    let untidy = format!("  {foreign}\u{200B}\u{200B} ");
    let seen = foreign;
    let (foreign, instruction) = (Value::from(untidy), Value::from(instruction));
    let (slots, sentences) = match code.contains("def sentences") {
        true => (SLOTS_OF_SENTENCES, Splitter::new(2).split(seen).len()),
        false => ("slots(vector(foreign))", 1),
    };
    let cpu = Compute::cpu();
    let prompt = Decoder::load(Path::new(&decoder), &cpu.device, cpu.dtype)
        .unwrap()
        .prompt_about(instruction.as_str().unwrap(), 8 * sentences, seen, Some(&Scanner::default()))
        .unwrap();
    let served = card.split("```python\n").nth(2).unwrap().split_once("```").unwrap().0;
    let ask = VLLM_IS_ASKED
        .replace("slots(vector(foreign))", slots)
        .replace("FOREIGN", &foreign.to_string())
        .replace("INSTRUCTION", &instruction.to_string())
        .replace("IDS", &format!("{:?}", prompt.ids))
        .replace("PLACES", &format!("{:?}", prompt.slots));
    let code = format!("{HEADER_IS_READ}{code}\n{served}{ask}");
    let run = done(Command::new(&python).args(["-c", &code]).current_dir(place.path(folder)));
    assert_eq!(String::from_utf8(run.stdout).unwrap().trim(), answer.trim());
}

/// The slots of a text that is split.
const SLOTS_OF_SENTENCES: &str = "torch.cat([slots(vector(sentence)) for sentence in sentences(foreign)])";

/// Answers as the card says, and compares the prompt that a server of vLLM gets with llink's tokens and the card's slots. The
/// server here stands in for vLLM: it takes the request, and answers what the decoder without PEFT does with the embeddings.
const VLLM_IS_ASKED: &str = r#"
import sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer

sys.stdout.reconfigure(encoding="utf-8")
foreign, instruction, ids, places = FOREIGN, INSTRUCTION, IDS, PLACES
merged = AutoModelForCausalLM.from_pretrained("merged", dtype=torch.float32).eval()

class Server(BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        embeddings = torch.load(io.BytesIO(base64.b64decode(request["prompt_embeds"])), weights_only=True)
        assert self.path == "/v1/completions" and request["model"] == "merged"
        assert embeddings.dtype == torch.bfloat16 and embeddings.ndim == 2
        table = merged.get_input_embeddings().weight
        expected = table[[0 if place in places else token for place, token in enumerate(ids)]].clone()
        expected[places] = slots(vector(foreign))
        assert torch.equal(embeddings, expected.detach().bfloat16())
        said = merged.generate(inputs_embeds=embeddings.float()[None], attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                               do_sample=False, max_new_tokens=12, eos_token_id=request["stop_token_ids"],
                               pad_token_id=request["stop_token_ids"][0])
        said = json.dumps({"choices": [{"text": speaker.decode(said[0], skip_special_tokens=True)}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_):
        pass

server = HTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
assert isinstance(ask(foreign, instruction, f"http://127.0.0.1:{server.server_port}"), str)
print(answer(foreign, instruction))
"#;

/// Reads the card's header with the hub's own library. What the hub itself checks needs a network.
const HEADER_IS_READ: &str = r#"
import sys
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id

data = ModelCard.load("README.md", ignore_metadata_errors=False).data.to_dict()
assert set(data) == {"language", "license", "base_model", "library_name", "pipeline_tag", "tags"}, data
assert data["language"] == ["en", "km"] and data["license"] == "apache-2.0", data
assert (data["library_name"], data["pipeline_tag"]) == ("peft", "text-generation"), data
[validate_repo_id(name) for name in data["base_model"]]
assert all(isinstance(tag, str) for tag in data["tags"]), data
"#;

#[test]
fn the_plan_knows_the_tiny_models_that_are_shipped() {
    use llink_quickstart::models::{tiny_decoder, tiny_encoder};
    let files = tiny_encoder().into_iter().chain(tiny_decoder());
    let bytes: Vec<u8> = files.flat_map(|(_, content)| content).collect();
    let found = llink_datasets::manifest::sha256_hex(&bytes);
    // Other models are another input, so results of the old ones must not count for them.
    assert_eq!(&found[..16], llink_coord::plan::TINY_MODELS_STAMP);
}

const SAMPLE_BUNDLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/sample-bundle");

#[test]
fn the_sample_bundle_answers_before_any_training() {
    let place = Place::new("");
    // No training had this seed.
    let short = |(_, khmer): &(String, String)| khmer.chars().count() <= 70;
    let pairs: Vec<(String, String)> = llink_quickstart::sample::pairs(400, 123_456).filter(short).take(40).collect();
    let input: String = pairs.iter().map(|(_, khmer)| format!("{khmer}\n")).collect();
    let said = piped(&place, &["generate", "--bundle", SAMPLE_BUNDLE], &input);
    let right = said.lines().zip(&pairs).filter(|(said, (english, _))| said == english);
    let right = right.count();
    assert!(right >= 12, "{right} of 40 sentences are translated word for word: {said}");
}

#[test]
fn stage_b_starts_from_a_bundle_and_follows_its_content() {
    let job = with_stage_b().replace("recipe = \"sharp\"\n", "").replace(
        "[instruct]\nsteps = 12\n",
        &format!(
            "projector_hidden = 512\n[instruct]\nsteps = 1\nfrom = {SAMPLE_BUNDLE:?}\nexpander_hidden = 512\nprojector_learning_rate = 1e-5\n"
        ),
    );
    let job = job.replace("train = 120\n", "train = 120\ntasks = [\"translate\"]\nmax_chars = 70\n");
    let job = job.replace("learning_rate = 2e-3", "learning_rate = 1e-5");
    let job = job.replace("answers = 4\nmax_answer_tokens = 12", "answers = 20");
    let place = Place::new(&job);
    let said = place.ok(&["submit", "job.toml"]);
    let answers = said.lines().find_map(|line| line.trim().strip_prefix("with slots")).unwrap();
    let recall: f64 = answers.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(recall > 0.7, "one step from random numbers gives no such answers: {said}");
    assert!(place.ok(&["submit", "job.toml"]).contains("nothing to do"));

    // A bundle of other shapes is refused with the key that differs.
    for (key, line) in [("expander_hidden", "expander_hidden = 256"), ("windows", "expander_hidden = 512\nwindows = 4")]
    {
        place.write("job.toml", job.replace("expander_hidden = 512", line));
        place.refuses(3, &["submit", "job.toml"], &["`instruct.from`", &format!("instruct.{key}")]);
    }
    // A folder without a bundle is refused before anything runs.
    place.write("job.toml", job.replace(SAMPLE_BUNDLE, "out/align"));
    place.refuses(3, &["submit", "job.toml"], &["`instruct.from`", "no bundle"]);
}
