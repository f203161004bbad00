//! The promises of every store, on any backend.

use bytes::Bytes;
use llink_datasets::Error;
use llink_datasets::store::{Created, Store};

/// Checks the promises on an empty store.
pub async fn keeps_its_promises(store: &Store) {
    assert!(store.list("").await.unwrap().is_empty(), "an empty store lists nothing");
    assert_eq!(store.head("a/b").await.unwrap(), None);
    let missing = store.get("a/b").await.unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
    assert!(missing.to_string().contains("a/b"), "{missing}");
    store.delete("a/b").await.unwrap();

    store.put("a/b", Bytes::from_static(b"one")).await.unwrap();
    store.put("a/b", Bytes::from_static(b"two")).await.unwrap();
    assert_eq!(store.get("a/b").await.unwrap(), "two");
    let info = store.head("a/b").await.unwrap().unwrap();
    assert_eq!((info.path.as_str(), info.bytes), ("a/b", 3));
    assert!(info.modified_ms > 1_600_000_000_000);

    assert_eq!(store.create("a/lock", Bytes::from_static(b"1")).await.unwrap(), Created::Written);
    assert_eq!(store.create("a/lock", Bytes::from_static(b"2")).await.unwrap(), Created::AlreadyThere);
    assert_eq!(store.get("a/lock").await.unwrap(), "1");

    store.put("z", Bytes::new()).await.unwrap();
    store.put("ab/c", Bytes::new()).await.unwrap();
    let paths = |infos: Vec<llink_datasets::store::ObjectInfo>| -> Vec<String> {
        infos.into_iter().map(|info| info.path).collect()
    };
    assert_eq!(paths(store.list("").await.unwrap()), ["a/b", "a/lock", "ab/c", "z"]);
    assert_eq!(paths(store.list("a").await.unwrap()), ["a/b", "a/lock"]);
    store.delete("a/b").await.unwrap();
    assert_eq!(store.head("a/b").await.unwrap(), None);
}

/// Checks that of writers who create an object at the same time exactly one wins.
pub async fn of_many_creators_one_wins(store: &Store, writers: u8) {
    let create = |n| {
        let store = store.clone();
        tokio::spawn(async move { store.create("commit", Bytes::from(vec![n])).await.unwrap() })
    };
    let tasks: Vec<_> = (0..writers).map(create).collect();
    let mut written = 0;
    for task in tasks {
        written += u32::from(task.await.unwrap() == Created::Written);
    }
    assert_eq!(written, 1);
}
