//! Writes to terminals and files. All text for people passes through here, and control characters are escaped.

use std::io::Write;

use llink_datasets::shown::redacted;
use llink_proto::shown;

/// Prints a line for people on standard output. A closed pipe (`| head`) is not an error.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{}", shown::text(line));
}

/// Prints a line of JSON on standard output. Programs read the same strings.
pub(crate) fn say_json(line: &str) {
    let _ = writeln!(std::io::stdout(), "{}", shown::json(line));
}

/// Prints a line for people on standard error. A closed standard error is ignored.
pub(crate) fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{}", shown::text(&redacted(line)));
}
