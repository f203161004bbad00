//! The way out to terminals and files: whatever is written for people passes through here and is made harmless.

use std::io::Write;

use llink_datasets::shown::redacted;
use llink_proto::shown;

/// A line for people on standard output. A reader that went away (`| head`) is no reason to fail.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{}", shown::text(line));
}

/// A line of JSON on standard output; programs read the same strings.
pub(crate) fn say_json(line: &str) {
    let _ = writeln!(std::io::stdout(), "{}", shown::json(line));
}

/// A line for people on standard error. With that gone there is nobody left to tell.
pub(crate) fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{}", shown::text(&redacted(line)));
}
