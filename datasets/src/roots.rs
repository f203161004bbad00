//! Roots limit where jobs may read and write. A coordinator or a worker is given roots, and a URL must lie below one of
//! them.

use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use url::Url;

use crate::shown::{ShownUrl, credential_of};
use crate::store::without_dots;

/// The roots below which URLs must lie.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Roots {
    /// Any URL is allowed.
    #[default]
    Any,
    /// Only URLs below one of these roots; an empty list admits nothing.
    Below(Vec<Root>),
}

/// A root, below which URLs are admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// A local folder.
    Folder(PathBuf),
    /// A place in a store or on a host: scheme, host with port, and path without a trailing `/`.
    Place {
        /// The scheme, such as `s3` or `https`.
        scheme: String,
        /// The bucket, or the host with its port.
        authority: String,
        /// The path; empty for the whole bucket or host.
        path: String,
    },
}

impl FromStr for Root {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match parse(text)? {
            Root::Folder(folder) if !folder.is_absolute() => {
                Err(format!("{text}: a root is an absolute path or a URL such as s3://bucket/llink"))
            }
            root => Ok(root),
        }
    }
}

impl Roots {
    /// Parses what a person wrote: `any`, or roots.
    ///
    /// # Errors
    /// When one of the texts is not a root; the text says why.
    pub fn of(texts: &[String]) -> Result<Self, String> {
        if texts.iter().any(|t| t == "any") {
            return Ok(Self::Any);
        }
        texts.iter().map(|t| t.parse()).collect::<Result<_, _>>().map(Self::Below)
    }

    /// Checks that the URL lies below one of the roots. Links in local folders are followed as far as they exist.
    ///
    /// # Errors
    /// The reason for people, with the roots.
    pub fn admit(&self, url: &str) -> Result<(), String> {
        let Self::Below(roots) = self else { return Ok(()) };
        let wanted = parse(url)?;
        if roots.iter().any(|root| root.holds(&wanted)) {
            return Ok(());
        }
        let known: Vec<String> = roots.iter().map(ToString::to_string).collect();
        let url = ShownUrl::of(url);
        Err(match known.as_slice() {
            [] => format!("{url}: jobs may read and write nowhere here: the coordinator was given no --allow-root"),
            known => format!("{url} lies below none of the roots that jobs may use: {}", known.join(", ")),
        })
    }
}

/// Checks that a job may take an endpoint's key from this environment variable. Variables that open stores, and llink's
/// own, are sent to nobody.
///
/// # Errors
/// The reason for people.
pub fn check_key_variable(name: &str) -> Result<(), String> {
    let upper = name.to_ascii_uppercase();
    let own = ["AWS_", "AZURE_", "GOOGLE_", "KUBERNETES_", "LLINK_"];
    match own.iter().any(|prefix| upper.starts_with(prefix)) {
        true => Err(format!("{name} is one of the workers' own variables, which are never sent")),
        false => Ok(()),
    }
}

impl Root {
    fn holds(&self, wanted: &Self) -> bool {
        match (self, wanted) {
            (Self::Folder(root), Self::Folder(wanted)) => {
                wanted.starts_with(root) && really(wanted).starts_with(really(root))
            }
            (Self::Place { scheme, authority, path }, Self::Place { scheme: s, authority: a, path: p }) => {
                scheme == s && authority == a && below(path, p)
            }
            _ => false,
        }
    }
}

impl std::fmt::Display for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Folder(folder) => write!(f, "{}", folder.display()),
            Self::Place { scheme, authority, path } => write!(f, "{scheme}://{authority}{path}"),
        }
    }
}

fn below(root: &str, path: &str) -> bool {
    path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Returns the path with the links resolved in the part of it that exists.
fn really(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let Ok(real) = ancestor.canonicalize() {
            let rest = path.strip_prefix(ancestor).unwrap_or(Path::new(""));
            return real.join(rest);
        }
    }
    path.to_owned()
}

fn parse(text: &str) -> Result<Root, String> {
    let Some((scheme, after)) = text.split_once("://") else {
        return folder(text, Path::new(text));
    };
    let shown = ShownUrl::of(text);
    // In an object store, `?` and `#` are characters of the key.
    let is_place = matches!(scheme, "file" | "http" | "https");
    let path_part = if is_place { after.split(['?', '#']).next().unwrap_or_default() } else { after };
    // The parser removes `..` silently. A URL with `..` is hostile or a mistake.
    let decoded = match percent_decoded(path_part) {
        Some(decoded) => decoded,
        None if is_place => return Err(format!("{shown}: broken % sequence")),
        None => path_part.to_owned(),
    };
    let is_dotted = |path: &str| path.split(['/', '\\']).any(|part| part == ".." || part == ".");
    if is_dotted(&decoded) || is_dotted(path_part) || decoded.contains(['\\', '\0']) {
        return Err(format!("{shown}: a job's URL may not contain `.`, `..` or `\\`"));
    }
    if scheme == "file" {
        let path = Url::parse(text).ok().and_then(|url| url.to_file_path().ok());
        let path = path.ok_or_else(|| format!("{shown}: not a local file; write file:///absolute/path"))?;
        return folder(text, &path);
    }
    if is_place {
        let url = Url::parse(text).map_err(|e| format!("{shown}: {e}"))?;
        let host = url.host_str().unwrap_or_default();
        return Ok(Root::Place {
            scheme: url.scheme().into(),
            authority: url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")),
            path: percent_decoded(url.path()).unwrap_or_default().trim_end_matches('/').into(),
        });
    }
    if let Some(credential) = credential_of(text) {
        return Err(format!("{shown}: a job's URL may not hold a key, and this one holds {credential}"));
    }
    if scheme == "hf" {
        return hub_place(&shown.to_string(), &decoded);
    }
    let (authority, key) = after.split_once('/').unwrap_or((after, ""));
    Ok(Root::Place {
        scheme: scheme.into(),
        authority: authority.into(),
        path: format!("/{key}").trim_end_matches('/').into(),
    })
}

/// Parses a place on the Hugging Face Hub: `hf://` is all of it, then come owners, and repositories at any revision.
/// The owner of a data set is another place than the same owner of models.
fn hub_place(text: &str, decoded: &str) -> Result<Root, String> {
    let mut parts: Vec<&str> = decoded.split('/').filter(|part| !part.is_empty()).collect();
    if parts.first() == Some(&"models") {
        parts.remove(0);
    }
    let name = if parts.first() == Some(&"datasets") { 2 } else { 1 };
    let revision = parts.get(name).and_then(|part| part.split_once('@'));
    if let Some((plain, revision)) = revision {
        parts[name] = plain;
        // The Hub's own references have two more parts.
        if revision == "refs" {
            parts.drain((name + 1).min(parts.len())..(name + 3).min(parts.len()));
        }
    }
    if parts.iter().take(name + 1).any(|part| part.contains('@')) {
        return Err(format!("{text}: `@` stands between a repository and its revision"));
    }
    let path: String = parts.iter().map(|part| format!("/{part}")).collect();
    Ok(Root::Place { scheme: "hf".into(), authority: String::new(), path })
}

fn folder(text: &str, path: &Path) -> Result<Root, String> {
    if text.is_empty() || text.contains('\0') {
        return Err(format!("{text:?} is not a path"));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(format!("{text}: a job's path may not contain `..`"));
    }
    Ok(Root::Folder(without_dots(path)))
}

/// Decodes `%41` and the like; `None` if an escape is broken or the result is not UTF-8.
pub(crate) fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        if *byte != b'%' {
            bytes.push(*byte);
            rest = after;
            continue;
        }
        let digits = std::str::from_utf8(after.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roots(texts: &[&str]) -> Roots {
        Roots::of(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn only_what_lies_below_a_root_is_admitted() {
        let roots = roots(&["s3://bucket/llink", "/data", "https://models.example:8443/v1"]);
        for good in [
            "s3://bucket/llink",
            "s3://bucket/llink/a/b.tsv",
            "/data/x",
            "file:///data/x/y",
            "https://models.example:8443/v1",
            "https://models.example:8443/v1/chat?x=1",
        ] {
            assert_eq!(roots.admit(good), Ok(()), "{good}");
        }
        for bad in [
            "s3://bucket/llinkx",
            "s3://bucket",
            "s3://other/llink/a",
            "gs://bucket/llink/a",
            "/data2/x",
            "/etc/passwd",
            "data/x",
            "file:///etc/passwd",
            "https://models.example/v1",
            "http://models.example:8443/v1",
            "http://169.254.169.254/latest/meta-data",
            "memory://x",
            // Here they are characters of the key and do not end the path.
            "s3://bucket/llink?x/secret",
            "s3://bucket/llink#x/secret",
        ] {
            let said = roots.admit(bad).unwrap_err();
            assert!(said.contains("s3://bucket/llink"), "{bad}: {said}");
        }
    }

    #[test]
    fn a_repository_of_the_hub_is_admitted_at_any_revision_and_its_neighbors_are_not() {
        let some = roots(&["hf://intfloat", "hf://meta-llama/Llama-3.2-1B", "hf://datasets/facebook"]);
        for good in [
            "hf://intfloat/multilingual-e5-small",
            "hf://models/intfloat/e5@0123/model.gguf",
            "hf://meta-llama/Llama-3.2-1B@main",
            "hf://datasets/facebook/flores@refs/convert/parquet/x.parquet",
        ] {
            assert_eq!(some.admit(good), Ok(()), "{good}");
        }
        for bad in [
            "hf://intfloatx/e5",
            "hf://meta-llama/Llama-3.2-1B-Instruct",
            "hf://meta-llama/Llama-3.2-1B@main/../../x/y",
            "hf://facebook/flores",
            "hf://datasets/intfloat/x",
            "hf://other@intfloat/x",
            "https://huggingface.co/intfloat/e5",
        ] {
            assert!(some.admit(bad).is_err(), "{bad}");
        }
        assert_eq!(roots(&["hf://"]).admit("hf://any/thing"), Ok(()));
        assert!(roots(&["s3://bucket"]).admit("hf://any/thing").is_err());
    }

    #[test]
    fn escapes_are_refused_however_they_are_written() {
        let roots = roots(&["s3://bucket/llink", "/data"]);
        for escape in [
            "/data/../etc/passwd",
            "file:///data/../etc/passwd",
            "file:///data/%2e%2e/etc/passwd",
            "s3://bucket/llink/../other",
            "s3://bucket/llink/%2e%2e/other",
            "s3://bucket/llink/..%2fother",
            "s3://bucket/llink/%2E./other",
            "s3://bucket/llink\\..\\other",
            "s3://user:secret@bucket/llink/x",
            "https://models.example:8443/v1/%zz",
        ] {
            let said = roots.admit(escape).unwrap_err();
            assert!(!said.contains("secret"), "{said}");
        }
    }

    #[test]
    fn a_link_does_not_lead_out() {
        let dir = std::env::temp_dir().join(format!("llink-roots-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("inside")).unwrap();
        std::os::unix::fs::symlink("/etc", dir.join("inside/out")).unwrap();
        let roots = roots(&[dir.join("inside").to_str().unwrap()]);
        let url = |name: &str| dir.join("inside").join(name).to_string_lossy().into_owned();
        assert_eq!(roots.admit(&url("new/folder")), Ok(()));
        assert!(roots.admit(&url("out/passwd")).is_err());
        assert!(roots.admit(&url("out/new/folder")).is_err());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn any_admits_all_and_none_admits_nothing() {
        assert_eq!(Roots::default().admit("/etc/passwd"), Ok(()));
        assert_eq!(Roots::of(&["any".into()]), Ok(Roots::Any));
        assert!(Roots::Below(Vec::new()).admit("/data").unwrap_err().contains("--allow-root"));
        assert!(Roots::of(&["data".into()]).unwrap_err().contains("absolute"));
    }
}
