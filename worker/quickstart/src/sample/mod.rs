//! The sample corpus: made-up English-Khmer sentences and instructions about them, for trials without data.
//!
//! A row is a function of the seed and its number alone. Ten sentence shapes over a few hundred real words give
//! billions of distinct sentences, each with one translation. Every variable part (who, what, how many, what kind,
//! where, when) is expressed on both sides.

mod lexicon;
mod lexicon_more;
mod scene;
mod shapes;
mod shuffle;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde::Serialize;

use llink_datasets::clean::FOREIGN_PLACEHOLDER;
use llink_datasets::rows::InstructionExample;
use llink_datasets::{Error, Result};

use scene::Scene;
use shapes::{SHAPES, Shape};
use shuffle::{Shuffle, mix};

/// The value that a job writes in place of a URL to get a made-up corpus; also the `source` of such rows.
pub const SOURCE: &str = "sample";

/// The most sentences in an instruction example.
const MOST_SENTENCES: u64 = 3;
/// The longest foreign text, so that the paper's limit of 256 characters never cuts it.
const MOST_CHARS: usize = 250;

/// Returns the number of distinct pairs.
pub fn most_pairs() -> u64 {
    let block: u64 = SHAPES.iter().map(|shape| shape.weight).sum();
    SHAPES.iter().map(|shape| shape.size() / shape.weight * block).min().unwrap_or(0)
}

/// Returns the number of distinct instruction examples.
pub fn most_instructions() -> u64 {
    most_pairs() / MOST_SENTENCES
}

/// Makes `rows` distinct pairs, English and Khmer. No two share a side.
pub fn pairs(rows: u64, seed: u64) -> impl Iterator<Item = (String, String)> {
    let scenes = Scenes::new(seed);
    (0..rows.min(most_pairs())).map(move |row| {
        let scene = scenes.at(row);
        (scene.english(), scene.khmer())
    })
}

/// Makes `rows` distinct instruction examples. Each is about one to three Khmer sentences that no other example has.
/// The instruction holds [`FOREIGN_PLACEHOLDER`], and the answer follows exactly from the sentences.
pub fn instructions(rows: u64, seed: u64) -> impl Iterator<Item = InstructionExample> {
    // The sentences differ from those of the pairs with the same seed.
    let scenes = Scenes::new(mix(seed) ^ 0x1257_8C71);
    (0..rows.min(most_instructions())).map(move |row| example(&scenes, row, seed))
}

/// Writes `pairs.tsv` (English, tab, Khmer) and `instructions.jsonl` (the form of LLINK's authors) into a folder, and
/// creates the folder. The same numbers and seed give the same bytes.
///
/// # Errors
/// [`Error::Store`] where the files can't be written.
pub fn write(folder: &Path, pairs: u64, instructions: u64, seed: u64) -> Result<()> {
    let failed =
        |path: &Path, error: std::io::Error| Error::Store { path: path.display().to_string(), source: Box::new(error) };
    std::fs::create_dir_all(folder).map_err(|e| failed(folder, e))?;
    let path = folder.join("pairs.tsv");
    write_pairs(&path, pairs, seed).map_err(|e| failed(&path, e))?;
    let path = folder.join("instructions.jsonl");
    write_instructions(&path, instructions, seed).map_err(|e| failed(&path, e))
}

fn write_pairs(path: &Path, rows: u64, seed: u64) -> std::io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for (english, khmer) in pairs(rows, seed) {
        writeln!(file, "{english}\t{khmer}")?;
    }
    file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
}

fn write_instructions(path: &Path, rows: u64, seed: u64) -> std::io::Result<()> {
    #[derive(Serialize)]
    struct Line<'a> {
        task_type: &'a str,
        input: &'a str,
        output: &'a str,
        foreign_raw: &'a str,
        english_ref: &'a str,
    }
    let mut file = BufWriter::new(File::create(path)?);
    for example in instructions(rows, seed) {
        let line = Line {
            task_type: &example.task,
            input: &example.instruction,
            output: &example.answer,
            foreign_raw: &example.foreign,
            english_ref: &example.english_ref,
        };
        serde_json::to_writer(&mut file, &line)?;
        file.write_all(b"\n")?;
    }
    file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
}

/// All scenes in the order of a seed. Each block holds every shape as often as its weight says.
struct Scenes {
    seed: u64,
    /// For each place of a block: the shape, its shuffle, and the number of the place among those of the shape.
    block: Vec<(&'static Shape, Shuffle, u64)>,
}

impl Scenes {
    fn new(seed: u64) -> Self {
        let mut block = Vec::new();
        for (number, shape) in (0_u64..).zip(SHAPES) {
            let shuffle = Shuffle::new(shape.size(), mix(seed ^ mix(number)));
            block.extend((0..shape.weight).map(|place| (shape, shuffle, place)));
        }
        Self { seed, block }
    }

    fn at(&self, index: u64) -> Scene {
        let size = self.block.len() as u64;
        let (block, place) = (index / size, index % size);
        // Each block is rotated by another offset, so that a shape's places follow no pattern.
        let place = (place + mix(self.seed ^ mix(block))) % size;
        let (shape, shuffle, place) = self.block[place as usize];
        shape.scene(shuffle.at(block * shape.weight + place))
    }
}

const TRANSLATE: [&str; 3] = [
    "Translate the following text into English.",
    "What does this text say in English?",
    "Give the English translation of this text.",
];
const SUMMARIZE: [&str; 3] = [
    "Summarize the following text in English.",
    "Say in short what this text is about.",
    "Give the main points of this text in plain English sentences.",
];
const BULLET_POINTS: [&str; 3] = [
    "List the facts of the following text as bullet points.",
    "Write down what this text says, point by point.",
    "Turn this text into bullet points in English.",
];

fn example(scenes: &Scenes, row: u64, seed: u64) -> InstructionExample {
    let chance = mix(mix(seed) ^ row);
    let wording = (chance >> 8) as usize % TRANSLATE.len();
    let sentences = match row % 4 {
        0 => 1 + chance % 2,
        1 => 2 + chance % 2,
        2 => 1,
        _ => 1 + chance % 3,
    };
    let mut told: Vec<Scene> = Vec::new();
    let (mut foreign, mut english_ref) = (String::new(), String::new());
    for scene in (0..sentences).map(|sentence| scenes.at(row * MOST_SENTENCES + sentence)) {
        let khmer = scene.khmer();
        if !told.is_empty() {
            if foreign.chars().count() + 1 + khmer.chars().count() > MOST_CHARS {
                break;
            }
            foreign.push(' ');
            english_ref.push(' ');
        }
        foreign.push_str(&khmer);
        english_ref.push_str(&scene.english());
        told.push(scene);
    }
    let (task, instruction, answer) = match row % 4 {
        0 => ("translate", TRANSLATE[wording].to_owned(), english_ref.clone()),
        1 => {
            let gists: Vec<_> = told.iter().map(Scene::gist).collect();
            ("summarize", SUMMARIZE[wording].to_owned(), gists.join(" "))
        }
        2 => {
            let points: Vec<_> = told[0].facts().map(|fact| format!("- {fact}")).collect();
            ("bullet_points", BULLET_POINTS[wording].to_owned(), points.join("\n"))
        }
        _ => {
            let (question, answer) = question(&told, chance >> 16);
            ("question_answering", question, answer)
        }
    };
    InstructionExample {
        task: task.to_owned(),
        instruction: format!("{instruction}\n{FOREIGN_PLACEHOLDER}"),
        foreign,
        english_ref,
        answer,
        source: SOURCE.to_owned(),
    }
}

/// Returns a question about one of the scenes whose answer no other scene gives.
fn question(told: &[Scene], chance: u64) -> (String, String) {
    let mut questions: Vec<(String, String)> = told.iter().flat_map(Scene::questions).collect();
    let asked = questions.clone();
    questions.retain(|(question, _)| asked.iter().filter(|(other, _)| other == question).count() == 1);
    let choice = chance as usize % questions.len().max(1);
    // Two scenes of an example differ, and so do a scene's own questions. At least the first question remains.
    questions.into_iter().nth(choice).or_else(|| asked.into_iter().next()).unwrap_or_default()
}
