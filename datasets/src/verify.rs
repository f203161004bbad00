//! Rereads what a job wrote and names everything that is not as its manifests say.

use std::collections::HashMap;

use bytes::Bytes;

use crate::Result;
use crate::instructions::read_instructions;
use crate::manifest::{Manifest, ManifestArtifact, sha256_hex};
use crate::pairs::read_pairs;
use crate::rows::row_id;
use crate::store::Store;
use crate::table::{SCHEMA_VERSION, SCHEMA_VERSION_KEY, StoredTable};
use crate::text::comparison_key;
use crate::vectors::read_vectors;

/// What [`verify`] looked at and found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Manifests read.
    pub manifests: u64,
    /// Objects read again.
    pub objects: u64,
    /// Rows in them.
    pub rows: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Everything that is wrong, each with the object's name.
    pub faults: Vec<String>,
}

/// Checks every manifest at or below a URL, and every object that they list: that it is there, its size and SHA-256, its
/// rows and schema version, that ids are the hashes of their texts, that vectors are finite numbers, and that no text
/// stands on both sides of a split.
///
/// # Errors
/// [`crate::Error::Store`] where the store can't be listed. What is wrong with an object is a fault, not an error.
pub async fn verify(store: &Store) -> Result<Verified> {
    let mut found = Verified::default();
    for object in store.list("").await? {
        let is_manifest = object.path == "manifest.json" || object.path.ends_with("/manifest.json");
        if is_manifest {
            found.manifests += 1;
            match Manifest::read(store, &object.path).await {
                Ok(Some(manifest)) => check_stage(store, &object.path, &manifest, &mut found).await,
                Ok(None) => {}
                Err(error) => found.faults.push(error.to_string()),
            }
        }
    }
    if found.manifests == 0 {
        let fault = format!(
            "{}: no manifest.json at or below it: nothing was committed here",
            store.url()
        );
        found.faults.push(fault);
    }
    Ok(found)
}

/// Which side of which corpus a text was seen on, by its comparison key.
#[derive(Default)]
struct Sides {
    seen: HashMap<(&'static str, u64), &'static str>,
}

impl Sides {
    /// Whether the text stands on another side too.
    fn leaks(&mut self, column: &'static str, side: &'static str, text: &str) -> bool {
        *self.seen.entry((column, comparison_key(text))).or_insert(side) != side
    }
}

async fn check_stage(store: &Store, manifest_path: &str, manifest: &Manifest, found: &mut Verified) {
    let folder = manifest_path.trim_end_matches("manifest.json");
    let own = format!("{}/{}/", manifest.stage, manifest.key);
    let mut sides = Sides::default();
    for artifact in &manifest.artifacts {
        // Paths are relative to the job's output; the stage's own folder may have been moved or named directly.
        let path = match artifact.path.strip_prefix(&own) {
            Some(rest) => format!("{folder}{rest}"),
            None => artifact.path.clone(),
        };
        let name = store.describe(&path);
        found.objects += 1;
        let content = match store.get(&path).await {
            Ok(content) => content,
            Err(error) => {
                found.faults.push(error.to_string());
                continue;
            }
        };
        found.bytes += content.len() as u64;
        let mut fault = |text: String| found.faults.push(format!("{name}: {text}"));
        if content.len() as u64 != artifact.bytes {
            fault(format!(
                "has {} bytes, the manifest says {}",
                content.len(),
                artifact.bytes
            ));
            continue;
        }
        let sha256 = sha256_hex(&content);
        if sha256 != artifact.sha256 {
            fault(format!("SHA-256 is {sha256}, the manifest says {}", artifact.sha256));
            continue;
        }
        if !path.ends_with(".parquet") {
            continue;
        }
        match check_version(store, &path).await {
            Err(error) => fault(error),
            Ok(()) => match check_rows(&name, content, artifact, &mut sides) {
                Ok(rows) => found.rows += rows,
                Err(text) => fault(text),
            },
        }
    }
}

async fn check_version(store: &Store, path: &str) -> std::result::Result<(), String> {
    let table = StoredTable::open(store, path).await.map_err(|e| e.to_string())?;
    match table.fact(SCHEMA_VERSION_KEY) {
        Some(version) if version == SCHEMA_VERSION => Ok(()),
        version => Err(format!(
            "schema version is {}, this build reads {SCHEMA_VERSION}",
            version.as_deref().unwrap_or("not given")
        )),
    }
}

/// How many rows the table has; the first fault of its rows.
fn check_rows(
    name: &str,
    content: Bytes,
    artifact: &ManifestArtifact,
    sides: &mut Sides,
) -> std::result::Result<u64, String> {
    let read = |e: crate::Error| e.to_string();
    let side = if artifact.role.ends_with("/train") {
        "train"
    } else {
        "holdout"
    };
    let leak = |row: usize, text: &str| format!("row {row}: {text:?} stands on the other side of the split too");
    let wrong_id = |row: usize, id: u64| format!("row {row}: the id {id} is not that of its texts");
    let rows = if artifact.role.starts_with("pairs/") {
        let table = read_pairs(name, content).map_err(read)?;
        for (row, id) in table.ids.iter().enumerate() {
            let (english, foreign) = (&table.english[row], &table.foreign[row]);
            if row_id(&[english, foreign]) != *id {
                return Err(wrong_id(row, *id));
            }
            for (column, text) in [("english", english), ("foreign", foreign)] {
                if sides.leaks(column, side, text) {
                    return Err(leak(row, text));
                }
            }
        }
        table.ids.len()
    } else if artifact.role.starts_with("instructions/") {
        let rows = read_instructions(name, content).map_err(read)?;
        for (number, row) in rows.iter().enumerate() {
            let texts = [&row.task, &row.instruction, &row.foreign, &row.english_ref, &row.answer];
            if row_id(&texts.map(String::as_str)) != row.id {
                return Err(wrong_id(number, row.id));
            }
            if sides.leaks("instruction", side, &row.foreign) {
                return Err(leak(number, &row.foreign));
            }
        }
        rows.len()
    } else if artifact.role.starts_with("embeddings/") {
        let table = read_vectors(name, content).map_err(read)?;
        if let Some(at) = table.values.iter().position(|value| !value.is_finite()) {
            return Err(format!("row {}: the vector is not finite", at / table.width));
        }
        table.len()
    } else {
        return Ok(0);
    };
    if rows as u64 != artifact.rows {
        return Err(format!("has {rows} rows, the manifest says {}", artifact.rows));
    }
    Ok(artifact.rows)
}
