//! Checks of Kubernetes manifests that need no cluster: what schemas miss because it is spread over several objects, and
//! what they let pass because they know no better.

mod between;
mod documents;
mod fields;
mod jobs;
mod network;
mod pods;
mod references;
mod set;
mod typed;

pub use between::{differences, refused, without};
pub use documents::{check as document_faults, commands};
pub use set::{Set, read};

/// Everything that is wrong with a set of objects that are applied together.
#[must_use]
pub fn faults(set: &Set) -> Vec<String> {
    let mut faults = typed::check(set);
    faults.extend(fields::check(set));
    faults.extend(pods::check(set));
    faults.extend(jobs::check(set));
    faults.extend(references::check(set));
    faults.extend(network::check(set));
    faults
}
