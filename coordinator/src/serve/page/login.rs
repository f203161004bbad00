//! The login of browsers. A person enters a token in a form once. After that a cookie shows it, which only the page of
//! this coordinator accepts.
//!
//! The cookie holds the token's SHA-256 and a seal of this process. Whoever gets the cookie can read the page until the
//! coordinator ends, and can do nothing else.

use axum::http::HeaderMap;

use crate::serve::access::{bearer, sha256_of};

pub(super) const FORM_BYTES: usize = 4 << 10;
/// The lifetime of a cookie in seconds, a working day.
const LASTS_S: u32 = 12 * 60 * 60;

#[derive(Debug)]
pub(super) struct Cookies {
    /// The name of the cookie has the port, because a browser sends cookies of a host to all of its ports.
    name: String,
    key: String,
    secure: bool,
}

impl Cookies {
    /// Creates a login for the page on `port`, which is behind TLS if `secure`. `key` is a secret of this process.
    pub(super) fn new(port: u16, key: String, secure: bool) -> Self {
        let name = format!("llink-{port}");
        Self { name, key, secure }
    }

    /// Returns the SHA-256 of the token in a request's cookie or authorization header.
    pub(super) fn token(&self, headers: &HeaderMap) -> Option<String> {
        bearer(headers).map(sha256_of).or_else(|| self.unsealed(headers))
    }

    fn unsealed(&self, headers: &HeaderMap) -> Option<String> {
        let cookies = headers.get_all("cookie").into_iter().filter_map(|value| value.to_str().ok());
        let mut pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let (_, value) = pairs.find(|(name, _)| *name == self.name)?;
        let (token, seal) = value.split_once('.')?;
        // Hashes are compared, so that the time of the comparison tells nothing of the seal.
        (sha256_of(seal) == sha256_of(&self.seal(token))).then(|| token.to_owned())
    }

    pub(super) fn set(&self, token: &str) -> String {
        let sha256 = sha256_of(token);
        let seal = self.seal(&sha256);
        let secure = if self.secure { "; Secure" } else { "" };
        format!("{}={sha256}.{seal}; Path=/; Max-Age={LASTS_S}; HttpOnly; SameSite=Strict{secure}", self.name)
    }

    fn seal(&self, sha256: &str) -> String {
        sha256_of(&format!("{} {sha256}", self.key))
    }
}

pub(super) fn token_in(form: &[u8]) -> Option<String> {
    let mut fields = url::form_urlencoded::parse(form);
    let (_, token) = fields.find(|(name, _)| name == "token")?;
    Some(token.trim().to_owned())
}

/// Returns whether a browser's `host` header names this machine by address or as localhost. A foreign page whose name
/// resolves to this address sends its own name.
pub(super) fn is_this_machine(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || address.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        headers
    }

    #[test]
    fn a_cookie_stands_for_its_token_here_and_nowhere_else() {
        let cookies = Cookies::new(7080, "key".into(), true);
        let set = cookies.set("secret");
        assert!(set.ends_with("; HttpOnly; SameSite=Strict; Secure") && !set.contains("secret"), "{set}");
        let pair = set.split(';').next().unwrap();
        let shown = with("cookie", &format!("other=1; {pair}"));
        assert_eq!(cookies.token(&shown), Some(sha256_of("secret")));
        assert_eq!(cookies.token(&with("authorization", "Bearer secret")), Some(sha256_of("secret")));
        for other in [Cookies::new(7081, "key".into(), true), Cookies::new(7080, "other".into(), true)] {
            assert_eq!(other.token(&shown), None);
        }
        // The hash alone, which stands in the token file, is not enough for a seal.
        let forged = format!("llink-7080={}.{}", sha256_of("secret"), sha256_of("guess"));
        assert_eq!(cookies.token(&with("cookie", &forged)), None);
    }

    #[test]
    fn a_form_holds_a_token_and_only_this_machine_is_meant_by_loopback() {
        assert_eq!(token_in(b"token=+a%2Bb%0A&x=1"), Some("a+b".to_owned()));
        assert_eq!(token_in(b"other=1"), None);
        for here in ["127.0.0.1:7080", "[::1]:7080", "localhost", "LOCALHOST:1", "127.1.2.3"] {
            assert!(is_this_machine(here), "{here}");
        }
        for elsewhere in ["evil.example:7080", "127.0.0.1.evil.example", "localhost.evil.example", "", "10.0.0.1"] {
            assert!(!is_this_machine(elsewhere), "{elsewhere}");
        }
    }
}
