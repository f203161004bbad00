//! Tests the store's promises against a real S3 server on loopback, moto's. A proxy before the server causes the faults.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::common::{Random, run_stage, sample_spec, split};
use crate::moto::{Moto, settings};
use bytes::Bytes;
use llink_datasets::manifest::{MANIFEST_VERSION, Manifest, ManifestArtifact};
use llink_datasets::role::{Corpus, Part, Role};
use llink_datasets::shards::{CleanSpec, NearDuplicates, SplitSpec};
use llink_datasets::store::Store;
use llink_datasets::verify::verify;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The fault of every n-th connection.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The proxy answers 503 without asking the server.
    Unavailable,
    /// The proxy forwards a part of the request and closes the connection: a torn write.
    Torn,
    /// The proxy waits.
    Slow,
    /// The proxy forwards the request and a part of the answer, and closes the connection.
    CutOff,
}

/// Forwards bytes to `port`, with a fault in one connection of three. Returns its own port and the number of faults so
/// far.
async fn faulty_proxy(port: u16) -> (u16, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    let struck = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&struck);
    tokio::spawn(async move {
        let mut random = Random(0x5EED);
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let faults = [Fault::Unavailable, Fault::Torn, Fault::Slow, Fault::CutOff];
            let fault = faults.get(random.below(12) as usize).copied();
            count.fetch_add(u32::from(fault.is_some()), Ordering::Relaxed);
            tokio::spawn(async move {
                let mut head = vec![0; 64 << 10];
                let Ok(read) = client.read(&mut head).await else { return };
                match fault {
                    Some(Fault::Unavailable) => {
                        let answer = "HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                        let _ = client.write_all(answer.as_bytes()).await;
                        return;
                    }
                    Some(Fault::Slow) => tokio::time::sleep(std::time::Duration::from_millis(300)).await,
                    _ => {}
                }
                let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else {
                    return;
                };
                if matches!(fault, Some(Fault::Torn)) {
                    let _ = server.write_all(&head[..read / 2]).await;
                    return;
                }
                if server.write_all(&head[..read]).await.is_err() {
                    return;
                }
                if matches!(fault, Some(Fault::CutOff)) {
                    let (mut from, mut to) = client.split();
                    let (answers, mut requests) = server.split();
                    let mut part = answers.take(700);
                    tokio::select! {
                        _ = tokio::io::copy(&mut from, &mut requests) => {}
                        _ = tokio::io::copy(&mut part, &mut to) => {}
                    }
                    return;
                }
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (own, struck)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_s3_store_keeps_its_promises() {
    let Some(moto) = Moto::start("promises") else { return };
    let store = Store::open_with("s3://promises/deep/er", settings(moto.port)).unwrap();
    crate::promises::keeps_its_promises(&store).await;
    crate::promises::of_many_creators_one_wins(&store, 8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_written_through_faults_are_the_same_bytes() {
    let Some(moto) = Moto::start("faults") else { return };
    let (port, struck) = faulty_proxy(moto.port).await;
    let spec = SplitSpec { near_duplicates: NearDuplicates::Across(0.8), ..split(Corpus::Pairs, 900, 200, 100) };
    let source = CleanSpec { with_signatures: true, ..sample_spec(Corpus::Pairs, 1_500, 4) };
    let sound = Store::open("memory://s3-sound").unwrap();
    let expected = run_stage(&sound, "out", std::slice::from_ref(&source), &spec).await.unwrap();
    let faulty = Store::open_with("s3://faults/x", settings(port)).unwrap();
    let stage = run_stage(&faulty, "out", &[source], &spec).await.unwrap();
    assert_eq!(stage.shards, expected.shards);
    let straight = Store::open_with("s3://faults/x", settings(moto.port)).unwrap();
    for shard in &stage.shards {
        let content = straight.get(&shard.path).await.unwrap();
        assert_eq!(llink_datasets::manifest::sha256_hex(&content), shard.sha256, "{}", shard.path);
    }
    println!("faults met: {}", struck.load(Ordering::Relaxed));
    assert!(struck.load(Ordering::Relaxed) > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_object_is_read_whole_through_faults() {
    let Some(moto) = Moto::start("large") else { return };
    // The content has three parts, and its bytes show if one is in the place of another.
    let content: Vec<u8> = (0_u32..5 << 20).flat_map(u32::to_le_bytes).collect();
    let content = Bytes::from(content);
    let straight = Store::open_with("s3://large/x", settings(moto.port)).unwrap();
    straight.put("align/k/weights.bin", content.clone()).await.unwrap();
    let role = Role::Trained(Part::Projector);
    let artifact = ManifestArtifact::of("align/k/weights.bin", role, 0, &content, BTreeMap::new());
    let manifest = Manifest {
        version: MANIFEST_VERSION,
        stage: "align".into(),
        key: "k".into(),
        artifacts: vec![artifact],
        ..Manifest::default()
    };
    manifest.write(&straight, "align/k/manifest.json").await.unwrap();
    let (port, struck) = faulty_proxy(moto.port).await;
    let faulty = Store::open_with("s3://large/x", settings(port)).unwrap();
    for _ in 0..4 {
        let found = verify(&faulty).await.unwrap();
        assert_eq!(found.faults, [""; 0]);
        assert_eq!(found.bytes, content.len() as u64);
    }
    println!("faults met: {}", struck.load(Ordering::Relaxed));
    assert!(struck.load(Ordering::Relaxed) > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_refuses_says_so_in_words() {
    let Some(moto) = Moto::start("another") else { return };
    let store = Store::open_with("s3://no-such-bucket/x", settings(moto.port)).unwrap();
    let said = store.put("a", Bytes::from_static(b"1")).await.unwrap_err().to_string();
    assert!(said.contains("s3://no-such-bucket/x/a"), "{said}");
    assert!(matches!(store.get("a").await, Err(llink_datasets::Error::NotFound { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_follows_the_bucket_is_the_key() {
    let Some(moto) = Moto::start("keys") else { return };
    let bucket = Store::open_with("s3://keys", settings(moto.port)).unwrap();
    for key in ["run#3/a.tsv", "q?x/a.tsv", "a%20b/c%3Ad.tsv", "my data/ក+&=~[1]{x}.tsv", "100%/a.tsv"] {
        let url = format!("s3://keys/{key}");
        let (store, name) = Store::open_object_with(&url, settings(moto.port)).unwrap();
        store.put(&name, Bytes::from_static(b"1")).await.unwrap();
        assert_eq!(store.head(&name).await.unwrap().unwrap().bytes, 1, "{key}");
        assert_eq!(store.list("").await.unwrap()[0].path, name, "{key}");
        let listed = bucket.list("").await.unwrap();
        assert!(listed.iter().any(|object| object.path == key), "{key}: {listed:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_of_the_home_folder_opens_a_bucket() {
    let Some(moto) = Moto::start("profile") else { return };
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join(".aws")).unwrap();
    let credentials = "[lab]\naws_access_key_id = x\naws_secret_access_key = y\n";
    std::fs::write(home.path().join(".aws/credentials"), credentials).unwrap();
    let config = format!("[profile lab]\nregion = us-east-1\nendpoint_url = http://127.0.0.1:{}\n", moto.port);
    std::fs::write(home.path().join(".aws/config"), config).unwrap();
    let mut variables = vec![
        ("HOME".to_owned(), home.path().to_string_lossy().into_owned()),
        ("AWS_PROFILE".to_owned(), "lab".to_owned()),
    ];
    let text = Store::open_with("s3://profile/x", variables.clone()).unwrap_err().to_string();
    assert!(text.contains("set AWS_ALLOW_HTTP=true"), "{text}");
    // This is what the advice says.
    variables.push(("AWS_ALLOW_HTTP".to_owned(), "true".to_owned()));
    let store = Store::open_with("s3://profile/x", variables).unwrap();
    store.put("a", Bytes::from_static(b"1")).await.unwrap();
    assert_eq!(store.get("a").await.unwrap(), "1");
}
