//! Feeds each reader mutated files and says how many it took; a panic, a hang or too much memory ends it.
//!
//!     cargo run --release -p llink-datasets --example fuzz_readers -- SECONDS [SEED]

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use bytes::Bytes;
use llink_datasets::read::{Compression, Format, Source, read_raw_pairs};
use llink_datasets::store::Store;
use parquet::arrow::ArrowWriter;

const TSV: &str = "\u{FEFF}A fish.\tត្រី\r\nA cow.\tគោ\n";
const JSONL: &str = "{\"english\":\"A fish.\",\"foreign\":\"ត្រី\"}\n{\"english\":\"A cow.\",\"foreign\":\"\\u1782\"}\n";
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

/// Changes, removes, repeats and inserts a few bytes.
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
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let copy = bytes[at..end].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, copy);
            }
            _ => {
                let pieces: [&[u8]; 8] = [
                    b"\0",
                    b"\t",
                    b"\n",
                    b"</tu>",
                    b"<tu>",
                    b"\xFF",
                    b"&x;",
                    b"\xFF\xFF\xFF\x7F",
                ];
                bytes.splice(at..at, pieces[random.below(pieces.len())].iter().copied());
            }
        }
    }
    bytes
}

fn parquet_seed() -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let column = |texts: [&str; 3]| -> ArrayRef { Arc::new(StringArray::from(texts.to_vec())) };
    let batch = RecordBatch::try_from_iter([
        ("english", column(["A fish.", "A cow.", "A cow."])),
        ("foreign", column(["ត្រី", "គោ", "x"])),
    ])?;
    let mut content = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut content, batch.schema(), None)?;
    writer.write(&batch)?;
    writer.close()?;
    Ok(content)
}

/// The most memory that the process has held, in KiB.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}

#[tokio::main(flavor = "current_thread")]
#[allow(clippy::print_stdout)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let seconds: u64 = arguments
        .next()
        .ok_or("say how many seconds for each reader")?
        .parse()?;
    let seed: u64 = arguments.next().map_or(Ok(0x5EED), |text| text.parse())?;
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gz.write_all(TSV.as_bytes())?;
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 6);
    xz.write_all(TSV.as_bytes())?;
    let readers = [
        ("tsv", Format::Tsv, Compression::None, TSV.into()),
        ("tsv.gz", Format::Tsv, Compression::Gzip, gz.finish()?),
        (
            "tsv.zst",
            Format::Tsv,
            Compression::Zstd,
            zstd::encode_all(TSV.as_bytes(), 3)?,
        ),
        ("tsv.xz", Format::Tsv, Compression::Xz, xz.finish()?),
        ("jsonl", Format::Jsonl, Compression::None, JSONL.into()),
        ("moses", Format::Moses, Compression::None, "A fish.\nA cow.\n".into()),
        ("tmx", Format::Tmx, Compression::None, TMX.into()),
        ("parquet", Format::Parquet, Compression::None, parquet_seed()?),
    ];
    let store = Store::open("memory://fuzz")?;
    store.put("foreign", Bytes::from("ត្រី\nគោ\n")).await?;
    for (name, format, compression, content) in readers {
        let mut random = Random(seed);
        let source = Source {
            foreign_url: (format == Format::Moses).then(|| "memory://fuzz/foreign".to_owned()),
            format: Some(format),
            compression: Some(compression),
            ..Source::named("memory://fuzz/input")
        };
        let began = Instant::now();
        let (mut inputs, mut refused, mut slowest) = (0_u64, 0_u64, Duration::ZERO);
        while began.elapsed().as_secs() < seconds {
            let input = mutated(&content, &mut random);
            // What a panic leaves behind to be looked at.
            store.put("input", Bytes::from(input)).await?;
            let one = Instant::now();
            refused += u64::from(read_raw_pairs(&source).await.is_err());
            slowest = slowest.max(one.elapsed());
            inputs += 1;
        }
        println!(
            "{name:8} {inputs:>9} inputs, {refused:>9} refused, slowest {slowest:?}, peak {} KiB",
            peak_kib()
        );
    }
    Ok(())
}
