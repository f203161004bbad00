//! The endpoint file. Commands of the same user find through it the coordinator that uses a state directory.

use std::path::{Path, PathBuf};

use llink_proto::reach::Secret;

use crate::state::private;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub process: u32,
    pub url: String,
    /// The token that callers show, where the coordinator serves only the user who started it.
    pub token: Option<Secret>,
}

pub fn endpoint_file(state_directory: &Path) -> PathBuf {
    state_directory.join("coordinator.endpoint")
}

impl Endpoint {
    /// Reads the file in a state directory. `None` means that there is none, or that it cannot be read.
    pub fn read(state_directory: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(endpoint_file(state_directory)).ok()?;
        let mut words = text.split_whitespace();
        Some(Self {
            process: words.next()?.parse().ok()?,
            url: words.next()?.to_owned(),
            token: words.next().map(Secret::new),
        })
    }

    /// Writes the file, readable by this user alone. An earlier file is replaced, because its mode may differ.
    pub(super) fn write(&self, state_directory: &Path) -> std::io::Result<()> {
        let token = self.token.as_ref().map(Secret::text).unwrap_or_default();
        let line = format!("{} {} {token}", self.process, self.url);
        private::replace(&endpoint_file(state_directory), 0o600, format!("{}\n", line.trim_end()).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_noted_is_for_this_user_and_its_token_is_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(endpoint_file(folder.path()), "1 http://127.0.0.1:1 old").unwrap();
        for token in [None, Some(Secret::new("secret"))] {
            let noted = Endpoint { process: 7, url: "http://127.0.0.1:7070".into(), token };
            noted.write(folder.path()).unwrap();
            assert_eq!(Endpoint::read(folder.path()).as_ref(), Some(&noted));
            assert!(!format!("{noted:?}").contains("secret"));
        }
        let mode = std::fs::metadata(endpoint_file(folder.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
