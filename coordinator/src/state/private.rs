//! Files that are their owner's alone: the state names people's data, and what reaches a coordinator.

use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Opens a file for appending, or makes it; mode 0600 in both cases.
///
/// # Errors
/// When it cannot be opened or made.
pub fn file(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).append(true).mode(0o600).open(path)?;
    let permissions = file.metadata()?.permissions();
    if permissions.mode() & 0o077 != 0 {
        // Another user's file may still be one that can be written.
        if let Err(e) = file.set_permissions(Permissions::from_mode(0o600)) {
            tracing::warn!("{} can be read by others: {e}", path.display());
        }
    }
    Ok(file)
}

/// Makes a directory, and those above it, with mode 0700. One that is there is left as it is.
///
/// # Errors
/// When it cannot be made.
pub fn directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_for_their_owner_alone_whether_they_are_made_or_found() {
        let folder = tempfile::tempdir().unwrap();
        let (inner, made) = (folder.path().join("a/b"), folder.path().join("a/b/made"));
        directory(&inner).unwrap();
        file(&made).unwrap();
        let found = folder.path().join("a/b/found");
        std::fs::write(&found, "x").unwrap();
        std::fs::set_permissions(&found, Permissions::from_mode(0o644)).unwrap();
        file(&found).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!([mode(&inner), mode(&made), mode(&found)], [0o700, 0o600, 0o600]);
        assert_eq!(std::fs::read(&found).unwrap(), b"x");
    }
}
