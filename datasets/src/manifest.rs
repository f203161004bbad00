//! Manifests: what a stage wrote, with hashes.
