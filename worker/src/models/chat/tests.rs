//! Compares prompts with Transformers' `apply_chat_template`. `tests/fixtures/chat/make.py` wrote the folders and the
//! expected results.

use std::path::PathBuf;

use serde_json::Value;

use super::super::conventions::Conventions;
use super::super::tokenizer::{SpecialTokens, Tokenizer};
use super::{Chat, PLAIN, Part, Passages, Turn};
use crate::Error;
use crate::ops::NO_TOKEN;
use crate::skip::python_with;

const FOLDERS: [(&str, &str); 6] = [
    ("llama-3.2", "<|eot_id|>"),
    ("smollm2", "<|im_end|>"),
    ("qwen2.5", "<|im_end|>"),
    ("mistral", "</s>"),
    ("mistral-v3", "</s>"),
    ("gemma", "<end_of_turn>"),
];

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn expected() -> Value {
    serde_json::from_slice(&std::fs::read(fixtures().join("chat/expected.json")).unwrap()).unwrap()
}

fn open(folder: &str) -> (Tokenizer, Conventions, Chat) {
    let dir = fixtures().join(folder);
    let tokenizer = Tokenizer::load(&dir).unwrap().guarded().unwrap();
    let conventions = Conventions::read(&dir, &tokenizer).unwrap();
    let chat = Chat::new(&conventions, &tokenizer, tokenizer.vocab_size()).unwrap();
    (tokenizer, conventions, chat)
}

fn ids(value: &Value) -> Vec<u32> {
    let id = |id: &Value| id.as_u64().map_or(NO_TOKEN, |id| id as u32);
    value.as_array().unwrap().iter().map(id).collect()
}

#[test]
fn prompts_equal_those_of_transformers_to_the_token() {
    let expected = expected();
    for (folder, end) in FOLDERS {
        let (tokenizer, _, chat) = open(&format!("chat/{folder}"));
        let prompts = expected["prompts"][folder].as_array().unwrap();
        for (question, prompt) in expected["questions"].as_array().unwrap().iter().zip(prompts) {
            let (instruction, text) = (question[0].as_str().unwrap(), question[1].as_str().unwrap());
            let direct = chat.direct_prompt(&tokenizer, instruction, text, 512).unwrap();
            assert_eq!(direct.ids, ids(&prompt["direct"]), "{folder}: {text}");
            let slots = chat.slot_prompt(&tokenizer, instruction, 3, "").unwrap();
            let wanted = ids(&prompt["slots"]);
            let places: Vec<usize> = (0..wanted.len()).filter(|at| wanted[*at] == NO_TOKEN).collect();
            assert_eq!(slots.slots, places, "{folder}: {instruction}");
            let without: Vec<u32> = slots
                .ids
                .iter()
                .enumerate()
                .map(|(at, id)| if places.contains(&at) { NO_TOKEN } else { *id })
                .collect();
            assert_eq!(without, wanted, "{folder}: {instruction}");
            let answer = chat.answer_tokens(&tokenizer, text).unwrap();
            let wanted: Vec<u32> = [ids(&prompt["answer"]), vec![tokenizer.require(end).unwrap()]].concat();
            assert_eq!(answer, wanted, "{folder}: {text}");
        }
    }
}

#[test]
fn transformers_still_makes_the_prompts_that_are_expected() {
    let Some(python) = python_with(&["transformers", "jinja2"]) else {
        return;
    };
    let made = std::process::Command::new(python)
        .args([fixtures().join("chat/make.py").to_str().unwrap(), "--check"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{said}");
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(made, expected());
}

#[test]
fn text_that_looks_like_a_control_token_stays_text() {
    for (folder, _) in FOLDERS {
        let (tokenizer, _, chat) = open(&format!("chat/{folder}"));
        let controls: Vec<u32> = tokenizer.controls().iter().map(|(_, id)| *id).collect();
        let count = |ids: &[u32]| ids.iter().filter(|id| controls.contains(id)).count();
        let ordinary = chat.direct_prompt(&tokenizer, "Say it.", "Hello.", 512).unwrap();
        for (control, _) in tokenizer.controls() {
            let hostile = format!("Hello. {control}\u{10ffff}\u{f0001}{control}");
            let prompts = [
                chat.direct_prompt(&tokenizer, "Say it.", &hostile, 512).unwrap(),
                chat.direct_prompt(&tokenizer, &hostile, "Hello.", 512).unwrap(),
            ];
            for prompt in prompts {
                assert_eq!(count(&prompt.ids), count(&ordinary.ids), "{folder}: {control}");
            }
            let answer = chat.answer_tokens(&tokenizer, &format!("a{control}b")).unwrap();
            assert_eq!(count(&answer), 1, "{folder}: {control}");
            let said = tokenizer.decode(&answer).unwrap();
            assert_eq!(said, format!("a{control}b"), "{folder}");
            let slots = chat.slot_prompt(&tokenizer, &hostile, 3, "").unwrap();
            assert_eq!(slots.slots.len(), 3, "{folder}: {control}");
        }
    }
}

#[test]
fn a_conversation_of_one_question_is_the_prompt_of_training() {
    for (folder, _) in FOLDERS {
        let (tokenizer, _, chat) = open(&format!("chat/{folder}"));
        for (control, _) in tokenizer.controls() {
            let (instruction, text) = (format!("Say{control} it."), format!("ត្រី{control}\u{10ffff}\u{f0000}"));
            let turns = [Turn { role: "user", parts: vec![Part::Text(&instruction), Part::Passage(&text)] }];
            let slots = chat.conversation(&tokenizer, &turns, Passages::Slots(&[3], None)).unwrap();
            assert_eq!(slots, chat.slot_prompt(&tokenizer, &instruction, 3, "").unwrap(), "{folder}");
            let direct = chat.conversation(&tokenizer, &turns, Passages::Text(9)).unwrap();
            assert_eq!(direct, chat.direct_prompt(&tokenizer, &instruction, &text, 9).unwrap(), "{folder}");
        }
    }
}

#[test]
fn a_conversation_has_the_templates_turns_with_slots_on_their_own_lines() {
    let (tokenizer, _, chat) = open("chat/smollm2");
    let turn = |role, parts: &[Part<'static>]| Turn { role, parts: parts.to_vec() };
    let turns = [
        turn("system", &[Part::Text("Be brief.")]),
        turn("user", &[Part::Text("Compare"), Part::Passage("ត្រី"), Part::Passage("ឆ្មា")]),
        turn("assistant", &[Part::Text(" Fish, cat. ")]),
        turn("user", &[Part::Passage("ឆ្កែ"), Part::Text("Go on.")]),
    ];
    let prompt = chat.conversation(&tokenizer, &turns, Passages::Slots(&[2, 2, 2], None)).unwrap();
    let said = |slots: &str| {
        format!(
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nCompare\n{slots}\n{slots}\n<|im_end|>\n\
             <|im_start|>assistant\n Fish, cat. <|im_end|>\n<|im_start|>user\n{slots}\nGo on.<|im_end|>\n\
             <|im_start|>assistant\n"
        )
    };
    let slots = "<spare_2><spare_3>";
    let expected = tokenizer.encode_marked(&tokenizer.marked(&said(slots))).unwrap();
    assert_eq!(prompt.ids, expected);
    let first = tokenizer.require("<spare_2>").unwrap();
    let places = (0..prompt.ids.len()).filter(|at| (first..first + 2).contains(&prompt.ids[*at]));
    assert_eq!(prompt.slots, places.collect::<Vec<_>>());
    assert_eq!(prompt.slots.len(), 6);
    // A passage of two sentences has twice as many.
    let longer = chat.conversation(&tokenizer, &turns, Passages::Slots(&[2, 4, 2], None)).unwrap();
    assert_eq!(longer.slots[..4], prompt.slots[..4]);
    assert_eq!(longer.slots[4..], [prompt.slots[3] + 1, prompt.slots[3] + 2, prompt.slots[4] + 2, prompt.slots[5] + 2]);
    let texts = chat.conversation(&tokenizer, &turns[3..], Passages::Text(99)).unwrap();
    assert_eq!(texts.slots, [] as [usize; 0]);
    assert!(tokenizer.decode(&texts.ids).unwrap().contains("ឆ្កែ\nGo on."));
}

#[test]
fn a_conversation_that_the_template_does_not_allow_is_refused_with_what_it_says() {
    let turn = |role| Turn { role, parts: vec![Part::Text("Hello.")] };
    for (folder, roles, wanted) in [
        ("gemma", &["system", "user"][..], "refuses this conversation"),
        ("mistral", &["user", "user"], "refuses this conversation"),
        ("mistral", &["user", "tool"], "conversation"),
    ] {
        let (tokenizer, _, chat) = open(&format!("chat/{folder}"));
        let turns: Vec<Turn<'_>> = roles.iter().map(|role| turn(role)).collect();
        let error = chat.conversation(&tokenizer, &turns, Passages::Slots(&[], None)).unwrap_err();
        assert!(matches!(&error, Error::Input(said) if said.contains(wanted)), "{folder}: {error}");
    }
}

#[test]
fn slots_stand_on_tokens_that_no_text_uses_and_do_without() {
    let (tokenizer, _, chat) = open("chat/llama-3.2");
    let reserved = |number: u32| tokenizer.require(&format!("<|reserved_special_token_{number}|>")).unwrap();
    assert_eq!(chat.teacher_slot(), reserved(0));
    assert_eq!(chat.slot_ids(8), (2..10).map(reserved).collect::<Vec<_>>());
    assert!(chat.slot_ids(11).is_empty(), "there are twelve in all");
    let (tokenizer, _, chat) = open("chat/smollm2");
    let spare = |number: u32| tokenizer.require(&format!("<spare_{number}>")).unwrap();
    assert_eq!((chat.teacher_slot(), chat.slot_ids(7)), (spare(0), &[2, 3, 4, 5, 6, 7, 8].map(spare)[..]));
    let (tokenizer, _, chat) = open("chat/mistral-v3");
    assert_eq!(chat.teacher_slot(), tokenizer.require("[control_8]").unwrap());
    assert_eq!(chat.slot_ids(2)[0], tokenizer.require("[control_10]").unwrap());
    let (_, _, chat) = open("chat/mistral");
    assert_eq!((chat.teacher_slot(), chat.slot_ids(1)), (NO_TOKEN, &[][..]));
    let dir = fixtures().join("chat/mistral");
    let tokenizer = Tokenizer::load(&dir).unwrap().guarded().unwrap();
    let conventions = Conventions::read(&dir, &tokenizer).unwrap();
    let tokens = tokenizer.vocab_size() as u32;
    let chat = Chat::new(&conventions, &tokenizer, tokens as usize + 5).unwrap();
    assert_eq!((chat.teacher_slot(), chat.slot_ids(3)), (tokens, &[tokens + 2, tokens + 3, tokens + 4][..]));
}

#[test]
fn a_folder_without_a_template_speaks_llama_3_or_plainly() {
    let (tokenizer, conventions, chat) = open("golden/seed8/decoder");
    assert_eq!(conventions.chat_template, None);
    let form = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{instruction}\n{slots}\n\
                <|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n";
    assert_eq!(chat.form().text("{slots}"), form);
    assert_eq!(chat.stop(), [tokenizer.require("<|eot_id|>").unwrap()]);
    let (tokenizer, mut conventions, _) = open("chat/mistral");
    conventions.chat_template = None;
    let chat = Chat::new(&conventions, &tokenizer, tokenizer.vocab_size()).unwrap();
    assert_eq!(chat.form().text("{text}"), "<s>{instruction}\n{text}\n\n");
    assert_eq!(chat.stop(), [2]);
    conventions.named.remove("eos_token");
    let error = Chat::new(&conventions, &tokenizer, tokenizer.vocab_size()).unwrap_err();
    assert!(error.to_string().contains("`eos_token`"), "{error}");
    // The advice of the error works.
    conventions.chat_template = Some(PLAIN.replace("{{ eos_token }}", "</s>"));
    assert!(Chat::new(&conventions, &tokenizer, tokenizer.vocab_size()).is_ok());
}

#[test]
fn a_template_that_does_not_work_is_refused_with_what_it_says() {
    let (tokenizer, mut conventions, _) = open("chat/mistral");
    for (template, wanted) in [
        ("{{ raise_exception('no users') }}", "no users"),
        ("{% for m in %}", "can't be rendered"),
        ("{{ messages[0].content[:3] }}", "does not show"),
        ("{{ messages[0].content }}{{ messages[0].content }}", "does not show"),
    ] {
        conventions.chat_template = Some(template.into());
        let error = Chat::new(&conventions, &tokenizer, tokenizer.vocab_size()).unwrap_err();
        assert!(matches!(error, Error::Model { .. }) && error.to_string().contains(wanted), "{error}");
    }
}

#[test]
fn a_text_is_cut_between_characters() {
    for (folder, _) in FOLDERS {
        let (tokenizer, ..) = open(&format!("chat/{folder}"));
        let text = "ត្រី fish 12345";
        let whole = tokenizer.encode(text, SpecialTokens::Omit).unwrap().len();
        let mut cuts = Vec::new();
        for most in 0..=whole {
            let cut = tokenizer.cut(text, most).unwrap();
            assert!(text.starts_with(cut));
            assert!(tokenizer.encode(cut, SpecialTokens::Omit).unwrap().len() <= most, "{folder}: {most}");
            cuts.push(cut);
        }
        assert_eq!(cuts[whole], text, "{folder}");
        assert_eq!(tokenizer.cut(text, usize::MAX).unwrap(), text);
    }
}

#[test]
fn what_a_text_begins_with_follows_the_folders_files() {
    let source = fixtures().join("chat/mistral");
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(source.join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap().guarded().unwrap();
    let begins = |files: &[(&str, &str)]| {
        for name in ["config.json", "tokenizer_config.json", "special_tokens_map.json"] {
            let content = files.iter().find(|(file, _)| *file == name).map_or("{}", |(_, content)| content);
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        Conventions::read(dir.path(), &tokenizer).unwrap().begin
    };
    let config = ("config.json", r#"{"bos_token_id": 1}"#);
    assert_eq!(begins(&[]), None);
    assert_eq!(begins(&[config]), Some(1));
    assert_eq!(begins(&[("config.json", r#"{"bos_token_id": 300}"#)]), None, "an ordinary token");
    assert_eq!(begins(&[config, ("tokenizer_config.json", r#"{"bos_token": {"content": "</s>"}}"#)]), Some(2));
    assert_eq!(begins(&[config, ("special_tokens_map.json", "\u{feff}{\"bos_token\": \"<unk>\"}")]), Some(0));
    assert_eq!(begins(&[config, ("tokenizer_config.json", r#"{"bos_token": null}"#)]), None);
    assert_eq!(begins(&[config, ("tokenizer_config.json", r#"{"add_bos_token": false}"#)]), None);
    assert_eq!(begins(&[config, ("tokenizer_config.json", r#"{"add_bos_token": true}"#)]), Some(1));
    assert_eq!(begins(&[("config.json", r#"{"model_type": "qwen3", "bos_token_id": 1}"#)]), None);
}
