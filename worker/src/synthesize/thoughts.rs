//! Removes the thoughts that a model writes before its answer, by the marks of models and their servers.

/// The beginning and end marks of thoughts, in lower case: DeepSeek, Qwen and most others; Seed; Magistral; Kimi;
/// OpenThinker; Command A; Gemma; MedGemma.
const MARKS: [(&str, &str); 15] = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<thoughts>", "</thoughts>"),
    ("<reasoning>", "</reasoning>"),
    ("<reflection>", "</reflection>"),
    ("<analysis>", "</analysis>"),
    ("<scratchpad>", "</scratchpad>"),
    ("<seed:think>", "</seed:think>"),
    ("[think]", "[/think]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|start_thinking|>", "<|end_thinking|>"),
    ("<|channel>thought", "<channel|>"),
    ("<unused94>thought", "<unused95>"),
];
/// The marks that some models put around the answer itself.
const WRAPPERS: [(&str, &str); 3] = [
    ("<answer>", "</answer>"),
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
    ("<|start_response|>", "<|end_response|>"),
];
/// End-of-turn marks that servers have left in the text.
const ENDS: [&str; 8] =
    ["<|return|>", "<|end|>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>", "</s>"];

/// Returns the answer without the thoughts before, within and after it, or `None` if the text ends inside its thoughts.
pub(super) fn without_thoughts(text: &str) -> Option<String> {
    let mut rest = final_channel(text)?.to_owned();
    for (open, close) in MARKS {
        rest = cut(&rest, open, close)?;
    }
    let mut answer = rest.trim();
    while let Some(end) = ENDS.iter().find(|end| answer.ends_with(**end)) {
        answer = answer[..answer.len() - end.len()].trim_end();
    }
    for (open, close) in WRAPPERS {
        if find(answer, open) == Some(0) {
            answer = &answer[open.len()..];
            answer = &answer[..find(answer, close).unwrap_or(answer.len())];
        }
    }
    Some(answer.trim().to_owned())
}

/// Removes the text between the marks. A template may have opened the thoughts in the prompt, so the text before a lone
/// closing mark counts as thoughts too.
fn cut(text: &str, open: &str, close: &str) -> Option<String> {
    let mut kept = String::new();
    let mut rest = text;
    loop {
        match (find(rest, open), find(rest, close)) {
            (None, None) => {
                kept.push_str(rest);
                return Some(kept);
            }
            (Some(_), None) => return None,
            (opens, Some(closes)) => {
                match opens.filter(|at| *at < closes) {
                    Some(at) => kept.push_str(&rest[..at]),
                    None => kept.clear(),
                }
                rest = &rest[closes + close.len()..];
            }
        }
    }
}

/// Returns the final channel of gpt-oss, which follows its analysis. The channel's special tokens may be incomplete,
/// because some servers drop them. Any other text is returned unchanged.
fn final_channel(text: &str) -> Option<&str> {
    const CHANNEL: &str = "<|channel|>";
    const MESSAGE: &str = "<|message|>";
    if text.contains(CHANNEL) {
        let (_, last) = text.rsplit_once(&format!("{CHANNEL}final"))?;
        return last.split_once(MESSAGE).map(|(_, answer)| answer);
    }
    match text.trim_start().strip_prefix("analysis") {
        Some(rest) => Some(rest.rsplit_once("assistantfinal").map_or(text, |(_, answer)| answer)),
        None => Some(text),
    }
}

/// Returns the position of `mark`, which is in lower case, in any case.
fn find(text: &str, mark: &str) -> Option<usize> {
    text.to_ascii_lowercase().find(mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thoughts_are_cut_off_in_each_way_of_marking_them() {
        for text in [
            "A fish.",
            "<think>\nOkay, a fish?\n</think>\n\nA fish.",
            "Okay, a fish?\n</think>\n\nA fish.",
            "<think></think>A fish.",
            "<Thinking>Okay</Thinking> A fish.",
            "<think>one <think> two</think> three</think>A fish.",
            "<think>one</think><think>two</think>A fish.",
            "<reasoning>Okay</reasoning>\n<answer>A fish.</answer>",
            "[THINK]Okay[/THINK]A fish.",
            "◁think▷Okay◁/think▷A fish.",
            "A fish.<think>Was that right?</think>",
            "<|channel|>analysis<|message|>Okay<|end|><|start|>assistant<|channel|>final<|message|>A fish.<|return|>",
            "<|channel|>analysis<|message|>Okay<|end|><|start|>assistant<|channel|>final <|constrain|>text<|message|>A fish.",
            "<|channel|>final<|message|>A fish.",
            "analysisThe user wants a fish.assistantfinalA fish.",
            "<|START_THINKING|>Okay<|END_THINKING|><|START_RESPONSE|>A fish.<|END_RESPONSE|>",
            "A fish.<|im_end|>\n",
        ] {
            assert_eq!(without_thoughts(text).as_deref(), Some("A fish."), "{text}");
        }
    }

    #[test]
    fn an_answer_that_ends_inside_its_thoughts_is_none() {
        for text in [
            "<think>Okay, the user gives me a text",
            "<think>one</think> <think>two",
            "Sure.\n<thinking>Okay",
            "<|channel|>analysis<|message|>Okay, the user",
            "<|channel|>analysis<|message|>Okay<|end|><|start|>assistant<|channel|>final",
            "[THINK]Okay",
        ] {
            assert_eq!(without_thoughts(text), None, "{text}");
        }
        assert_eq!(without_thoughts("<think>Okay</think>").as_deref(), Some(""), "nothing was answered");
    }
}
