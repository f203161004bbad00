//! Tests the promises of every store on each backend, and how local stores treat paths and faults.

use crate::promises::keeps_its_promises;
use bytes::Bytes;
use llink_datasets::Error;
use llink_datasets::store::Store;

#[tokio::test]
async fn a_local_store_keeps_its_promises() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("not/yet there/ភាសា %20");
    let store = Store::open(path.to_str().unwrap()).unwrap();
    keeps_its_promises(&store).await;
    assert_eq!(std::fs::read(store.local_path("a/lock").unwrap()).unwrap(), b"1");
}

#[tokio::test]
async fn a_store_in_memory_keeps_its_promises_and_is_shared_by_name() {
    keeps_its_promises(&Store::open("memory://promises/deep/er").unwrap()).await;
    let other = Store::open("memory://promises").unwrap();
    assert_eq!(other.get("deep/er/a/lock").await.unwrap(), "1");
    assert_eq!(other.local_path("x"), None);
}

#[tokio::test]
async fn of_many_creators_one_wins() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap()).unwrap();
    crate::promises::of_many_creators_one_wins(&store, 16).await;
}

#[tokio::test]
async fn an_object_is_found_by_path_and_by_file_url() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("my corpus.tsv");
    std::fs::write(&file, "x").unwrap();
    let url = format!("file://{}", file.to_str().unwrap().replace(' ', "%20"));
    for place in [file.to_str().unwrap(), &url] {
        let (store, name) = Store::open_object(place).unwrap();
        assert_eq!(name, "my corpus.tsv");
        assert_eq!(store.get(&name).await.unwrap(), "x");
    }
    let (store, name) = Store::open_object("memory://objects/a.tsv").unwrap();
    assert_eq!((store.url(), name.as_str()), ("memory://objects", "a.tsv"));
    let (store, name) = Store::open_object("Cargo.toml").unwrap();
    assert!(store.head(&name).await.unwrap().is_some());
    assert!(Store::open_object("some/folder/").is_err());
    assert!(Store::open_object("s3://bucket").is_err());
}

#[test]
fn a_url_that_cannot_be_opened_says_what_to_write() {
    let text = |url: &str| Store::open(url).unwrap_err().to_string();
    assert!(text("ftp://host/x").contains("ftp:// is not known"), "{}", text("ftp://host/x"));
    assert!(text("").contains("empty"));
    #[cfg(not(feature = "cloud"))]
    assert!(text("s3://bucket/x").contains("--features cloud"), "{}", text("s3://bucket/x"));
}

#[tokio::test]
async fn a_refused_write_comes_with_the_operating_systems_words() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let store = Store::open(folder.path().join("file").to_str().unwrap()).unwrap();
    let error = store.put("below/a.file", Bytes::new()).await.unwrap_err();
    assert!(matches!(error, Error::Store { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("below/a.file") && text.contains("Not a directory"), "{text}");
}
