//! llink's own environment variables, whose names begin with `LLINK_`.

use std::ffi::{OsStr, OsString};

/// The prefix of the variables' names.
const PREFIX: &str = "LLINK_";

/// Returns the names of llink's own variables that are set.
#[must_use]
pub fn own_variables() -> Vec<OsString> {
    own(std::env::vars_os()).map(|(name, _)| name).collect()
}

/// Removes llink's own variables that are empty. A profile or manifest with `LLINK_STATE=` means that the variable is
/// not set, and options and log filters then treat it so.
///
/// # Safety
/// No other thread of the process may run yet: the environment is shared.
pub unsafe fn unset_empty() {
    let empty: Vec<OsString> =
        own(std::env::vars_os()).filter(|(_, value)| value.is_empty()).map(|(name, _)| name).collect();
    for name in empty {
        // SAFETY: the caller guarantees that no other thread reads the environment meanwhile.
        unsafe { std::env::remove_var(name) };
    }
}

fn own(variables: impl Iterator<Item = (OsString, OsString)>) -> impl Iterator<Item = (OsString, OsString)> {
    let is_own = |name: &OsStr| name.as_encoded_bytes().starts_with(PREFIX.as_bytes());
    variables.filter(move |(name, _)| is_own(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_variables_are_told_by_how_their_names_begin() {
        let given = ["LLINK_STATE", "XLLINK_STATE", "llink_state", "LLINK", "LLINK_"];
        let found = own(given.iter().map(|name| (name.into(), "x".into())));
        let names: Vec<OsString> = found.map(|(name, _)| name).collect();
        assert_eq!(names, ["LLINK_STATE", "LLINK_"]);
    }
}
