//! Reads again what a job wrote and reports every difference from its manifests.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;

use crate::instructions::read_instructions;
use crate::manifest::{Manifest, ManifestArtifact, Sha256Stream, sha256_hex};
use crate::pairs::{PairTable, read_pairs};
use crate::role::{Corpus, Role, Side};
use crate::rows::row_id;
use crate::store::Store;
use crate::table::{SCHEMA_VERSION, SCHEMA_VERSION_KEY, STAGE_KEY, StoredTable};
use crate::text::comparison_key;
use crate::vectors::read_vectors;
use crate::{Error, Result};

/// The most faulty rows of one object that are named; of the others, only the number is given.
const NAMED_ROWS: usize = 3;

/// The result of [`verify`].
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Number of manifests read.
    pub manifests: u64,
    /// Number of objects read.
    pub objects: u64,
    /// Number of rows in the objects.
    pub rows: u64,
    /// Number of bytes in the objects.
    pub bytes: u64,
    /// All faults, each with the object's name.
    pub faults: Vec<String>,
}

/// Checks every manifest at or below a URL, and every object that it lists.
///
/// An object must exist with the right size, SHA-256, rows, schema version and stage key. Ids must be the hashes of
/// their texts, and vectors must be finite. No text may be on both sides of a split, and the counts must add up. Memory
/// holds one shard, and the keys of the held-out texts.
///
/// # Errors
/// [`Error::Store`] where the store can't be listed. A faulty object is reported as a fault, not as an error.
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
        let fault = format!("{}: no manifest.json at or below it: nothing was committed here", store.url());
        found.faults.push(fault);
    }
    Ok(found)
}

async fn check_stage(store: &Store, manifest_path: &str, manifest: &Manifest, found: &mut Verified) {
    let name = store.describe(manifest_path);
    let sums = wrong_sums(manifest);
    found.faults.extend(sums.into_iter().map(|text| format!("{name}: {text}")));
    let folder = manifest_path.trim_end_matches("manifest.json");
    let own = format!("{}/{}/", manifest.stage, manifest.key);
    let mut held_out = HeldOut::default();
    // Held-out rows come first, so that training rows can be compared with them.
    let mut artifacts: Vec<&ManifestArtifact> = manifest.artifacts.iter().collect();
    artifacts.sort_by_key(|artifact| matches!(artifact.role, Role::Shard(_, Side::Train)));
    for artifact in artifacts {
        // Paths are relative to the job's output, but the stage's folder may have been moved or named directly.
        let path = match artifact.path.strip_prefix(&own) {
            Some(rest) => format!("{folder}{rest}"),
            None => artifact.path.clone(),
        };
        found.objects += 1;
        let faults = match check_object(store, &path, artifact, found).await {
            Err(error) => {
                found.faults.push(error.to_string());
                continue;
            }
            Ok(Looked::Whole) => continue,
            Ok(Looked::Damaged(fault)) => vec![fault],
            Ok(Looked::Table(content)) => {
                let mut faults = check_facts(store, &path, manifest).await;
                let rows = check_rows(&store.describe(&path), content, artifact, &mut held_out);
                found.rows += rows.number;
                faults.extend(rows.faults());
                faults
            }
        };
        let name = store.describe(&path);
        found.faults.extend(faults.into_iter().map(|text| format!("{name}: {text}")));
    }
}

/// The result of reading an object again.
enum Looked {
    /// The bytes match the manifest, and the object is not a table.
    Whole,
    /// The bytes match the manifest, and the rows are still to be checked.
    Table(Bytes),
    /// The bytes differ from the manifest.
    Damaged(String),
}

async fn check_object(store: &Store, path: &str, artifact: &ManifestArtifact, found: &mut Verified) -> Result<Looked> {
    let is_table = path.ends_with(".parquet");
    let (bytes, sha256, content) = if is_table {
        let content = store.get(path).await?;
        (content.len() as u64, sha256_hex(&content), content)
    } else {
        // Weights may be too large for memory, so they are read as a stream.
        let (_, mut stream) = store.stream(path).await?;
        let mut hash = Sha256Stream::default();
        while let Some(piece) = stream.next().await? {
            hash.update(&piece);
        }
        (hash.bytes(), hash.finish(), Bytes::new())
    };
    found.bytes += bytes;
    Ok(if bytes != artifact.bytes {
        Looked::Damaged(format!("has {bytes} bytes, the manifest says {}", artifact.bytes))
    } else if sha256 != artifact.sha256 {
        Looked::Damaged(format!("SHA-256 is {sha256}, the manifest says {}", artifact.sha256))
    } else if is_table {
        Looked::Table(content)
    } else {
        Looked::Whole
    })
}

/// Returns the faults in the table's metadata.
async fn check_facts(store: &Store, path: &str, manifest: &Manifest) -> Vec<String> {
    let table = match StoredTable::open(store, path).await {
        Ok(table) => table,
        // The error is reported when the rows are read.
        Err(_) => return Vec::new(),
    };
    let mut faults = Vec::new();
    let version = table.fact(SCHEMA_VERSION_KEY);
    if version.as_deref() != Some(SCHEMA_VERSION) {
        let version = version.as_deref().unwrap_or("not given");
        faults.push(format!("schema version is {version}, this build reads {SCHEMA_VERSION}"));
    }
    if let Some(key) = table.fact(STAGE_KEY)
        && key != manifest.key
    {
        faults.push(format!("was written for key {key}, the manifest is that of {}", manifest.key));
    }
    faults
}

/// The rows of a table, and their faults.
#[derive(Default)]
struct Rows {
    number: u64,
    named: Vec<String>,
    others: u64,
}

impl Rows {
    fn wrong(&mut self, fault: String) {
        match self.named.len() < NAMED_ROWS {
            true => self.named.push(fault),
            false => self.others += 1,
        }
    }

    fn faults(mut self) -> Vec<String> {
        if self.others > 0 {
            self.named.push(format!("{} more rows are wrong", self.others));
        }
        self.named
    }
}

/// The comparison keys of held-out texts, by column.
#[derive(Default)]
struct HeldOut {
    texts: BTreeMap<&'static str, HashSet<u64>>,
}

impl HeldOut {
    /// Remembers a held-out text. For a training text, returns true if it is held out too.
    fn leaks(&mut self, column: &'static str, side: Side, text: &str) -> bool {
        let texts = self.texts.entry(column).or_default();
        let key = comparison_key(text);
        if side == Side::Train {
            return texts.contains(&key);
        }
        texts.insert(key);
        false
    }
}

fn check_rows(name: &str, content: Bytes, artifact: &ManifestArtifact, held_out: &mut HeldOut) -> Rows {
    let mut rows = Rows::default();
    let read = match artifact.role {
        Role::Shard(corpus, side) => check_shard(name, content, corpus, side, held_out, &mut rows),
        Role::Vectors(..) => check_vectors(name, content, &mut rows),
        _ => return rows,
    };
    match read {
        // The name precedes every fault.
        Err(Error::Content { reason, .. }) => rows.wrong(reason),
        Err(error) => rows.wrong(error.to_string()),
        Ok(()) if rows.number != artifact.rows => {
            let fault = format!("has {} rows, the manifest says {}", rows.number, artifact.rows);
            rows.named.insert(0, fault);
        }
        Ok(()) => {}
    }
    rows
}

/// Checks that the ids are those of the texts, and that no text stands on both sides.
fn check_shard(
    name: &str,
    content: Bytes,
    corpus: Corpus,
    side: Side,
    held_out: &mut HeldOut,
    rows: &mut Rows,
) -> Result<()> {
    let mut check = |id: u64, texts: &[&str], sides: [(&'static str, &str); 2]| {
        let row = rows.number;
        if row_id(texts) != id {
            rows.wrong(format!("row {row}: the id {id} is not that of its texts"));
        }
        for (column, text) in sides {
            if held_out.leaks(column, side, text) {
                rows.wrong(format!("row {row}: {text:?} stands on the other side of the split too"));
            }
        }
        rows.number += 1;
    };
    match corpus {
        Corpus::Pairs => {
            let PairTable { ids, english, foreign } = read_pairs(name, content)?;
            for ((id, english), foreign) in ids.into_iter().zip(&english).zip(&foreign) {
                check(id, &[english, foreign], [("english", english), ("foreign", foreign)]);
            }
        }
        Corpus::Instructions => {
            for row in read_instructions(name, content)? {
                let texts = [&*row.task, &*row.instruction, &*row.foreign, &*row.english_ref, &*row.answer];
                check(row.id, &texts, [("instruction english", &row.english_ref), ("instruction", &row.foreign)]);
            }
        }
    }
    Ok(())
}

fn check_vectors(name: &str, content: Bytes, rows: &mut Rows) -> Result<()> {
    let table = read_vectors(name, content)?;
    rows.number = table.len() as u64;
    for row in 0..table.len() {
        if table.row(row).iter().any(|value| !value.is_finite()) {
            rows.wrong(format!("row {row}: the vector is not finite"));
        }
    }
    Ok(())
}

/// Returns the counts of the `shard` stage that do not add up. Every row that was read is kept or dropped for one
/// reason. Every kept row is on a side or was dropped by the split.
fn wrong_sums(manifest: &Manifest) -> Vec<String> {
    let mut faults = Vec::new();
    for corpus in ["pairs", "instructions", "synthesized"] {
        for step in ["", "split."] {
            let prefix = format!("{corpus}.{step}");
            let count = |name: &str| manifest.counts.get(&format!("{prefix}{name}")).copied();
            let Some(rows) = count("rows") else { continue };
            let dropped_prefix = format!("{prefix}dropped_");
            let dropped = manifest.counts.iter().filter(|(name, _)| name.starts_with(&dropped_prefix));
            let parts = ["kept", "train", "holdout"].map(|name| count(name).unwrap_or(0));
            let sum = parts.iter().sum::<u64>() + dropped.map(|(_, rows)| rows).sum::<u64>();
            if sum != rows {
                faults.push(format!("{prefix}rows is {rows}, but its parts add up to {sum}"));
            }
        }
    }
    faults
}
