//! Tests sources behind http://: every format from a web server, and the faults of a server.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::common::{assert_sums, clean, source_spec};
use crate::pack::gz;
use crate::server::{Answer, Asked, bind};
use llink_datasets::Result;
use llink_datasets::read::{Source, survey};
use llink_datasets::rows::Corpus;
use llink_datasets::shards::CleanSpec;
use llink_datasets::store::Store;

/// The behavior of the server for a file.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    /// The server sends an ETag and a date, and supports ranges.
    Able,
    /// The server has neither ETag nor ranges, like Python's `http.server`.
    Plain,
    /// The server closes the connection after a part of each longer answer, and supports ranges.
    HangsUp,
    /// The server closes the connection likewise, and has neither ranges nor ETag.
    HangsUpPlain,
    /// The server answers 503 the first time.
    Busy,
    /// The server redirects the client.
    Moved,
    /// The server answers HEAD with this status line, and GET like an able server.
    NoHead(&'static str),
    /// The server answers HEAD with this status line, and does not support ranges.
    NoHeadPlain(&'static str),
    /// The server refuses everything, and repeats the request in its answer.
    Refuses,
}

/// The number of bytes after which a server that hangs up does so.
const PART: usize = 3_000_000;

struct Site {
    files: HashMap<&'static str, (Manner, Vec<u8>)>,
    asked: Mutex<Vec<Asked>>,
}

impl Site {
    /// Returns how often a path was asked for by a method.
    fn times(&self, method: &str, path: &str) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|one| one.method == method && one.path.starts_with(path)).count()
    }

    /// Returns the requests as received.
    fn heads(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|one| one.head.clone()).collect()
    }
}

async fn serve(files: Vec<(&'static str, Manner, Vec<u8>)>) -> (String, Arc<Site>) {
    let (listener, url) = bind().await;
    let files = files.into_iter().map(|(path, manner, content)| (path, (manner, content)));
    let site = Arc::new(Site { files: files.collect(), asked: Mutex::default() });
    let own = Arc::clone(&site);
    crate::server::serve(listener, move |asked| answer(asked, &own));
    (url, site)
}

fn answer(asked: Asked, site: &Site) -> Answer {
    let is_head = asked.method == "HEAD";
    let empty = |status| Answer::new(status, "", "");
    let answer = match site.files.get(&*asked.path) {
        None => empty("404 Not Found"),
        Some((Manner::Busy, _)) if site.asked.lock().unwrap().iter().all(|one| one.path != asked.path) => {
            empty("503 Busy")
        }
        Some((Manner::Moved, to)) => {
            Answer::new("302 Found", format!("location: {}\r\n", String::from_utf8_lossy(to)), "")
        }
        Some((Manner::NoHead(status) | Manner::NoHeadPlain(status), _)) if is_head => empty(*status),
        Some((Manner::Refuses, _)) => {
            let query = asked.path.split_once('?').map_or("", |(_, query)| query);
            Answer::new("403 Forbidden", "", format!("<Error><StringToSign>{query}</StringToSign></Error>"))
        }
        Some((manner, content)) => file(&asked, *manner, content),
    };
    site.asked.lock().unwrap().push(asked);
    answer
}

fn file(asked: &Asked, manner: Manner, content: &[u8]) -> Answer {
    let is_plain = matches!(manner, Manner::Plain | Manner::HangsUpPlain | Manner::NoHeadPlain(_));
    let (status, range) = match asked.range(content.len()) {
        Some(range) if !is_plain => ("206 Partial", range),
        _ => ("200 OK", 0..content.len()),
    };
    let tags = if is_plain { "" } else { "etag: \"1\"\r\nlast-modified: Wed, 21 Oct 2026 07:28:00 GMT\r\n" };
    let (start, last) = (range.start, range.end.saturating_sub(1));
    let headers = format!("content-range: bytes {start}-{last}/{}\r\n{tags}", content.len());
    let hangs_up = matches!(manner, Manner::HangsUp | Manner::HangsUpPlain);
    Answer { most: if hangs_up { PART } else { usize::MAX }, ..Answer::new(status, headers, &content[range]) }
}

fn rows(rows: usize) -> Vec<u8> {
    let text: String = (0..rows).map(|n| format!("number {n}\tលេខ {n}\n")).collect();
    text.into_bytes()
}

/// Makes ten rows as zstd, with a skippable frame that gives the wanted length.
fn incompressible(bytes: u32) -> Vec<u8> {
    let mut content = vec![0x50, 0x2A, 0x4D, 0x18];
    content.extend(bytes.to_le_bytes());
    content.extend((0..bytes).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]));
    content.extend(zstd::encode_all(rows(10).as_slice(), 3).unwrap());
    content
}

async fn kept(url: &str) -> Result<u64> {
    let out = Store::open("memory://web")?;
    let spec = CleanSpec { source: Source::named(url), ..source_spec(Corpus::Pairs, "") };
    let cleaned = clean(&out, &spec, "out.parquet").await?;
    assert_sums(&cleaned.counts, &["kept"]);
    Ok(cleaned.counts["kept"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn corpora_are_read_from_web_servers_of_every_manner() {
    let (url, site) = serve(vec![
        ("/d/able.tsv.gz", Manner::Able, gz(rows(5_000))),
        ("/d/plain.tsv", Manner::Plain, rows(5_000)),
        ("/d/my%20corpus.tsv?download=true&path=a/b", Manner::Able, rows(30)),
        ("/busy.tsv", Manner::Busy, rows(40)),
        ("/moved.tsv", Manner::Moved, b"/d/plain.tsv".to_vec()),
        ("/long.tsv.zst", Manner::HangsUp, incompressible(10_000_000)),
        ("/longer.tsv.zst", Manner::HangsUp, incompressible(20_000_000)),
    ])
    .await;
    for (path, rows) in [
        ("/d/able.tsv.gz", 5_000),
        ("/d/plain.tsv", 5_000),
        ("/d/my%20corpus.tsv?download=true&path=a/b", 30),
        ("/busy.tsv", 40),
        ("/moved.tsv", 5_000),
    ] {
        assert_eq!(kept(&format!("{url}{path}")).await.unwrap(), rows, "{path}");
    }
    for path in ["/long.tsv.zst", "/longer.tsv.zst"] {
        let found = survey(&Source::named(&format!("{url}{path}")), Corpus::Pairs).await.unwrap();
        assert_eq!((found.rows, found.readable), (10, 10), "{path}");
    }
    let long = site.times("GET", "/long.tsv.zst");
    assert!(long > 3, "a broken download continues where it broke: {long} requests");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_servers_faults_are_errors_that_name_the_file() {
    let (url, _) = serve(vec![("/long.tsv", Manner::HangsUpPlain, rows(200_000))]).await;
    let text = kept(&format!("{url}/absent.tsv")).await.unwrap_err().to_string();
    assert_eq!(text, format!("{url}/absent.tsv: no such file or object"));
    let text = kept(&format!("{url}/long.tsv")).await.unwrap_err().to_string();
    assert!(text.contains("/long.tsv"), "a download that cannot continue is not a short corpus: {text}");
    let text = Store::open("http://[x/y").unwrap_err().to_string();
    assert!(text.contains("http://[x/y"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parquet_moses_and_tmx_are_read_from_web_servers_too() {
    let out = Store::open("memory://web-formats").unwrap();
    let spec = crate::common::sample_spec(Corpus::Pairs, 3_000, 1);
    let made = clean(&out, &spec, "made.parquet").await.unwrap();
    let table = out.get(&made.artifacts[0].path).await.unwrap().to_vec();
    let tmx = "<tmx version=\"1.4\"><body><tu><tuv xml:lang=\"en\"><seg>a fish</seg></tuv><tuv xml:lang=\"km\"><seg>ត្រី\
               </seg></tuv></tu></body></tmx>";
    let (url, _) = serve(vec![
        ("/p.parquet", Manner::Able, table.clone()),
        ("/plain.parquet", Manner::Plain, table),
        ("/m.en", Manner::Able, b"a fish\na cow\n".to_vec()),
        ("/m.km.gz", Manner::Plain, gz("ត្រី\nគោ\n")),
        ("/t.tmx", Manner::Plain, tmx.into()),
    ])
    .await;
    let count = async |source: Source| survey(&source, Corpus::Pairs).await.map(|found| found.readable);
    let named = |name: &str| Source::named(&format!("{url}/{name}"));
    assert_eq!(count(named("p.parquet")).await.unwrap(), 3_000);
    assert_eq!(count(named("t.tmx")).await.unwrap(), 1);
    let moses = Source { foreign_url: Some(format!("{url}/m.km.gz")), ..named("m.en") };
    assert_eq!(count(moses).await.unwrap(), 2);
    // Parquet is read in parts. A server without ranges is named in the error, with advice.
    let text = count(named("plain.parquet")).await.unwrap_err().to_string();
    assert!(text.contains("plain.parquet") && text.contains("download it"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_that_is_signed_for_get_alone_is_read_and_looked_up() {
    const QUERY: &str = "X-Amz-Expires=60&X-Amz-Signature=5ecretsignature";
    let statuses = ["403 Forbidden", "405 Not Allowed", "501 Not Implemented"];
    let (url, site) = serve(vec![
        ("/a/0.tsv?X-Amz-Expires=60&X-Amz-Signature=5ecretsignature", Manner::NoHead(statuses[0]), rows(30)),
        ("/a/1.tsv?X-Amz-Expires=60&X-Amz-Signature=5ecretsignature", Manner::NoHead(statuses[1]), rows(30)),
        ("/a/2.tsv?X-Amz-Expires=60&X-Amz-Signature=5ecretsignature", Manner::NoHead(statuses[2]), rows(30)),
        ("/a/3.tsv?X-Amz-Expires=60&X-Amz-Signature=5ecretsignature", Manner::NoHeadPlain(statuses[0]), rows(30)),
    ])
    .await;
    for number in 0..4 {
        let (store, name) = Store::open_object(&format!("{url}/a/{number}.tsv?{QUERY}")).unwrap();
        let info = store.head(&name).await.unwrap().unwrap();
        assert_eq!(info.bytes as usize, rows(30).len(), "{number}");
        assert_eq!(info.e_tag.is_some(), number < 3, "{number}");
        assert_eq!(kept(&format!("{url}/a/{number}.tsv?{QUERY}")).await.unwrap(), 30, "{number}");
    }
    assert_eq!(site.times("HEAD", "/a/2.tsv"), 2, "a server that refuses HEAD is not asked for it again and again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_authenticates_a_url_goes_to_its_server_and_nowhere_else() {
    let (other, elsewhere) = serve(vec![("/b.tsv", Manner::Able, rows(20))]).await;
    let (url, _) = serve(vec![
        ("/refused.tsv?file=x&sig=5ecret%2Bsignature", Manner::Refuses, vec![]),
        ("/moved.tsv?sig=5ecretsignature", Manner::Moved, format!("{other}/b.tsv").into_bytes()),
    ])
    .await;
    let text = kept(&format!("{url}/refused.tsv?file=x&sig=5ecret%2Bsignature")).await.unwrap_err().to_string();
    assert!(text.contains("/refused.tsv") && text.contains("403") && !text.contains("5ecret"), "{text}");
    let (_, shut) = bind().await;
    let address = format!("{}/a.tsv?sig=5ecretsignature", shut.replace("//", "//me:5ecret@"));
    let (store, name) = Store::open_object(&address).unwrap();
    let text = store.get(&name).await.unwrap_err().to_string();
    assert!(text.contains(&format!("{shut}/a.tsv")) && !text.contains("5ecret"), "{text}");

    assert_eq!(
        kept(&format!("{}/moved.tsv?sig=5ecretsignature", url.replace("//", "//me:5ecret@"))).await.unwrap(),
        20
    );
    let requests = elsewhere.heads().join("");
    assert!(!requests.is_empty() && !requests.contains("5ecret"), "{requests}");
    assert!(!requests.to_lowercase().contains("authorization"), "{requests}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_is_asked_for_as_it_is_written() {
    let (url, site) = serve(vec![("/api/a%2Fb//raw%3F.tsv?sig=a%2Fb%3D", Manner::Able, rows(10))]).await;
    let address = format!("{}/api/a%2Fb//raw%3F.tsv?sig=a%2Fb%3D#part", url.replace("//", "//me:p%40ss@"));
    assert_eq!(kept(&address).await.unwrap(), 10);
    let requests = site.heads();
    // The credentials are me:p@ss.
    assert!(requests.iter().all(|one| one.contains("authorization: Basic bWU6cEBzcw==")), "{requests:?}");
}

#[test]
fn a_url_of_which_a_part_was_kept_back_is_not_opened() {
    let name = llink_datasets::shown::withheld("https://host/a.tsv?sig=5ecret").unwrap();
    let text = Store::open_object(&name).unwrap_err().to_string();
    assert!(text.starts_with("https://host/a.tsv: ") && text.contains("submit the job again"), "{text}");
}
