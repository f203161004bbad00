//! The report of a job, as `report.json` holds it. The command line and the coordinator's page show it too.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::measured::{Figures, Retrieval, Section, sections};

/// What a job read, kept, learned and measured, and where its artifacts are.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The job's name.
    pub job: String,
    /// The job's id.
    pub id: String,
    /// The URL of the job's output. The paths below are relative to it.
    pub output: String,
    /// The seconds from submit to the end.
    pub seconds: f64,
    /// The stages, in the order in which they ran.
    pub stages: Vec<StageReport>,
    /// The time of the trainings.
    pub training: Option<TrainingReport>,
    /// The rows of the retrieval table.
    pub retrieval: Option<Vec<Retrieval>>,
    /// Rows read, kept, and dropped by reason.
    pub counts: BTreeMap<String, u64>,
    /// The figures of each stage that has some.
    pub figures: BTreeMap<String, Figures>,
    /// Fingerprints, widths and similar facts.
    pub facts: BTreeMap<String, String>,
    /// Warnings for people.
    pub warnings: Vec<String>,
    /// The folder of the bundle.
    pub bundle: Option<String>,
    /// The path of the benchmark's ids and ranks.
    pub benchmark: Option<String>,
    /// The path of the page that `evaluate` drew.
    pub page: Option<String>,
}

/// The part of a stage.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StageReport {
    /// The stage's name.
    pub stage: String,
    /// The stage's key.
    pub key: String,
    /// True if an earlier result with this key was used.
    pub cached: bool,
    /// The seconds that the stage took.
    pub seconds: f64,
    /// The folder of the stage's artifacts.
    pub directory: String,
    /// The number of artifacts.
    pub artifacts: usize,
    /// The size of all artifacts together.
    pub bytes: u64,
}

/// The time of all trainings of a job.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TrainingReport {
    /// The share of the time that steps took which counted.
    pub effective_time: f64,
    /// The time in seconds. It includes what was lost with ranks, waited for, or done twice.
    pub seconds: f64,
}

impl Report {
    /// Returns everything that `evaluate` measured, in reading order.
    #[must_use]
    pub fn measured(&self) -> Vec<Section> {
        self.figures.get("evaluate").map_or_else(Vec::new, sections)
    }
}
