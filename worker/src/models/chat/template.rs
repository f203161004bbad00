//! Chat templates in Jinja, rendered as in Transformers.

use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};
use time::format_description::parse_strftime_borrowed;
use time::{Date, Month};

/// The default date of Llama 3.2's template. Every template gets this date, because a prompt that changes with the day
/// would change a job's result.
pub(super) const DATE: &str = "26 Jul 2024";

/// A turn of a conversation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a> {
    pub(super) role: &'a str,
    pub(super) content: &'a str,
}

impl Message<'_> {
    fn value(&self) -> Value {
        Value::from_pairs([("role", self.role), ("content", self.content)])
    }
}

/// Whether the prompt includes the beginning of the assistant's turn (`add_generation_prompt`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GenerationPrompt {
    Add,
    Omit,
}

/// Renders `template` with these messages, and with `named` tokens such as `bos_token`. Thinking is turned off if a
/// template allows it.
///
/// # Errors
/// The errors of Jinja, and those that the template raises.
pub(super) fn render(
    template: &str,
    named: &BTreeMap<String, String>,
    messages: &[Message<'_>],
    generation_prompt: GenerationPrompt,
) -> Result<String, Error> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    environment.set_syntax(syntax);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.add_filter("tojson", to_json);
    environment.add_function("strftime_now", strftime_now);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    let source = without_generation_blocks(template);
    let template = environment.template_from_str(&source)?;
    let mut context: BTreeMap<&str, Value> =
        named.iter().map(|(name, token)| (name.as_str(), token.as_str().into())).collect();
    context.extend([
        ("messages", messages.iter().map(Message::value).collect::<Vec<_>>().into()),
        ("tools", Value::from(())),
        ("documents", Value::from(())),
        ("date_string", Value::from(DATE)),
        ("enable_thinking", Value::from(false)),
        ("add_generation_prompt", Value::from(generation_prompt == GenerationPrompt::Add)),
    ]);
    template.render(context)
}

/// Replaces `{% generation %}`, which marks the assistant's text for training, by a condition that is always true.
fn without_generation_blocks(template: &str) -> String {
    let mut source = template.to_owned();
    for (tag, instead) in [("generation", "if true"), ("endgeneration", "endif")] {
        for (open, close) in [("{%", "%}"), ("{%-", "%}"), ("{%", "-%}"), ("{%-", "-%}")] {
            source = source.replace(&format!("{open} {tag} {close}"), &format!("{open} {instead} {close}"));
        }
    }
    source
}

/// Formats midnight of [`DATE`]. A format with a directive that is not known stays as it is.
fn strftime_now(format: String) -> String {
    let date = Date::from_calendar_date(2024, Month::July, 26).map(Date::midnight);
    let said = parse_strftime_borrowed(&format).ok().zip(date.ok()).and_then(|(items, date)| date.format(&items).ok());
    said.unwrap_or(format)
}

/// Implements `json.dumps(value, ensure_ascii=False, indent=indent)`. It does not escape for HTML, and puts a space
/// after separators.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let mut bytes = Vec::new();
    let written = match indent {
        Some(width) => {
            let indent = " ".repeat(width);
            let form = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, form))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, OneLine)),
    };
    written.map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    String::from_utf8(bytes).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

/// Formats JSON on one line as Python does.
struct OneLine;

impl OneLine {
    fn separate<W: ?Sized + std::io::Write>(writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }
}

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        Self::separate(writer, first)
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        Self::separate(writer, first)
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(template: &str) -> Result<String, Error> {
        let named = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
        let messages = [Message { role: "user", content: " Hi </b> " }, Message { role: "assistant", content: "Yes." }];
        render(template, &named, &messages, GenerationPrompt::Add)
    }

    #[test]
    fn templates_may_call_what_they_call_in_python() {
        for (template, expected) in [
            ("{{ bos_token }}{{ messages[0]['content'].strip() }}", "<s>Hi </b>"),
            ("{{ messages[0].content.split(' ')[1].upper() }}", "HI"),
            (
                "{{ messages | tojson }}",
                r#"[{"role": "user", "content": " Hi </b> "}, {"role": "assistant", "content": "Yes."}]"#,
            ),
            (
                "{% for key, value in messages[1].items() %}{{ key }}={{ value }};{% endfor %}",
                "role=assistant;content=Yes.;",
            ),
            ("{% for m in messages %}{% if loop.index0 > 0 %}{% break %}{% endif %}{{ m.role }}{% endfor %}", "user"),
            ("{{ strftime_now('%A, %-d %B %Y, 100%%') }}", "Friday, 26 July 2024, 100%"),
            ("{{ strftime_now('%a %b %d %e %D %F %-m %m %y %j') }}", "Fri Jul 26 26 07/26/24 2024-07-26 7 07 24 208"),
            ("{{ strftime_now('%H %I %M %S %p %T') }}", "00 12 00 00 AM 00:00:00"),
            ("{{ date_string }}", "26 Jul 2024"),
            ("a\n  {% if add_generation_prompt %}\nb\n  {% endif %}\nc\n", "a\nb\nc"),
            ("{% if tools is not none %}no{% endif %}{{ eos_token }}.", "."),
            (
                "{% for m in messages %}{%- generation -%} {{ m.role }}, {%- endgeneration -%} {% endfor %}",
                "user,assistant,",
            ),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages[::-1] %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
                "2",
            ),
        ] {
            assert_eq!(rendered(template).unwrap(), expected, "{template}");
        }
    }

    #[test]
    fn what_a_template_raises_is_what_the_error_says() {
        let error = rendered("{{ raise_exception('Only user and assistant roles') }}").unwrap_err();
        assert!(error.to_string().contains("Only user and assistant roles"), "{error}");
    }
}
