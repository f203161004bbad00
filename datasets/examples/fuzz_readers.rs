//! Feeds mutated files to each reader and prints how many inputs it read. A panic, an input that takes too long, or
//! memory beyond the bound ends the program and leaves the input in a file.
//!
//!     cargo run --release -p llink-datasets --example fuzz_readers -- SECONDS [INPUTS [SEED [READER…]]]

#[path = "../tests/support/pack.rs"]
mod pack;
#[path = "../benches/support/mod.rs"]
mod support;

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use bytes::Bytes;
use llink_datasets::read::{Compression, Format, Source, survey};
use llink_datasets::rows::Corpus;
use llink_datasets::store::Store;
use parquet::arrow::ArrowWriter;
use parquet::basic::ZstdLevel;
use parquet::file::properties::WriterProperties;
use support::peak_mib;

/// The time limit for one input of a few hundred bytes, with room for a busy machine.
const LONGEST: Duration = Duration::from_secs(20);
/// The memory limit: a piece of a file, decoded, and the buffers of a decoder (xz up to 160 MiB, zstd 128 MiB).
const MOST_MIB: u64 = 768;

const TSV: &str = "\u{FEFF}A fish.\tត្រី\r\nA cow.\tគោ\n";
const JSONL: &str = "{\"english\":\"A fish.\",\"foreign\":\"ត្រី\"}\n{\"english\":\"A cow.\",\"foreign\":\"\\u1782\"}\n";
const INSTRUCTIONS: &str = concat!(
    "{\"task_type\":\"qa\",\"input\":\"<foreign_emb> What?\",\"response\":\"A cow.\",\"foreign_raw\":\"គោ\",\"english_ref\":\"a cow\"}\n",
    "{\"instruction\":\"Translate.\",\"input\":\"ត្រី\",\"output\":\"A fish.\",\"english_ref\":\"a fish\"}\n",
    "{\"messages\":[{\"role\":\"system\",\"content\":\"Be brief.\"},{\"role\":\"user\",\"content\":\"Say it: គោ\"},\
     {\"role\":\"assistant\",\"content\":\"Cows.\"}],\"foreign_raw\":\"គោ\",\"english_ref\":\"cows\"}\n",
);
const TMX: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><tmx version=\"1.4\"><body><tu><tuv xml:lang=\"en\"><seg>A \
<ph>x</ph>fish &amp; &#6113;</seg></tuv><tuv xml:lang=\"km\"><seg><![CDATA[ត្រី]]></seg></tuv></tu>\n<tu><tuv lang=\"en\">\
<seg>A cow</seg></tuv><tuv lang=\"km\"><seg>គោ</seg></tuv></tu></body></tmx>";

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit.max(1)
    }
}

/// Returns the seed with a few bytes changed, removed, repeated and inserted.
fn mutated(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(6) {
        if bytes.is_empty() {
            break;
        }
        let at = random.below(bytes.len());
        let end = (at + random.below(24)).min(bytes.len());
        match random.below(6) {
            0 => bytes[at] = random.below(256) as u8,
            1 => bytes[at] ^= 1 << random.below(8),
            2 if random.below(4) == 0 => bytes.truncate(at),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let copy = bytes[at..end].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, copy);
            }
            _ => {
                let pieces: [&[u8]; 12] = [
                    b"\0",
                    b"\t",
                    b"\n",
                    b"\r\n",
                    b"</tu>",
                    b"<tu>",
                    b"<seg>",
                    b"[[{\"",
                    b"\xFF",
                    b"\xEF\xBB\xBF",
                    b"&x;",
                    b"\xFF\xFF\xFF\x7F",
                ];
                bytes.splice(at..at, pieces[random.below(pieces.len())].iter().copied());
            }
        }
    }
    bytes
}

fn parquet_seed(compression: parquet::basic::Compression) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let column = |texts: [&str; 3]| -> ArrayRef { Arc::new(StringArray::from(texts.to_vec())) };
    let batch = RecordBatch::try_from_iter([
        ("english", column(["A fish.", "A cow.", "A cow."])),
        ("foreign", column(["ត្រី", "គោ", "x"])),
    ])?;
    let properties = WriterProperties::builder().set_compression(compression).build();
    let mut content = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut content, batch.schema(), Some(properties))?;
    writer.write(&batch)?;
    writer.close()?;
    Ok(content)
}

/// A reader with its seed inputs.
struct Case {
    name: &'static str,
    corpus: Corpus,
    format: Format,
    compression: Compression,
    content: Vec<u8>,
}

fn cases() -> Result<Vec<Case>, Box<dyn std::error::Error>> {
    use parquet::basic::Compression as C;
    let wide: Vec<u8> = TSV.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let none = Compression::None;
    let zstd = C::ZSTD(ZstdLevel::try_new(3)?);
    let pairs = [
        ("tsv", Format::Tsv, none, TSV.into()),
        ("tsv.gz", Format::Tsv, Compression::Gzip, pack::gz(TSV)),
        ("tsv.zst", Format::Tsv, Compression::Zstd, pack::zst(TSV)),
        ("tsv.xz", Format::Tsv, Compression::Xz, pack::xz(TSV)),
        ("tsv.bz2", Format::Tsv, Compression::Bzip2, pack::bz2(TSV)),
        ("tsv.wide", Format::Tsv, none, wide),
        ("jsonl", Format::Jsonl, none, JSONL.into()),
        ("moses", Format::Moses, none, "A fish.\nA cow.\n".into()),
        ("tmx", Format::Tmx, none, TMX.into()),
        ("parquet", Format::Parquet, none, parquet_seed(C::SNAPPY)?),
        ("parquet.plain", Format::Parquet, none, parquet_seed(C::UNCOMPRESSED)?),
        ("parquet.zstd", Format::Parquet, none, parquet_seed(zstd)?),
    ];
    let case = |corpus, (name, format, compression, content)| Case { name, corpus, format, compression, content };
    let instructions = ("instructions", Format::Jsonl, none, INSTRUCTIONS.into());
    let pairs = pairs.into_iter().map(|pair| case(Corpus::Pairs, pair));
    Ok(pairs.chain([case(Corpus::Instructions, instructions)]).collect())
}

/// The input that is being read: its number, for the watcher, and its bytes, for the saved file.
#[derive(Default)]
struct Now {
    number: AtomicU64,
    input: Mutex<Bytes>,
}

impl Now {
    /// Saves the input to a file for inspection.
    fn save(&self, why: &str) {
        let path = std::env::temp_dir().join("fuzz_readers.input");
        let input = self.input.lock().map(|input| input.clone()).unwrap_or_default();
        let saved = std::fs::write(&path, input);
        let _ = writeln!(std::io::stderr(), "{why}: input in {} ({saved:?})", path.display());
    }

    /// Ends the process if one input is read for too long or memory exceeds the bound.
    fn watch(self: Arc<Self>) {
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            std::thread::sleep(Duration::from_millis(200));
            let number = self.number.load(Ordering::Relaxed);
            if number != seen {
                (seen, since) = (number, Instant::now());
            }
            let peak = peak_mib();
            if since.elapsed() > LONGEST || peak > MOST_MIB {
                self.save(&format!("input {number} takes too long or too much memory ({peak} MiB)"));
                std::process::exit(1);
            }
        }
    }
}

#[tokio::main(flavor = "current_thread")]
#[allow(clippy::print_stdout)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().ok_or("say how many seconds for each reader")?;
    let limit = Duration::from_secs(seconds.parse()?);
    let most: u64 = arguments.next().map_or(Ok(u64::MAX), |text| text.parse())?;
    let seed: u64 = arguments.next().map_or(Ok(0x5EED), |text| text.parse())?;
    let wanted: Vec<String> = arguments.collect();

    let now = Arc::new(Now::default());
    let watched = Arc::clone(&now);
    std::thread::spawn(move || watched.watch());
    // A panic that is caught counts as an error; one that is not ends the process.
    let (panics, panicked) = (Arc::new(AtomicU64::new(0)), Arc::clone(&now));
    let (counted, usual) = (Arc::clone(&panics), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| {
        if counted.fetch_add(1, Ordering::Relaxed) < 3 {
            usual(panic);
            panicked.save("panic");
        }
    }));

    let store = Store::open("memory://fuzz")?;
    store.put("foreign", Bytes::from("ត្រី\nគោ\n")).await?;
    for case in cases()? {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == case.name) {
            continue;
        }
        let mut random = Random(seed);
        let source = Source {
            foreign_url: (case.format == Format::Moses).then(|| "memory://fuzz/foreign".to_owned()),
            format: Some(case.format),
            compression: Some(case.compression),
            ..Source::named("memory://fuzz/input")
        };
        let began = Instant::now();
        let (mut inputs, mut refused, mut slowest) = (0_u64, 0_u64, Duration::ZERO);
        while inputs < most && began.elapsed() < limit {
            let input = Bytes::from(mutated(&case.content, &mut random));
            if let Ok(mut place) = now.input.lock() {
                place.clone_from(&input);
            }
            now.number.fetch_add(1, Ordering::Relaxed);
            store.put("input", input).await?;
            let one = Instant::now();
            match survey(&source, case.corpus).await {
                Err(_) => refused += 1,
                Ok(found) => {
                    let dropped: u64 = found.dropped.values().sum();
                    assert_eq!(found.rows, found.readable + dropped, "{found:?}");
                }
            }
            slowest = slowest.max(one.elapsed());
            inputs += 1;
        }
        println!(
            "{:13} {inputs:>9} inputs in {:.0} s, {refused:>9} refused as a whole, {} of them by a panic that was caught, \
             slowest {slowest:?}, peak {} MiB",
            case.name,
            began.elapsed().as_secs_f64(),
            panics.swap(0, Ordering::Relaxed),
            peak_mib()
        );
    }
    Ok(())
}
