//! Files that only their owner can read, because the state holds people's data and addresses.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Opens a file for appending, or creates it, with mode 0600 in both cases.
pub fn file(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).append(true).mode(0o600).open(path)?;
    let permissions = file.metadata()?.permissions();
    if permissions.mode() & 0o077 != 0 {
        // A file of another user may still be writable.
        if let Err(e) = file.set_permissions(Permissions::from_mode(0o600)) {
            tracing::warn!("{} can be read by others: {e}", path.display());
        }
    }
    Ok(file)
}

/// Writes a file with this mode. It is written beside and renamed, so a reader sees the old one or the new one.
pub fn replace(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.new"));
    // One of an earlier process may have another mode.
    let _ = std::fs::remove_file(&beside);
    let mut file = File::options().create_new(true).write(true).mode(mode).open(&beside)?;
    file.write_all(content)?;
    std::fs::rename(&beside, path)
}

/// Creates a directory and its parents with mode 0700. An existing directory is left as it is.
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
