//! Tests which requests are understood, and which are refused by name.

use super::*;

const DEFAULTS: Defaults<'_> = Defaults { model: "llink", max_tokens: 256, seed: 9 };

fn parse(mut more: Value) -> Result<ChatRequest, ApiError> {
    let mut body = json!({"model": "llink", "messages": [{"role": "user", "content": "Hello."}]});
    body.as_object_mut().unwrap().append(more.as_object_mut().unwrap());
    ChatRequest::parse(body.to_string().as_bytes(), DEFAULTS)
}

#[test]
fn passages_are_parts_of_their_own_and_other_texts_stay_as_they_are() {
    let messages = json!([
        {"role": "developer", "content": "Be brief.\n"},
        {"role": "user", "name": "ada", "content": [
            {"type": "text", "text": " Translate"},
            {"type": "text", "text": " ត្រី\nឆ្មា ", "llink": "passage"},
        ]},
        {"role": "assistant", "content": "Fish", "refusal": null, "tool_calls": []},
    ]);
    let request = parse(json!({"messages": messages})).unwrap();
    let turns: Vec<Turn<'_>> = request.messages.iter().map(Message::turn).collect();
    let turn = |role, parts: &[Part<'static>]| Turn { role, parts: parts.to_vec() };
    let expected = [
        turn("system", &[Part::Text("Be brief.\n")]),
        turn("user", &[Part::Text(" Translate"), Part::Passage(" ត្រី\nឆ្មា ")]),
        turn("assistant", &[Part::Text("Fish")]),
    ];
    assert_eq!(turns, expected);
}

#[test]
fn settings_have_defaults_and_both_names_of_the_limit() {
    let plain = parse(json!({"n": 1, "user": "ada", "logit_bias": null, "presence_penalty": 0})).unwrap();
    let greedy = Answering { max_tokens: 256, sampling: Sampling::Greedy };
    assert_eq!((plain.answering, plain.stream, plain.stop), (greedy, false, vec![]));
    let warm = parse(json!({"temperature": 0.5, "top_p": 0.9, "seed": -1, "max_completion_tokens": 3, "stop": "."}));
    let warm = warm.unwrap();
    let sampling = Sampling::Nucleus { temperature: 0.5, top_p: 0.9, seed: u64::MAX };
    let answering = Answering { max_tokens: 3, sampling };
    assert_eq!((warm.answering, warm.stop), (answering, vec![".".to_owned()]));
    let sampled = parse(json!({"top_p": 0.5, "max_tokens": 7})).unwrap().answering;
    let sampling = Sampling::Nucleus { temperature: 1.0, top_p: 0.5, seed: 9 };
    assert_eq!(sampled, Answering { max_tokens: 7, sampling });
    let streamed = parse(json!({"stream": true, "stream_options": {"include_usage": true}})).unwrap();
    assert!(streamed.stream && streamed.include_usage);
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let content = |part: Value| json!({"messages": [{"role": "user", "content": [part]}]});
    for (more, param) in [
        (json!({"n": 2}), "n"),
        (json!({"logprobs": true}), "logprobs"),
        (json!({"tools": [{}]}), "tools"),
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
        (json!({"frequency_penalty": 0.5}), "frequency_penalty"),
        (json!({"top_k": 5}), "top_k"),
        (json!({"temperature": 2.5}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"seed": 0.5}), "seed"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": 3, "max_completion_tokens": 4}), "max_tokens"),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop"),
        (json!({"stop": ["a", ""]}), "stop"),
        (json!({"stop": 3}), "stop"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"stream": true, "stream_options": {"x": 1}}), "stream_options.x"),
        (json!({"model": "gpt-4o"}), "model"),
        (json!({"model": null}), "model"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": ["Hello."]}), "messages[0]"),
        (json!({"messages": [{"role": "tool", "content": ""}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (content(json!({"type": "image_url"})), "messages[0].content[0].type"),
        (content(json!({"type": "text"})), "messages[0].content[0].text"),
        (content(json!({"type": "text", "text": "a", "llink": "slots"})), "messages[0].content[0].llink"),
        (content(json!({"type": "text", "text": "\u{200b}\n", "llink": "passage"})), "messages[0].content[0].text"),
    ] {
        let error = parse(more.clone()).unwrap_err();
        assert_eq!(error.param.as_deref(), Some(param), "{more}: {error:?}");
        assert!(error.message.contains(param) || param == "model", "{}", error.message);
    }
    let error = ChatRequest::parse(b"[1]", DEFAULTS).unwrap_err();
    assert_eq!((error.code, error.status), ("invalid_json", StatusCode::BAD_REQUEST));
}
