//! The model card of a bundle: its data, its training, its quality, and how to load it.

use std::fmt::Write;

use llink_datasets::manifest::Manifest;
use llink_datasets::measured::{self, AnswerCost};
use llink_datasets::role::{Corpus, Role, Side};
use llink_proto::settings::{AlignSettings, InstructArm, InstructSettings, Metric, TextParts};

use super::super::{Inputs, PlanError, StageName, earlier, fact, instructions_of};
use super::{STAGE, arm, names};
use crate::job::ExportSection;

const WITH_SLOTS: &str = include_str!("load_slots.py");
const DIRECT: &str = include_str!("load_direct.py");
const CLEAN_TEXT: &str = include_str!("clean_text.py");
/// Python code that reads a text with the encoder, and with the dense layers that some encoders have.
const READ_TEXT: &str = include_str!("read_text.py");
const READ_DENSE: &str = include_str!("read_dense.py");
const READ_NUMBERS: &str = include_str!("read_numbers.py");
/// Python code that reads the windows of a text, and what each adds to its slots.
const READ_WINDOWS: &str = include_str!("read_windows.py");
const ADD_WINDOWS: &str = include_str!("add_windows.py");
/// Python code that splits a text into sentences.
const READ_SENTENCES: &str = include_str!("read_sentences.py");
/// The slots of a text that is not split, and of one that is.
const SLOTS_OF_TEXT: &str = "slots(vector(text))";
const SLOTS_OF_SENTENCES: &str = "torch.cat([slots(vector(sentence)) for sentence in sentences(text)])";
const PROJECTOR: &str = include_str!("load_projector.py");

/// Python code that answers with the merged decoder in a server of vLLM. It continues [`WITH_SLOTS`].
const WITH_VLLM: &str = include_str!("ask_vllm.py");
const UPLOAD: &str =
    "## Publish\n\n`hf upload OWNER/NAME .` puts this folder on the Hugging Face hub, with this card as its page.\n";

/// Returns `README.md` for the Hugging Face hub. It does not depend on when or where the job ran.
pub(super) fn card(inputs: &Inputs<'_>) -> Result<String, PlanError> {
    let job = inputs.job;
    let (encoder, decoder) = names(inputs);
    let language = ExportSection::language_of(job);
    let mut text = front_matter(inputs, &encoder, &decoder, language);
    let mut add = |part: String| text.push_str(&part);
    let reads = language.map_or_else(|| "a foreign language".to_owned(), |code| format!("`{code}`"));
    add(format!("# {}\n\n", job.name));
    add(match arm(job) {
        Some(InstructArm::Slots) => format!(
            "{decoder} reads {reads} through the eyes of {encoder}: a frozen encoder turns a sentence into a vector, a projector \
             lands it in the decoder's hidden space, and {} soft slots in the prompt stand for it. A LoRA adapter teaches the \
             decoder to use them ([Languages are Modalities](https://arxiv.org/abs/2510.27254)).\n\n",
            job.instruct.as_ref().map_or(0, |section| section.slots)
        ),
        Some(InstructArm::Direct) => format!(
            "A LoRA adapter for {decoder}, fine-tuned on {reads} text in its own tokens: what soft slots are compared with. The \
             projector from {encoder}'s vectors to the decoder's hidden space lies beside it.\n\n"
        ),
        None => format!(
            "A projector from {encoder}'s vectors of {reads} sentences to the hidden space of {decoder}, where they lie near those \
             of their English translations ([Languages are Modalities](https://arxiv.org/abs/2510.27254), Stage A).\n\n"
        ),
    });
    add(data(inputs)?);
    add(settings(inputs));
    add(measured(earlier(STAGE, StageName::Evaluate, inputs)?));
    let dense = fact(STAGE, earlier(STAGE, StageName::Models, inputs)?, "encoder.dense")?;
    let parts = job.instruct.as_ref().and_then(InstructSettings::text_parts).unwrap_or_default();
    let reads = Reads {
        numbers: job.instruct.as_ref().is_some_and(|section| section.numbers),
        windows: parts.windows > 0,
        sentences: parts.sentences > 0,
    };
    add(usage(arm(job), &encoder, &decoder, dense, reads));
    if job.export.merged {
        add(merged(arm(job), reads));
    }
    add(UPLOAD.to_owned());
    Ok(text)
}

/// What the prompt takes from a text beside its vector.
#[derive(Clone, Copy, Default)]
struct Reads {
    numbers: bool,
    windows: bool,
    sentences: bool,
}

fn front_matter(inputs: &Inputs<'_>, encoder: &str, decoder: &str, language: Option<&str>) -> String {
    // A quoted string is the same in JSON and YAML.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let mut yaml = "---\nlanguage:\n- en\n".to_owned();
    if let Some(language) = language {
        let _ = writeln!(yaml, "- {}", quoted(language));
    }
    if let Some(license) = &inputs.job.export.license {
        let _ = writeln!(yaml, "license: {}", quoted(license));
    }
    // Names that are not the hub's would be dead links there.
    let on_the_hub: Vec<&str> = [decoder, encoder].into_iter().filter(|n| n.contains('/')).collect();
    if !on_the_hub.is_empty() {
        yaml.push_str("base_model:\n");
        on_the_hub.iter().for_each(|name| {
            let _ = writeln!(yaml, "- {}", quoted(name));
        });
    }
    if inputs.job.instruct.is_some() {
        yaml.push_str("library_name: peft\npipeline_tag: text-generation\n");
    } else {
        yaml.push_str("library_name: llink\npipeline_tag: feature-extraction\n");
    }
    yaml.push_str("tags:\n- llink\n- cross-lingual\n");
    if inputs.job.instruct.is_some() {
        yaml.push_str("- lora\n");
    }
    yaml.push_str("---\n\n");
    yaml
}

fn data(inputs: &Inputs<'_>) -> Result<String, PlanError> {
    let rows = |manifest: &Manifest, role: Role| -> String {
        let rows = manifest.artifacts.iter().filter(|a| a.role == role).map(|a| a.rows);
        rows.sum::<u64>().to_string()
    };
    let shard = earlier(STAGE, StageName::Shard, inputs)?;
    let mut text = "## Training data\n\n| | rows | held out | source |\n| --- | ---: | ---: | --- |\n".to_owned();
    let files = |sources: &crate::job::Sources| sources.labels().join(", ");
    let _ = writeln!(
        text,
        "| sentence pairs | {} | {} | {} |",
        rows(shard, Role::Shard(Corpus::Pairs, Side::Train)),
        rows(shard, Role::Shard(Corpus::Pairs, Side::Holdout)),
        files(&inputs.job.corpus.source)
    );
    if inputs.job.instruct.is_some() {
        let made = instructions_of(STAGE, inputs)?;
        let source = match (&inputs.job.synthesize, &inputs.job.instructions) {
            (Some(section), _) => format!("answers of {} about the pairs", section.model),
            (None, Some(section)) => files(&section.source),
            (None, None) => String::new(),
        };
        let _ = writeln!(
            text,
            "| instructions | {} | {} | {source} |",
            rows(made, Role::Shard(Corpus::Instructions, Side::Train)),
            rows(made, Role::Shard(Corpus::Instructions, Side::Holdout)),
        );
    }
    text.push('\n');
    Ok(text)
}

fn settings(inputs: &Inputs<'_>) -> String {
    let a = &inputs.job.align;
    let mut text = format!(
        "## Training\n\n| | Stage A: projector |\n| --- | --- |\n\
         | recipe | {} |\n| teacher | {} |\n| metric | {} |\n\
         | steps × batch | {} × {} |\n| loss | symmetric InfoNCE, τ {} to {}, {} hardest of {} queued negatives; {} direction, {} \
         log-norm |\n\
         | optimizer | AdamW {}/{}, weight decay {}, clip {}; {} to {}, cosine, {} steps of warm-up |\n| dropout | {} |\n\
         | seed | {} |\n\n",
        inputs.job.recipe,
        inputs.job.embed.teacher,
        metric(a),
        a.steps,
        a.batch,
        a.temperature_start,
        a.temperature_end,
        a.hard_negatives,
        a.queue,
        a.direction_weight,
        a.log_norm_weight,
        a.beta1,
        a.beta2,
        a.weight_decay,
        a.gradient_clip,
        a.learning_rate,
        a.learning_rate_floor,
        a.warmup_steps,
        a.dropout,
        inputs.job.seed,
    );
    if let Some(section) = &inputs.job.instruct {
        text.push_str(&stage_b(section, arm(inputs.job) == Some(InstructArm::Slots)));
    }
    text
}

/// Describes the metric, and what was fitted on the training split for it.
fn metric(a: &AlignSettings) -> String {
    let mut text = match a.metric {
        Metric::Cosine => "cosine".to_owned(),
        Metric::Centered => "cosine around the teachers' mean".to_owned(),
        Metric::Whitened => format!("whitened cosine, eps {}", a.whitening_eps),
    };
    if a.standardize {
        text.push_str("; encoder vectors standardized (folded into `projector.safetensors`)");
    }
    if a.starts_at_teachers() {
        text.push_str("; LayerNorm started at the teachers' deviation and mean");
    }
    text
}

fn stage_b(i: &InstructSettings, with_slots: bool) -> String {
    let mut length = match i.steps {
        None => format!("{} epochs, batch {}", i.epochs, i.batch),
        Some(steps) => format!("{steps} steps, batch {}", i.batch),
    };
    if i.from.is_some() {
        length.push_str(", from the parts of another bundle");
    }
    let mut text = format!(
        "| | Stage B: adapter{} |\n| --- | --- |\n| length | {length} |\n\
         | LoRA | rank {}, alpha {}, dropout {} on q, k, v, o, gate, up and down |\n\
         | optimizer | AdamW {}/{}, weight decay {}, clip {}; linear, {} % warm-up; LoRA {}{} |\n",
        if with_slots { " and slots" } else { "" },
        i.lora_rank,
        i.lora_alpha,
        i.lora_dropout,
        i.beta1,
        i.beta2,
        i.weight_decay,
        i.gradient_clip,
        100.0 * i.warmup_share,
        i.learning_rate,
        match with_slots {
            true => format!(", expander {}, scale {}", i.expander_learning_rate, i.scale_learning_rate),
            false => String::new(),
        },
    );
    if with_slots {
        let _ = writeln!(
            text,
            "{}{}| beside the answers' loss | {} usage contrast every {} steps, {} cosine, {} InfoNCE at τ {} |",
            if i.numbers { "| prompt | the text's numbers in ASCII behind the slots |\n" } else { "" },
            slots_from(i.text_parts().unwrap_or_default()),
            i.usage_weight,
            i.usage_every,
            i.cosine_weight,
            i.info_nce_weight,
            i.info_nce_temperature
        );
    }
    text.push('\n');
    text
}

/// Returns the row on the slots of a text, if they do not come from its vector alone.
fn slots_from(TextParts { windows, sentences }: TextParts) -> String {
    let each = match sentences {
        0 => String::new(),
        most => format!(", a group for each of its sentences, at most {most}"),
    };
    match (windows, sentences) {
        (0, 0) => String::new(),
        (0, _) => format!("| slots | from the vectors of the text{each} |\n"),
        _ => format!("| slots | from the text's vector and those of its {windows} windows{each} |\n"),
    }
}

fn measured(evaluate: &Manifest) -> String {
    let mut text = "## Evaluation\n\n".to_owned();
    for section in measured::sections(&AnswerCost::without_times(&evaluate.figures)) {
        let _ = write!(text, "### {}\n\n", section.title);
        if let Some(table) = &section.table {
            let _ = writeln!(text, "{}", table.markdown());
        }
        for note in &section.notes {
            let _ = write!(text, "{note}\n\n");
        }
    }
    text
}

/// Fills in the slots of a text, and what stands beside them.
fn answering(python: &str, reads: Reads) -> String {
    let python = match reads.numbers {
        true => python.replace("BESIDE", "numbers(text)"),
        false => python.replace(", BESIDE", ""),
    };
    match reads.sentences {
        true => python.replace(SLOTS_OF_TEXT, SLOTS_OF_SENTENCES),
        false => python,
    }
}

fn usage(mode: Option<InstructArm>, encoder: &str, decoder: &str, dense: &str, reads: Reads) -> String {
    let windows = |python: &'static str| if reads.windows { python } else { "" };
    let with_slots = || {
        answering(WITH_SLOTS, reads)
            .replace("    # WINDOWS\n", windows(ADD_WINDOWS))
            .replace(" + WINDOWS", windows(" + windows"))
    };
    let python = match mode {
        Some(InstructArm::Slots) => with_expressions(with_slots(), reads),
        Some(InstructArm::Direct) => DIRECT.to_owned(),
        None => PROJECTOR.to_owned(),
    };
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let after_pooling = match dense {
        "[]" => String::new(),
        folders => READ_DENSE.replace("DENSE", folders),
    };
    let read_text =
        READ_TEXT.replace("    # WINDOWS\n", windows(READ_WINDOWS)).replace("    # DENSE\n", &after_pooling);
    let python = python
        .replace("# VECTOR\n", &format!("# CLEANED\n\n\n{read_text}"))
        .replace("# CLEANED\n", CLEAN_TEXT)
        .replace("\"ENCODER\"", &quoted(encoder))
        .replace("\"DECODER\"", &quoted(decoder));
    let mut text = "## Use\n\n".to_owned();
    if mode.is_some() {
        text.push_str("With llink, from this folder (`--encoder` and `--decoder` name the models' folders where they are elsewhere):\n\n");
        text.push_str("    llink-coord generate --bundle . \"…\"\n    llink-coord serve-bundle .\n\n");
        text.push_str(
            "The second command serves OpenAI's API for chat completions at http://127.0.0.1:8080/v1. A foreign text is a content part \
             of its own, `{\"type\": \"text\", \"text\": \"…\", \"llink\": \"passage\"}`, after the part with the instruction.\n\n",
        );
        text.push_str("With PyTorch, Transformers and PEFT:\n\n");
    } else {
        text.push_str("With PyTorch and Transformers:\n\n");
    }
    let _ = write!(text, "```python\n{python}```\n\n");
    text.push_str(
        "`config.json` has the widths, the prompt and the models' fingerprints; `manifest.json` the SHA-256 of every file, which \
         `llink-coord verify .` checks.\n\n",
    );
    text
}

/// Adds the functions that find numbers and sentences by regular expressions.
fn with_expressions(python: String, reads: Reads) -> String {
    let numbers = match reads.sentences {
        true => READ_NUMBERS.replace("cleaned(text)[: config[\"encoder\"][\"max_chars\"]]", "cleaned(text)"),
        false => READ_NUMBERS.to_owned(),
    };
    let wanted = [(reads.numbers, numbers.as_str()), (reads.sentences, READ_SENTENCES)];
    let functions: String =
        wanted.iter().filter(|(is_read, _)| *is_read).map(|(_, code)| format!("\n\n{code}")).collect();
    match functions.is_empty() {
        true => python,
        false => python
            .replace("import os\n", "import os\nimport re\n")
            .replace("# VECTOR\n", &format!("# VECTOR\n{functions}")),
    }
}

/// Describes the merged decoder, and what serves it.
fn merged(arm: Option<InstructArm>, reads: Reads) -> String {
    let mut text = "## Merged decoder\n\n`merged/` is the decoder with the adapter folded in, in the number format of the decoder's own files: \
                    `AutoModelForCausalLM.from_pretrained(\"merged\")` needs no PEFT, and programs that read such folders serve it.\n\n"
        .to_owned();
    if arm == Some(InstructArm::Slots) {
        let python = answering(WITH_VLLM, reads);
        let _ = write!(
            text,
            "Slots reach a server of vLLM as embeddings of the whole prompt, through its completions API (llink's tests compare these \
             embeddings with llink's own; they do not run vLLM itself):\n\n    vllm serve merged --enable-prompt-embeds\n\nWith the Python \
             from above, whose `prompt` has the decoder's chat template already:\n\n```python\n{python}```\n\n"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_python_has_the_numbers_that_the_prompt_has() {
        let python = |numbers| usage(Some(InstructArm::Slots), "e", "d", "[]", Reads { numbers, ..Reads::default() });
        let (with, without) = (python(true), python(false));
        assert!(
            with.contains("slots(vector(text)), numbers(text))")
                && with.contains("import re\n")
                && with.contains("def numbers")
        );
        let server = |numbers| merged(Some(InstructArm::Slots), Reads { numbers, ..Reads::default() });
        assert!(server(true).contains("slots(vector(text)), numbers(text))[0]"));
        assert!(server(false).contains("slots(vector(text)))[0]"));
        assert!(
            without.contains("slots(vector(text)))") && !without.contains("numbers(") && !without.contains("BESIDE")
        );
    }

    #[test]
    fn the_python_has_windows_only_where_the_slots_read_them() {
        let python = |windows| usage(Some(InstructArm::Slots), "e", "d", "[]", Reads { windows, ..Reads::default() });
        let (with, without) = (python(true), python(false));
        assert!(without.contains("F.normalize(norm(x, expander), dim=-1)"));
        assert!(with.contains("repeat_interleave") && with.contains("[\"slots\"][\"windows\"]"), "{with}");
        assert!(!with.contains("# WINDOWS") && !without.contains("WINDOWS") && !without.contains("windows"));
    }

    #[test]
    fn the_python_splits_a_text_only_where_the_slots_read_sentences() {
        let python = |sentences| {
            let reads = Reads { sentences, numbers: true, windows: false };
            [usage(Some(InstructArm::Slots), "e", "d", "[]", reads), merged(Some(InstructArm::Slots), reads)].concat()
        };
        let (with, without) = (python(true), python(false));
        assert_eq!(with.matches(SLOTS_OF_SENTENCES).count(), 2, "{with}");
        assert!(with.contains("def sentences") && !with.contains(SLOTS_OF_TEXT) && !with.contains("[: config"));
        assert!(!without.contains("sentences(") && without.contains(SLOTS_OF_TEXT) && without.contains("[: config"));
    }
}
