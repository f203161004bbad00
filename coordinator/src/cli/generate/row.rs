//! A line of JSON that asks for an answer, and the line with the answer.

use std::collections::BTreeMap;

use llink_datasets::read::{json_value, strict_json};
use serde_json::{Map, Value};

use super::input::{NOTHING_TO_READ, is_readable};

/// The keys that an answer sets, even if the line already held them.
const SET: [&str; 4] = ["instruction", "generated", "error", "made_by"];

#[derive(Debug, PartialEq)]
pub(super) struct Question {
    pub(super) text: String,
    pub(super) instruction: String,
}

#[derive(Debug)]
pub(super) struct Row {
    pub(super) number: u64,
    /// The question, or the fault of the line.
    pub(super) asked: Result<Question, String>,
    given: Map<String, Value>,
    /// The line's members as written, so that no number loses a digit.
    members: Vec<(String, String)>,
}

/// The instruction of each task, and the default instruction.
#[derive(Debug)]
pub(super) struct Instructions {
    pub(super) of_tasks: BTreeMap<String, String>,
    pub(super) usual: String,
}

impl Row {
    pub(super) fn parse(number: u64, line: Result<String, String>, instructions: &Instructions) -> Self {
        let faulty = |fault: String| Self { number, asked: Err(fault), given: Map::new(), members: Vec::new() };
        let line = match line {
            Ok(line) => line,
            Err(fault) => return faulty(fault),
        };
        let line = line.trim_start_matches('\u{FEFF}');
        match json_value(line) {
            Ok(Value::Object(given)) => {
                Self { number, asked: question(&given, instructions), given, members: members(&strict_json(line)) }
            }
            Ok(_) => faulty("is not a JSON object".to_owned()),
            Err(error) => faulty(format!("is not JSON: {error}")),
        }
    }

    /// Returns the line with its answer, or with the reason for having none.
    pub(super) fn answered(&self, answer: Result<String, String>, made_by: &Value) -> String {
        let kept = self.members.iter().filter(|(key, _)| !SET.contains(&key.as_str()));
        let mut members: Vec<String> =
            kept.map(|(key, value)| format!("{}:{value}", Value::from(key.as_str()))).collect();
        let mut set = |key: &str, value: Value| members.push(format!("\"{key}\":{value}"));
        if let Ok(question) = &self.asked {
            set("instruction", question.instruction.as_str().into());
        }
        match answer {
            Ok(answer) => set("generated", answer.into()),
            Err(fault) => {
                set("generated", Value::Null);
                set("error", fault.into());
            }
        }
        set("made_by", made_by.clone());
        format!("{{{}}}", members.join(","))
    }

    /// Returns true if a line is an answer to this one by the same bundle with the same settings.
    pub(super) fn is_answered_by(&self, line: &str, made_by: &Value) -> bool {
        let found = json_value(line).unwrap_or_default();
        let same = |(key, value): (&String, &Value)| SET.contains(&key.as_str()) || found[key] == *value;
        let is_answer = match &self.asked {
            Ok(question) => {
                found["instruction"] == question.instruction.as_str()
                    && (found["generated"].is_string() || found["error"].is_string())
            }
            Err(fault) => found["error"] == fault.as_str(),
        };
        is_answer && found["made_by"] == *made_by && self.given.iter().all(same)
    }
}

fn question(given: &Map<String, Value>, instructions: &Instructions) -> Result<Question, String> {
    let of = |key: &str| given.get(key).filter(|value| !value.is_null());
    let text = match ["text", "foreign"].iter().find_map(|key| of(key)) {
        Some(Value::String(text)) if is_readable(text) => text.clone(),
        Some(Value::String(_)) => return Err(NOTHING_TO_READ.to_owned()),
        Some(_) => return Err(r#"has a "text" that is no text"#.to_owned()),
        None => return Err(r#"has no "text""#.to_owned()),
    };
    let words = |key: &str| given.get(key).and_then(Value::as_str);
    let instruction = match (words("instruction"), words("task")) {
        (Some(instruction), _) => instruction,
        (None, Some(task)) => instructions.of_tasks.get(task).ok_or_else(|| {
            let known: Vec<&str> = instructions.of_tasks.keys().map(String::as_str).collect();
            format!("asks for task {task:?}; the bundle knows {}", known.join(", "))
        })?,
        (None, None) => &instructions.usual,
    };
    Ok(Question { text, instruction: instruction.to_owned() })
}

/// Returns the members of a JSON object, each value as it is written. The text must be an object.
fn members(object: &str) -> Vec<(String, String)> {
    let inner = object.trim().trim_start_matches('{');
    let inner = inner.strip_suffix('}').unwrap_or(inner);
    let (mut members, mut start, mut colon) = (Vec::new(), 0, None);
    let (mut depth, mut is_text, mut is_escaped) = (0_u32, false, false);
    for (at, byte) in inner.bytes().chain([b',']).enumerate() {
        if is_text {
            is_text = is_escaped || byte != b'"';
            is_escaped = !is_escaped && byte == b'\\';
            continue;
        }
        match byte {
            b'"' => is_text = true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b':' if depth == 0 && colon.is_none() => colon = Some(at),
            b',' if depth == 0 => {
                if let Some(colon) = colon.take() {
                    let key = serde_json::from_str(inner[start..colon].trim()).unwrap_or_default();
                    members.push((key, inner[colon + 1..at].trim().to_owned()));
                }
                start = at + 1;
            }
            _ => {}
        }
    }
    members
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instructions() -> Instructions {
        Instructions {
            of_tasks: BTreeMap::from([("summarize".to_owned(), "Sum it up.".to_owned())]),
            usual: "Translate.".to_owned(),
        }
    }

    fn row(line: &str) -> Row {
        Row::parse(3, Ok(line.to_owned()), &instructions())
    }

    #[test]
    fn what_a_line_holds_is_passed_on_digit_by_digit() {
        let line =
            r#"{"text":"a","id":18446744073709551616,"f":1e400, "n": 0.10,"o":{"x":[1,{"y":"}],\""}]},"generated":1}"#;
        let row = row(line);
        let answered = row.answered(Ok("b".to_owned()), &Value::from("me"));
        let expected = r#"{"text":"a","id":18446744073709551616,"f":1e400,"n":0.10,"o":{"x":[1,{"y":"}],\""}]},"#;
        assert_eq!(answered, format!(r#"{expected}"instruction":"Translate.","generated":"b","made_by":"me"}}"#));
        assert!(row.is_answered_by(&answered, &Value::from("me")));
        assert!(!row.is_answered_by(&answered, &Value::from("another")));
        assert!(!row.is_answered_by(&answered.replace("\"a\"", "\"c\""), &Value::from("me")));
    }

    #[test]
    fn faulty_lines_are_answered_with_null_and_why() {
        for (line, fault) in [
            ("{\"text\":\"\u{200B}\"}", NOTHING_TO_READ),
            ("{\"text\":\"\"}", NOTHING_TO_READ),
            ("{\"text\":null}", "has no \"text\""),
            ("{\"txt\":1}", "has no \"text\""),
            ("{\"text\":1}", "has a \"text\" that is no text"),
            ("[1]", "is not a JSON object"),
            ("{\"text\":\"a\",\"task\":\"rhyme\"}", "asks for task \"rhyme\"; the bundle knows summarize"),
        ] {
            let row = row(line);
            assert_eq!(row.asked.as_ref().unwrap_err(), fault, "{line}");
            let answered = row.answered(Err(fault.to_owned()), &Value::Null);
            let value: Value = serde_json::from_str(&answered).unwrap();
            assert_eq!((&value["generated"], &value["error"]), (&Value::Null, &Value::from(fault)));
            assert!(row.is_answered_by(&answered, &Value::Null), "{answered}");
        }
        assert!(row("text").asked.unwrap_err().starts_with("is not JSON"));
    }

    #[test]
    fn what_python_writes_is_understood_and_not_passed_on() {
        let row = row("\u{FEFF}{\"foreign\":\"a\",\"text\":null,\"score\":NaN,\"task\":\"summarize\"}");
        let expected = Question { text: "a".to_owned(), instruction: "Sum it up.".to_owned() };
        assert_eq!(row.asked.as_ref().unwrap(), &expected);
        let answered = row.answered(Ok("b".to_owned()), &Value::Null);
        assert!(answered.contains("\"score\":null"), "{answered}");
    }
}
