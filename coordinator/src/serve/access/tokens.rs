//! Tokens: 256 random bits that stand for a name and a role. The file holds only their SHA-256 hashes. A plain hash
//! cannot be inverted, because tokens are long and random.

use std::collections::HashMap;
use std::path::Path;

use llink_datasets::manifest::sha256_hex;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::certificates::is_name;
use super::{Peer, Proof, Role};
use crate::machine::random;
use crate::serve::FileError;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenUse {
    #[default]
    Any,
    /// The token lets one worker process join. Another process that shows it is refused.
    Once,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    pub name: String,
    pub role: Role,
    /// The SHA-256 of the token's text in lower-case hex.
    pub sha256: String,
    /// The end of the token's validity as RFC 3339. `None` means that the token does not expire.
    pub expires: Option<String>,
    #[serde(default)]
    pub uses: TokenUse,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenFile {
    #[serde(default)]
    token: Vec<Token>,
}

#[derive(Debug, Clone, Default)]
pub struct Tokens {
    by_hash: HashMap<String, (Token, Option<OffsetDateTime>)>,
}

impl Tokens {
    /// Reads the file. A missing file holds no tokens.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let failed = |reason: String| FileError { path: path.into(), reason };
        let text = match std::fs::read_to_string(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            read => read.map_err(|e| failed(e.to_string()))?,
        };
        Self::parse(&text).map_err(failed)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let file: TokenFile = toml::from_str(text).map_err(|e| e.to_string())?;
        let mut by_hash = HashMap::new();
        for token in file.token {
            let name = token.name.clone();
            if !is_name(&name) {
                return Err(format!("the name {name:?}: expected letters, digits and . - _ @"));
            }
            if token.sha256.len() != 64 || !token.sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                return Err(format!("sha256 of {name}: expected 64 lower-case hex digits"));
            }
            if token.uses == TokenUse::Once && token.role != Role::Worker {
                return Err(format!("{name}: only a worker's token can be of one use"));
            }
            let expires = token.expires.as_deref().map(|text| OffsetDateTime::parse(text, &Rfc3339));
            let expires = expires
                .transpose()
                .map_err(|e| format!("expires of {name}: {e}; expected such as 2027-01-31T00:00:00Z"))?;
            if by_hash.insert(token.sha256.clone(), (token, expires)).is_some() {
                return Err(format!("the token of {name} is in the file twice"));
            }
        }
        Ok(Self { by_hash })
    }

    /// Returns the owner of a token that is valid at `now`.
    /// An error says why the token does not count, without details that would help to guess one.
    pub fn peer(&self, token: &str, now: OffsetDateTime) -> Result<Peer, String> {
        self.peer_by_hash(&sha256_of(token), now)
    }

    pub(super) fn peer_by_hash(&self, sha256: &str, now: OffsetDateTime) -> Result<Peer, String> {
        let (found, expires) = self.by_hash.get(sha256).ok_or("the token is not known")?;
        if expires.is_some_and(|at| at <= now) {
            return Err(format!("the token of {} has run out", found.name));
        }
        let by = Proof::Token { sha256: sha256.to_owned(), uses: found.uses };
        Ok(Peer { name: found.name.clone(), role: found.role, by })
    }
}

impl Token {
    pub fn entry(&self) -> String {
        let mut entry =
            format!("\n[[token]]\nname = \"{}\"\nrole = \"{}\"\nsha256 = \"{}\"\n", self.name, self.role, self.sha256);
        if let Some(expires) = &self.expires {
            entry.push_str(&format!("expires = \"{expires}\"\n"));
        }
        if self.uses == TokenUse::Once {
            entry.push_str("uses = \"once\"\n");
        }
        entry
    }

    /// Makes a new token for `name`. Returns the entry to keep, and the token to hand out once.
    pub fn make(
        name: &str,
        role: Role,
        lasts: Option<time::Duration>,
        uses: TokenUse,
    ) -> Result<(Self, String), String> {
        if !is_name(name) {
            return Err(format!("the name {name:?}: expected letters, digits and . - _ @"));
        }
        if uses == TokenUse::Once && role != Role::Worker {
            return Err("only a worker's token can be of one use".into());
        }
        let secret = format!("llk_{}", fresh_secret()?);
        let expires = match lasts {
            None => None,
            Some(lasts) => {
                let at = OffsetDateTime::now_utc().checked_add(lasts).ok_or("that is too long")?;
                let at = at.replace_nanosecond(0).map_err(|e| e.to_string())?;
                Some(at.format(&Rfc3339).map_err(|e| e.to_string())?)
            }
        };
        let token = Self { name: name.into(), role, sha256: sha256_of(&secret), expires, uses };
        Ok((token, secret))
    }
}

/// Returns 256 random bits in hex.
pub fn fresh_secret() -> Result<String, String> {
    (0..4).map(|_| Ok(format!("{:016x}", random()?))).collect()
}

pub fn sha256_of(text: &str) -> String {
    sha256_hex(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_token_is_known_until_it_runs_out_and_its_text_is_not_in_the_file() {
        let day = time::Duration::days(1);
        let (token, secret) = Token::make("ada", Role::Submit, Some(day), TokenUse::Any).unwrap();
        let entry = token.entry();
        assert!(!entry.contains(&secret));
        let tokens = Tokens::parse(&entry).unwrap();
        let now = OffsetDateTime::now_utc();
        let peer = tokens.peer(&secret, now).unwrap();
        assert_eq!((peer.name.as_str(), peer.role), ("ada", Role::Submit));
        assert!(tokens.peer(&secret, now + day * 2).unwrap_err().contains("run out"));
        assert!(tokens.peer(&secret[..secret.len() - 1], now).is_err());
        assert!(tokens.peer(&token.sha256, now).is_err(), "the hash is no token");
    }

    #[test]
    fn wrong_entries_are_refused_by_name() {
        let entry = |role: &str, more: &str| {
            format!("[[token]]\nname = \"ada\"\nrole = \"{role}\"\nsha256 = \"{}\"\n{more}", "a".repeat(64))
        };
        assert!(Tokens::parse(&entry("read", "")).is_ok());
        for (text, word) in [
            (entry("root", ""), "role"),
            (entry("anybody", ""), "role"),
            (entry("read", "uses = \"once\""), "worker"),
            (entry("read", "expires = \"tomorrow\""), "expires"),
            (entry("read", "extra = 1"), "extra"),
            (entry("read", "").replace("ada", "a b"), "name"),
            (entry("read", "").replace("aaaa", "AAAA"), "sha256"),
            (format!("{}{}", entry("read", ""), entry("submit", "")), "twice"),
        ] {
            let said = Tokens::parse(&text).unwrap_err();
            // `anybody` is a state of the coordinator and not a role that a file can give.
            assert!(said.contains(word), "{text}: {said}");
        }
    }
}
