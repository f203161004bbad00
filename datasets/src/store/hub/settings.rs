//! The settings of the Hub from its usual environment variables.

use std::path::{Path, PathBuf};

/// The Hub's address, the caller's token, and the cache folder.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Settings {
    /// The URL of the Hub, without a trailing `/`.
    pub(super) endpoint: String,
    pub(super) token: Option<String>,
    pub(super) cache: PathBuf,
    pub(super) offline: bool,
}

impl Settings {
    /// Reads `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_CACHE`, `HF_HOME` and `HF_HUB_OFFLINE` as
    /// `huggingface_hub` does. An empty variable counts as unset.
    pub(super) fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let get = |names: &[&str]| {
            let mut given = names.iter().filter_map(|name| variable(name));
            given.find(|value| !value.trim().is_empty())
        };
        let user = get(&["HOME"]).map_or_else(std::env::temp_dir, PathBuf::from);
        let folder = |names: &[&str]| {
            get(names).map(|path| match path.strip_prefix("~/") {
                Some(below) => user.join(below),
                None => PathBuf::from(path),
            })
        };
        let caches = folder(&["XDG_CACHE_HOME"]).unwrap_or_else(|| user.join(".cache"));
        let home = folder(&["HF_HOME"]).unwrap_or_else(|| caches.join("huggingface"));
        let on = |value: String| ["1", "true", "yes", "on"].contains(&value.to_ascii_lowercase().as_str());
        let token = get(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]).or_else(|| {
            let file = folder(&["HF_TOKEN_PATH"]).unwrap_or_else(|| home.join("token"));
            read_token(&file)
        });
        let endpoint = get(&["HF_ENDPOINT"]).unwrap_or_else(|| "https://huggingface.co".into());
        Self {
            endpoint: endpoint.trim().trim_end_matches('/').into(),
            token: token.map(|token| token.trim().into()),
            cache: folder(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).unwrap_or_else(|| home.join("hub")),
            offline: get(&["HF_HUB_OFFLINE"]).is_some_and(on) || get(&["TRANSFORMERS_OFFLINE"]).is_some_and(on),
        }
    }
}

/// The token is left out, so that no log shows it.
impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

fn read_token(file: &Path) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    (!text.trim().is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_variables_are_read_and_empty_ones_are_not() {
        let of = |given: &[(&str, &str)]| {
            let find = |name: &str| given.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
            Settings::of(find)
        };
        let usual = of(&[("HOME", "/home/me")]);
        assert_eq!(usual.endpoint, "https://huggingface.co");
        assert_eq!(usual.cache, Path::new("/home/me/.cache/huggingface/hub"));
        assert_eq!((usual.token, usual.offline), (None, false));
        let home = of(&[("HOME", "/home/me"), ("HF_HOME", "~/hf"), ("HF_HUB_CACHE", ""), ("HF_HUB_OFFLINE", "0")]);
        assert_eq!((home.cache.as_path(), home.offline), (Path::new("/home/me/hf/hub"), false));
        let all = of(&[
            ("HF_HOME", "/hf"),
            ("HF_HUB_CACHE", "/c"),
            ("HF_TOKEN", " hf_secret\n"),
            ("HF_ENDPOINT", "https://mirror.example/"),
            ("TRANSFORMERS_OFFLINE", "TRUE"),
        ]);
        assert_eq!((all.cache.as_path(), all.offline), (Path::new("/c"), true));
        assert_eq!((all.endpoint.as_str(), all.token.as_deref()), ("https://mirror.example", Some("hf_secret")));
        assert!(!format!("{all:?}").contains("hf_secret"));
    }
}
