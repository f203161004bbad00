//! Checks of Kubernetes manifests that need no cluster. They find faults across several objects, and values that
//! schemas accept although they are wrong.

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

/// Returns all faults of a set of objects that are applied together.
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
