//! Finds the models of a bundle again and recognizes them by their content.

use std::path::{Path, PathBuf};

use tokio::runtime::Handle;

use crate::models::{ModelPlace, fingerprint};
use crate::{Error, Result};

/// A model as a bundle names it.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The role, `encoder` or `decoder`.
    pub role: &'static str,
    /// The name for people.
    pub name: &'a str,
    /// The location when the bundle was made.
    pub source: &'a str,
    /// The required fingerprint.
    pub fingerprint: &'a str,
}

/// Returns the folder, or GGUF file, of the wanted model on this machine. `given` overrides the location in the bundle
/// at `bundle_url`. A model in an object store is fetched once and kept below `downloads`.
///
/// # Errors
/// [`Error::Model`] when the model is missing, incomplete or another one; those of the store.
pub fn find(
    wanted: Wanted<'_>,
    given: Option<&str>,
    bundle_url: &str,
    downloads: &Path,
    runtime: &Handle,
) -> Result<PathBuf> {
    let url = given.map_or_else(|| resolve(wanted.source, bundle_url), str::to_owned);
    let refuse = |reason: String| Error::model(&url, reason);
    let place = ModelPlace::open(&url)?;
    let found_at = match place.local_path() {
        Some(local) if !local.exists() => {
            let Wanted { role, name, .. } = wanted;
            return Err(refuse(format!("the {role} {name} is not there: name its folder, file or URL with --{role}")));
        }
        _ => place.fetch(&downloads.join(wanted.fingerprint), runtime, &|| Ok(()))?,
    };
    let found = fingerprint(&found_at)?;
    if found == wanted.fingerprint {
        return Ok(found_at);
    }
    let Wanted { role, name, .. } = wanted;
    Err(refuse(format!(
        "is not the {role} that the bundle was made with ({name}): its fingerprint is {found}, the bundle's is {}. Name the \
         right one with --{role}",
        wanted.fingerprint
    )))
}

/// Resolves a source of the bundle at `bundle_url`. One that begins with `../` is relative to the bundle's folder.
fn resolve(source: &str, bundle_url: &str) -> String {
    if !source.starts_with("../") {
        return source.into();
    }
    let mut base = bundle_url.trim_end_matches('/').to_owned();
    let mut rest = source;
    while let Some(shorter) = rest.strip_prefix("../") {
        rest = shorter;
        match base.rsplit_once('/') {
            Some((folder, last)) if ![".", ".."].contains(&last) => base.truncate(folder.len()),
            // The relative path has no more folders, so the file system resolves the rest.
            _ => base.push_str("/.."),
        }
    }
    format!("{base}/{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_within_the_output_is_found_from_the_bundles_folder() {
        let source = "../../models/ab/encoder";
        for (bundle, found) in [
            ("/data/out/export/cd", "/data/out/models/ab/encoder"),
            ("s3://bucket/out/export/cd/", "s3://bucket/out/models/ab/encoder"),
            ("out/export/cd", "out/models/ab/encoder"),
            ("cd", "cd/../../models/ab/encoder"),
        ] {
            assert_eq!(resolve(source, bundle), found);
        }
        assert_eq!(resolve("/models/x", "/data/out/export/cd"), "/models/x");
        assert_eq!(resolve("s3://b/x", "/data/out/export/cd"), "s3://b/x");
    }
}
