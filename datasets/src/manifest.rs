//! placeholder until merge
use std::collections::BTreeMap;
/// m
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize, serde::Deserialize)]
pub struct Manifest { pub version: u32, pub stage: String, pub key: String, pub artifacts: Vec<ManifestArtifact>, pub counts: BTreeMap<String,u64>, pub figures: BTreeMap<String,f64>, pub facts: BTreeMap<String,String>, pub warnings: Vec<String> }
/// a
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize, serde::Deserialize)]
pub struct ManifestArtifact { pub path: String, pub role: String, pub rows: u64, pub bytes: u64, pub sha256: String, pub metadata: BTreeMap<String,String> }
/// s
pub fn sha256_hex(b: &[u8]) -> String { use sha2::Digest; sha2::Sha256::digest(b).iter().map(|b| format!("{b:02x}")).collect() }
