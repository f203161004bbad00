//! The thread that answers. It computes the answers to several requests at once, and others join between two tokens.

use std::collections::HashMap;

use axum::http::StatusCode;
use llink_worker::Error;
use llink_worker::bundle::{Generator, ReplyText};
use llink_worker::models::{Continuations, Step, Turn};
use tokio::sync::mpsc;

use super::error::ApiError;
use super::reply::{Finish, Usage};
use super::request::{ChatRequest, Message};
use super::stops::Stops;

#[derive(Debug)]
pub(super) struct Asked {
    pub(super) request: ChatRequest,
    /// The way of the answer to the client. It is closed when the client is gone.
    pub(super) answer: mpsc::UnboundedSender<Event>,
}

#[derive(Debug)]
pub(super) enum Event {
    Begun(Usage),
    Piece(String),
    Ended(Finish, Usage),
    Failed(ApiError),
}

pub(super) fn answer_all(
    mut generator: Generator,
    mut asked: mpsc::UnboundedReceiver<Asked>,
    at_once: usize,
) -> Result<(), Error> {
    let mut continuations = generator.continuations(at_once)?;
    let mut answers: HashMap<usize, Answer> = HashMap::new();
    loop {
        let mut new = Vec::new();
        if answers.is_empty() {
            match asked.blocking_recv() {
                Some(first) => new.push(first),
                None => return Ok(()),
            }
        }
        while answers.len() + new.len() < at_once
            && let Ok(next) = asked.try_recv()
        {
            new.push(next);
        }
        begin(&mut generator, new, &mut continuations, &mut answers);
        answers.retain(|id, answer| {
            let is_wanted = !answer.to.is_closed();
            if !is_wanted {
                tracing::info!(tokens = answer.text.tokens(), "the client is gone: its answer ends");
                continuations.drop_one(*id);
            }
            is_wanted
        });
        match generator.step(&mut continuations) {
            Ok(steps) => {
                steps.into_iter().for_each(|(id, step)| tell(&generator, &mut continuations, &mut answers, id, step))
            }
            Err(error) => {
                tracing::error!("the answers to {} requests failed: {error}", answers.len());
                answers.drain().for_each(|(_, answer)| answer.fail(&error));
                continuations = generator.continuations(at_once)?;
            }
        }
    }
}

struct Answer {
    to: mpsc::UnboundedSender<Event>,
    text: ReplyText,
    stops: Stops,
    usage: Usage,
}

impl Answer {
    fn send(&self, event: Event) {
        // The client may be gone, which the next pass finds out.
        let _ = self.to.send(event);
    }

    fn fail(&self, error: &Error) {
        self.send(Event::Failed(api_error(error)));
    }

    /// Adds the next part. Returns true at the end of the answer.
    fn add(&mut self, generator: &Generator, step: Step) -> Result<bool, Error> {
        let (piece, finish) = match step {
            Step::Token(id) => (self.text.push(id, generator.tokenizer())?, None),
            Step::Stopped => (self.text.rest(generator.tokenizer())?, Some(Finish::Stop)),
            Step::AtLimit => (self.text.rest(generator.tokenizer())?, Some(Finish::Length)),
        };
        let (mut said, has_ended) = self.stops.push(&piece);
        let finish = if has_ended { Some(Finish::Stop) } else { finish };
        if finish.is_some() {
            said.push_str(&self.stops.rest());
        }
        if !said.is_empty() {
            self.send(Event::Piece(said));
        }
        if let Some(finish) = finish {
            self.usage.completion = self.text.tokens();
            let Usage { prompt, completion, .. } = self.usage;
            tracing::info!(prompt, completion, ?finish, "answered");
            self.send(Event::Ended(finish, self.usage));
        }
        Ok(finish.is_some())
    }
}

/// Reads the passages of new requests and adds their prompts.
fn begin(
    generator: &mut Generator,
    new: Vec<Asked>,
    continuations: &mut Continuations,
    answers: &mut HashMap<usize, Answer>,
) {
    let new: Vec<Asked> = new.into_iter().filter(|asked| !asked.answer.is_closed()).collect();
    let conversations = new.iter().map(|asked| asked.request.messages.iter().map(Message::turn).collect());
    let conversations: Vec<Vec<Turn<'_>>> = conversations.collect();
    if new.len() > 1 {
        let parts = conversations.iter().flatten().flat_map(|turn| &turn.parts);
        let passages: Vec<&str> = parts.filter_map(|part| part.passage()).collect();
        // The encoder reads all passages in one batch. If it fails, each request is told below.
        let _ = generator.read(&passages);
    }
    for (asked, turns) in new.iter().zip(&conversations) {
        let prepared = generator.prepare_conversation(turns).map_err(|error| api_error(&error));
        let added = prepared.and_then(|prepared| {
            check_length(prepared.tokens(), generator.longest())?;
            let id = generator.add(continuations, &prepared, asked.request.answering);
            Ok((id.map_err(|error| api_error(&error))?, prepared))
        });
        let mut answer = Answer {
            to: asked.answer.clone(),
            text: ReplyText::default(),
            stops: Stops::at(asked.request.stop.clone()),
            usage: Usage::default(),
        };
        match added {
            Ok((id, prepared)) => {
                answer.usage.prompt = prepared.tokens();
                answer.usage.unread_chars = prepared.unread_chars;
                answer.send(Event::Begun(answer.usage));
                answers.insert(id, answer);
            }
            Err(error) => answer.send(Event::Failed(error)),
        }
    }
}

fn check_length(tokens: usize, longest: usize) -> Result<(), ApiError> {
    if tokens <= longest {
        return Ok(());
    }
    let text = format!("messages: have {tokens} tokens, but the decoder has positions for {longest}: shorten them");
    Err(ApiError::of_field("messages", "context_length_exceeded", text))
}

fn tell(
    generator: &Generator,
    continuations: &mut Continuations,
    answers: &mut HashMap<usize, Answer>,
    id: usize,
    step: Step,
) {
    let Some(answer) = answers.get_mut(&id) else { return };
    let has_ended = answer.add(generator, step).unwrap_or_else(|error| {
        answer.fail(&error);
        true
    });
    if has_ended {
        answers.remove(&id);
        continuations.drop_one(id);
    }
}

fn api_error(error: &Error) -> ApiError {
    match error {
        Error::Input(said) => ApiError::of_field("messages", "invalid_messages", format!("messages: {said}")),
        error => ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "failed",
            format!("the answer could not be computed: {error}"),
        ),
    }
}
