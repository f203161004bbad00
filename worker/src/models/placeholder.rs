//! Files in place of a model's file that was never downloaded.

/// Returns what `content` is instead of a model's file, and what to do. Only its beginning is read.
pub(crate) fn placeholder(content: &[u8]) -> Option<String> {
    let head = &content[..content.len().min(256)];
    let head = super::json::without_mark(head).trim_ascii_start();
    if head.starts_with(b"version https://git-lfs.github.com/spec/") {
        return Some("is a Git LFS pointer and not the file itself: run `git lfs pull` in the model's folder".into());
    }
    let lower = head.to_ascii_lowercase();
    if lower.starts_with(b"<!doctype html") || lower.starts_with(b"<html") {
        return Some(
            "is a web page and not the file itself: a download that needs a login or a license gave its page instead; \
             download it again with access"
                .into(),
        );
    }
    // The Hub answers a refused download or a wrong name with these texts.
    let stubs: [&[u8]; 4] =
        [b"access to model", b"invalid username or password", b"entry not found", b"repository not found"];
    if stubs.iter().any(|stub| lower.starts_with(stub)) {
        let said = String::from_utf8_lossy(head);
        let said = said.lines().next().unwrap_or_default();
        return Some(format!(
            "holds the server's refusal ({said:?}) and not the file itself: download it again with access"
        ));
    }
    content.is_empty().then(|| "is empty: download it again".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stand_ins_are_told_from_files() {
        for (content, word) in [
            ("version https://git-lfs.github.com/spec/v1\noid sha256:68a2\nsize 2471645608\n", "git lfs pull"),
            ("\u{feff}\n<!DOCTYPE html><html>", "web page"),
            ("<html lang=\"en\">", "web page"),
            ("Access to model meta-llama/Llama-3.2-1B is restricted.", "refusal"),
            ("Entry not found", "refusal"),
            ("", "empty"),
        ] {
            let said = placeholder(content.as_bytes()).unwrap();
            assert!(said.contains(word), "{content}: {said}");
        }
        for content in ["{}", "\u{feff}{\"version\": 1}", "[]", "\u{8}\0\0\0\0\0\0\0{}"] {
            assert_eq!(placeholder(content.as_bytes()), None, "{content}");
        }
    }
}
