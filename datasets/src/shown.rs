//! URLs in a form that people may see, without secrets.
//!
//! A URL can authenticate its holder, by a name and password before its host or by a query with a signature or a token.
//! [`ShownUrl`] is the form of a URL that is printed, logged and stored. [`withheld`] is the form in a plan, for a URL
//! whose secret part is kept in memory only.

use std::borrow::Cow;
use std::fmt;

use sha2::{Digest, Sha256};
use url::Url;
use url::form_urlencoded;

/// The prefix of the fragment that replaces the withheld part of a URL.
const WITHHELD: &str = "#withheld-";

/// Stores whose URLs have no query, because everything after the bucket is the key.
const KEYED: [&str; 9] = ["s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "file", "memory"];

/// A URL or path without its credentials: without name and password, and for web addresses without query and fragment.
/// It displays as `https://host/path`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShownUrl(String);

impl ShownUrl {
    /// Returns the part of a URL or path that may be shown.
    #[must_use]
    pub fn of(url: &str) -> Self {
        let Some((scheme, rest)) = url.split_once("://") else {
            return Self(url.to_owned());
        };
        let lower = scheme.to_ascii_lowercase();
        let is_keyed = KEYED.contains(&lower.as_str());
        let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(authority_end);
        let authority = match authority.rsplit_once('@') {
            // Azure writes its containers as `abfss://container@account/…`.
            Some((container, _)) if lower.starts_with("abfs") && !container.contains(':') => authority,
            Some((_, host)) => host,
            None => authority,
        };
        let path = match path.find(['?', '#']) {
            Some(at) if !is_keyed || is_signed(&path[at + 1..]) => &path[..at],
            _ => path,
        };
        Self(format!("{scheme}://{authority}{path}"))
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ShownUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns the text with each URL replaced by the form that may be shown.
#[must_use]
pub fn redacted(text: &str) -> Cow<'_, str> {
    if !text.contains("://") {
        return Cow::Borrowed(text);
    }
    let (mut shown, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find("://") {
        let is_of_scheme = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        let start = rest[..at]
            .rfind(|c| !is_of_scheme(c))
            .map_or(0, |before| before + rest[before..].chars().next().map_or(1, char::len_utf8));
        let ends = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '<' | '>' | '`');
        let end = rest[at + 3..].find(ends).map_or(rest.len(), |length| at + 3 + length);
        shown.push_str(&rest[..start]);
        shown.push_str(ShownUrl::of(&rest[start..end]).as_str());
        rest = &rest[end..];
    }
    shown.push_str(rest);
    Cow::Owned(shown)
}

/// Returns true if a query parameter authenticates requests: those of presigned URLs of S3, GCS, Azure, Alibaba and
/// CloudFront, and the usual names of tokens and keys.
#[must_use]
pub fn is_credential(name: &str) -> bool {
    // The parameters of Azure's shared access signatures.
    const AZURE: [&str; 20] = [
        "sig", "se", "st", "sp", "sv", "sr", "spr", "sip", "ske", "skt", "sks", "skv", "skoid", "sktid", "sdd", "srt",
        "ss", "saoid", "suoid", "scid",
    ];
    const EXACT: [&str; 7] =
        ["expires", "policy", "key-pair-id", "awsaccesskeyid", "googleaccessid", "ossaccesskeyid", "jwt"];
    const WITHIN: [&str; 11] = [
        "signature",
        "token",
        "secret",
        "password",
        "passwd",
        "credential",
        "apikey",
        "api-key",
        "api_key",
        "subscription-key",
        "auth",
    ];
    const BEFORE: [&str; 4] = ["x-amz-", "x-goog-", "x-oss-", "q-sign-"];
    let name = name.to_ascii_lowercase();
    AZURE.contains(&name.as_str())
        || EXACT.contains(&name.as_str())
        || WITHIN.iter().any(|part| name.contains(part))
        || BEFORE.iter().any(|prefix| name.starts_with(prefix))
}

/// Returns true if a query holds a signature.
fn is_signed(query: &str) -> bool {
    let signs = |name: &str| name == "sig" || name.to_ascii_lowercase().ends_with("signature");
    form_urlencoded::parse(query.as_bytes()).any(|(name, _)| signs(&name))
}

/// Names the credential in a URL, or returns `None` if it shows none. This is for URLs that are stored and must hold no
/// secret.
#[must_use]
pub fn credential_of(url: &str) -> Option<&'static str> {
    let (_, rest) = url.split_once("://")?;
    let shown = ShownUrl::of(url);
    let (_, shown_rest) = shown.as_str().split_once("://")?;
    let authority = |rest: &str| rest.split(['/', '?', '#']).next().map(str::len);
    if authority(rest) != authority(shown_rest) {
        return Some("a name or password");
    }
    let query = rest.split_once('?').map_or("", |(_, query)| query);
    // Google's interfaces take a key in a parameter of this name; on other servers it may name a file.
    let tells = |name: &str| is_credential(name) || name.eq_ignore_ascii_case("key");
    let is_cut = shown_rest.len() < rest.len();
    let mut names = form_urlencoded::parse(query.as_bytes());
    (is_cut && names.any(|(name, _)| tells(&name))).then_some("a key, a token or a signature")
}

/// Returns the name that a plan gives to a web address of which a part is kept in memory only. It is the shown form
/// with a fragment that distinguishes resources with the same shown form. A renewed signature changes nothing. The
/// result is `None` if nothing must be withheld.
#[must_use]
pub fn withheld(url: &str) -> Option<String> {
    let (scheme, _) = url.split_once("://")?;
    if !["http", "https"].iter().any(|web| scheme.eq_ignore_ascii_case(web)) {
        return None;
    }
    let shown = ShownUrl::of(url);
    if shown.as_str() == url {
        return None;
    }
    let parsed = Url::parse(url).ok()?;
    let mut hasher = Sha256::new();
    for (name, value) in parsed.query_pairs().filter(|(name, _)| !is_credential(name)) {
        hasher.update([name.as_bytes(), b"=", value.as_bytes(), b"&"].concat());
    }
    let digest: String = hasher.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    Some(format!("{shown}{WITHHELD}{digest}"))
}

/// Returns true if [`withheld`] made the URL, which then can't be opened.
#[must_use]
pub fn is_withheld(url: &str) -> bool {
    url.contains(WITHHELD)
}

/// Returns the parts of a web address that must not be shown anywhere, because a server may repeat them in its answers.
#[cfg(feature = "cloud")]
pub(crate) fn secrets_of(url: &Url) -> Vec<String> {
    /// A shorter value of a parameter of unknown meaning counts as a harmless word.
    const LONG: usize = 16;
    let mut secrets: Vec<String> = Vec::new();
    secrets.extend(url.password().map(str::to_owned));
    let raw = url.query().unwrap_or_default().split('&').filter_map(|part| part.split_once('='));
    for ((name, value), (_, written)) in url.query_pairs().zip(raw) {
        if value.len() >= LONG || (is_credential(&name) && value.len() >= 4) {
            secrets.push(value.into_owned());
            secrets.push(written.to_owned());
        }
    }
    // The longest secrets come first, so that no part of a secret remains.
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    secrets.dedup();
    secrets
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNED: &str = "https://host:8443/d/a.tsv?X-Amz-Credential=AKIA&X-Amz-Signature=5ecret#top";

    #[test]
    fn what_authenticates_a_url_is_not_shown() {
        for (url, shown) in [
            (SIGNED, "https://host:8443/d/a.tsv"),
            ("HTTP://me:5ecret@host/a", "HTTP://host/a"),
            ("https://tok@host?x", "https://host"),
            ("https://host/a@b/c", "https://host/a@b/c"),
            ("s3://AKIA:5ecret@bucket/a?b#c", "s3://bucket/a?b#c"),
            ("az://box/a.tsv?sv=1&sig=5ecret", "az://box/a.tsv"),
            ("abfss://box@account.dfs.core.windows.net/a", "abfss://box@account.dfs.core.windows.net/a"),
            ("hf://me:5ecret@owner/name?token=5ecret", "hf://owner/name"),
            ("/data/a?b#c.tsv", "/data/a?b#c.tsv"),
            ("memory://x/a?b", "memory://x/a?b"),
        ] {
            assert_eq!(ShownUrl::of(url).to_string(), shown, "{url}");
        }
    }

    #[test]
    fn urls_within_a_text_are_shown_alike() {
        let text = format!(
            "GET {SIGNED} in 5ms: (\"http://u:5ecret@h/x?5ecret\"), ទhttps://h?5ecret\x1b[0m and s3://b/k?1 ://"
        );
        assert_eq!(
            redacted(&text),
            "GET https://host:8443/d/a.tsv in 5ms: (\"http://h/x\"), ទhttps://h\x1b[0m and s3://b/k?1 ://"
        );
        assert!(matches!(redacted("no address"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_withheld_url_outlasts_its_signature_and_tells_files_apart() {
        let first = withheld(SIGNED).unwrap();
        assert!(is_withheld(&first) && !first.contains("5ecret") && !first.contains("AKIA"), "{first}");
        assert_eq!(withheld(&SIGNED.replace("5ecret", "another").replace("AKIA", "ASIA")), Some(first.clone()));
        assert_eq!(ShownUrl::of(&first), ShownUrl::of(SIGNED));
        let of = |query: &str| withheld(&format!("https://host/get?{query}")).unwrap();
        assert_ne!(of("file=a.tsv&token=1"), of("file=b.tsv&token=1"));
        assert_eq!(of("file=a.tsv&token=1"), of("token=2&file=a.tsv"));
        for plain in ["https://host/a.tsv", "s3://bucket/a?b", "/data/a?b"] {
            assert_eq!(withheld(plain), None, "{plain}");
        }
    }

    #[test]
    fn urls_that_hold_a_secret_are_told() {
        for url in [
            "https://me:5ecret@host/v1",
            "https://host/v1?api-key=5ecret",
            "https://host/v1?key=5ecret",
            "s3://AKIA:5ecret@bucket/a",
            "az://box/a?sv=1&sig=5ecret",
            "hf://owner/name?token=5ecret",
        ] {
            assert!(credential_of(url).is_some(), "{url}");
        }
        for url in [
            "https://host/v1?api-version=2024-10-21",
            "s3://bucket/a?key=1",
            "/data/a?token=1",
            "abfss://box@account.dfs.core.windows.net/a",
            "http://127.0.0.1:8000/v1",
        ] {
            assert_eq!(credential_of(url), None, "{url}");
        }
    }
}
