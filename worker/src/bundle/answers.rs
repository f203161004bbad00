//! The answers of a bundle: to one question, to many, and to conversations that come and go.

use std::ops::ControlFlow;

use super::generator::{Answering, Generator, Sentence};
use super::reply_text::ReplyText;
use crate::models::{ChatPrompt, Continuations, GenerateOptions, Part, Passages, Step, Tokenizer, Turn, common_head};
use crate::{Error, Result};

/// A prompt with everything that its answer needs.
#[derive(Debug, Clone)]
pub struct Prepared {
    prompt: ChatPrompt,
    /// The slots of all passages; none when the prompt holds the texts themselves.
    slots: Option<Vec<f32>>,
    /// Number of characters beyond the encoder's limit, which were not read.
    pub unread_chars: usize,
}

impl Prepared {
    /// Returns the number of the prompt's tokens, in which each slot counts as one.
    pub fn tokens(&self) -> usize {
        self.prompt.ids.len()
    }
}

impl Generator {
    /// Answers an instruction about a sentence. `told` gets each piece of the text as it comes and may end the answer.
    ///
    /// # Errors
    /// [`Error::Input`] for an instruction that is too long for the decoder; [`Error::Tensor`] when the device fails.
    pub fn answer(
        &self,
        sentence: &Sentence,
        instruction: &str,
        answering: Answering,
        told: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<String> {
        let prepared = self.prepare(sentence, instruction)?;
        let mut continuations = Continuations::new(1);
        self.add(&mut continuations, &prepared, answering)?;
        let (tokenizer, mut text) = (self.decoder.tokenizer(), ReplyText::default());
        while !continuations.is_empty() {
            for (_, step) in self.step(&mut continuations)? {
                let piece = match step {
                    Step::Token(id) => text.push(id, tokenizer)?,
                    Step::Stopped | Step::AtLimit => text.rest(tokenizer)?,
                };
                if !piece.is_empty() && told(&piece).is_break() {
                    return text.whole(tokenizer);
                }
            }
        }
        text.whole(tokenizer)
    }

    /// Answers questions, which are instructions about sentences, `at_once` of them at once. `told` gets the number of a
    /// question with its answer, or the fault of the question, in the order in which they end. It may end the work.
    pub fn answer_each(
        &self,
        questions: &[(&Sentence, &str)],
        answering: Answering,
        at_once: usize,
        told: &mut dyn FnMut(usize, std::result::Result<String, String>) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut prepared = Vec::new();
        for (number, (sentence, instruction)) in questions.iter().enumerate() {
            match self.prepare(sentence, instruction) {
                Ok(ready) => prepared.push((number, ready)),
                Err(Error::Input(fault)) => _ = told(number, Err(fault)),
                Err(error) => return Err(error),
            }
        }
        let prompts: Vec<ChatPrompt> = prepared.iter().map(|(_, ready)| ready.prompt.clone()).collect();
        let mut continuations = self.begin(common_head(&prompts), at_once)?;
        let mut begun = Vec::new();
        for (number, ready) in &prepared {
            match self.add(&mut continuations, ready, answering) {
                Ok(_) => begun.push((*number, Vec::new())),
                Err(Error::Input(fault)) => _ = told(*number, Err(fault)),
                Err(error) => return Err(error),
            }
        }
        while !continuations.is_empty() {
            for (id, step) in self.step(&mut continuations)? {
                let (number, ids) = &mut begun[id];
                match step {
                    Step::Token(token) => ids.push(token),
                    Step::Stopped | Step::AtLimit => {
                        if told(*number, Ok(self.tokenizer().decode(ids)?)).is_break() {
                            return Ok(());
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn prepare(&self, sentence: &Sentence, instruction: &str) -> Result<Prepared> {
        let prompt = match &self.bundle.expander {
            Some(_) => {
                let (slots, seen) = (self.slot_count(sentence), self.seen(&sentence.text));
                self.decoder.prompt_about(instruction, slots, seen, self.numbers.as_ref())?
            }
            None => {
                let most = self.prompt.text_tokens;
                self.decoder.direct_prompt(instruction, &sentence.text, most)?
            }
        };
        Ok(Prepared { prompt, slots: sentence.slots.clone(), unread_chars: sentence.unread_chars })
    }

    /// Prepares an answer to a conversation, whose passages are read. A single turn of an instruction and a passage
    /// gets the prompt of the bundle's training.
    ///
    /// # Errors
    /// [`Error::Input`] for turns that the decoder's chat template refuses; those of [`Generator::read`].
    pub fn prepare_conversation(&mut self, turns: &[Turn<'_>]) -> Result<Prepared> {
        let parts = turns.iter().flat_map(|turn| &turn.parts);
        let passages: Vec<&str> = parts.filter_map(Part::passage).collect();
        let read = self.read(&passages)?;
        if let [turn] = turns
            && let [Part::Text(instruction), Part::Passage(_)] = turn.parts[..]
            && turn.role == "user"
        {
            return self.prepare(&read[0], instruction);
        }
        let counts: Vec<usize> = read.iter().map(|read| self.slot_count(read)).collect();
        let form = match &self.bundle.expander {
            Some(_) => Passages::Slots(&counts, self.numbers.as_ref()),
            None => Passages::Text(self.prompt.text_tokens),
        };
        let mut lines = read.iter().map(|read| Part::Passage(self.seen(&read.text)));
        let mut cleaned = |part: &Part<'_>| match part {
            Part::Passage(_) => lines.next(),
            Part::Text(_) => None,
        };
        let turns = turns.iter().map(|turn| Turn {
            role: turn.role,
            parts: turn.parts.iter().map(|part| cleaned(part).unwrap_or(*part)).collect(),
        });
        let turns: Vec<Turn<'_>> = turns.collect();
        let slots: Vec<f32> = read.iter().filter_map(|read| read.slots.as_ref()).flatten().copied().collect();
        Ok(Prepared {
            prompt: self.decoder.conversation(&turns, form)?,
            slots: self.bundle.expander.as_ref().map(|_| slots),
            unread_chars: read.iter().map(|read| read.unread_chars).sum(),
        })
    }

    /// Returns continuations of prompts that begin with `head`, of which `at_once` are computed at once.
    fn begin(&self, head: &[u32], at_once: usize) -> Result<Continuations> {
        Continuations::new(at_once).begin_with(head, self.decoder.model(), &self.adapter)
    }

    /// Returns continuations of conversations, which share the beginning of the training's prompt.
    pub fn continuations(&self, at_once: usize) -> Result<Continuations> {
        let [one, other] = ["a", "Z"].map(|instruction| self.decoder.direct_prompt(instruction, "", 0));
        self.begin(common_head(&[one?, other?]), at_once)
    }

    /// Adds a prompt. Returns the number of its continuation.
    ///
    /// # Errors
    /// [`Error::Input`] for a prompt that is too long for the decoder.
    pub fn add(&self, to: &mut Continuations, prepared: &Prepared, answering: Answering) -> Result<usize> {
        let options = GenerateOptions {
            max_tokens: answering.max_tokens,
            stop: self.prompt.stop.clone(),
            sampling: answering.sampling,
        };
        to.add(self.decoder.model(), &prepared.prompt, prepared.slots.clone(), options)
    }

    /// Computes the next token of each continuation.
    pub fn step(&self, continuations: &mut Continuations) -> Result<Vec<(usize, Step)>> {
        continuations.step(self.decoder.model(), &self.adapter)
    }

    /// Returns the most tokens of a prompt with its answer.
    pub fn longest(&self) -> usize {
        self.decoder.config().max_position_embeddings
    }

    /// Returns the decoder's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        self.decoder.tokenizer()
    }
}
