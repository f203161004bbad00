//! Every format and compression gives the same rows, and each has a defined outcome for what is broken.

use std::sync::Arc;

use crate::common::{beside, cleaned, put, read, source_spec};
use crate::pack::{bz2, gz, xz, zst};
use arrow::array::{Array, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Schema};
use llink_datasets::Result;
use llink_datasets::instructions::read_instructions;
use llink_datasets::read::{Columns, Compression, Languages, Source};
use llink_datasets::rows::Corpus;
use llink_datasets::shards::CleanSpec;
use parquet::arrow::ArrowWriter;

async fn rows(source: Source) -> Result<Vec<(String, String)>> {
    Ok(read(source).await?.0)
}

fn expected() -> Vec<(String, String)> {
    [("A cow & a calf.", "គោ <១>"), ("A fish.", "ត្រី")].map(|(e, f)| (e.to_owned(), f.to_owned())).to_vec()
}

const TSV: &str = "A fish.\tត្រី\r\nA cow & a calf.\tគោ <១>\n";
const TMX: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<tmx version="1.4"><header srclang="en"><note>a &lt;tu&gt;</note></header><body>
<tu tuid="1"><tuv xml:lang="en-US"><seg>A <bpt i="1">&lt;b&gt;</bpt>fish<ept i="1">&lt;/b&gt;</ept>.</seg></tuv>
<tuv xml:lang="km"><seg>ត្រី</seg></tuv></tu>
<tu><prop type="x">1</prop><tuv xml:lang="km"><seg>គោ &lt;&#6113;&gt;</seg></tuv><tuv xml:lang="EN"><seg><![CDATA[A cow & a]]> <hi>calf</hi>.</seg></tuv></tu>
</body></tmx>
"#;

#[tokio::test]
async fn every_format_and_compression_gives_the_same_rows() {
    let jsonl = r#"{"translation":{"en":"A fish.","km":"ត្រី"}}
{"translation":{"en":"A cow & a calf.","km":"គោ <១>"}}"#;
    let named = Columns { english: "translation.en".into(), foreign: "translation.km".into() };
    for (name, content) in [("t.tsv", TSV), ("t.jsonl", jsonl), ("t.tmx", TMX)] {
        for (ending, packed) in [
            ("", content.into()),
            (".gz", gz(content)),
            (".zst", zst(content)),
            (".xz", xz(content)),
            (".bz2", bz2(content)),
        ] {
            let columns = if name == "t.jsonl" { named.clone() } else { Columns::default() };
            let source = Source { columns, ..put(&format!("{name}{ending}"), packed).await };
            assert_eq!(rows(source).await.unwrap(), expected(), "{name}{ending}");
        }
    }
    let (format, compression) = (Some("tsv".parse().unwrap()), Some(Compression::Xz));
    let source = Source { format, compression, ..put("no-ending", xz(TSV)).await };
    assert_eq!(rows(source).await.unwrap(), expected(), "said and not inferred");
}

#[tokio::test]
async fn moses_files_are_read_in_step_and_unaligned_ones_are_refused() {
    let english = put("m.en.gz", gz(b"\xEF\xBB\xBFA fish.\r\nA cow & a calf.\nbroken \xFF\n")).await;
    let foreign = put("m.km", "ត្រី\nគោ <១>\nx\n").await;
    assert_eq!(rows(beside(english.clone(), foreign)).await.unwrap(), expected());
    let short = put("short.km", "ត្រី\n").await;
    let text = rows(beside(english, short)).await.unwrap_err().to_string();
    assert!(text.contains("short.km: has 1 lines") && text.contains("m.en.gz has 3"), "{text}");
}

#[tokio::test]
async fn two_files_of_json_lines_or_parquet_are_read_in_step_and_unaligned_ones_are_refused() {
    let english =
        "{\"id\":1,\"text\":\"A fish.\"}\n{\"id\":2,\"text\":\"A cow & a calf.\"}\n{}\n{\"text\":\"A dog.\"}\n";
    let lines = ["{\"km\":\"ត្រី\"}", "{\"km\":\"គោ <១>\"}", "{\"km\":\"x\"}", "{}"];
    let columns = Columns { foreign: "km".into(), ..Columns::default() };
    let format = Some("jsonl".parse().unwrap());
    let english = Source { format, columns, ..put("b.en.jsonl", english).await };
    let foreign = put("b.km.jsonl", lines.join("\n")).await;
    let (rows_of_both, cleaned) = read(beside(english.clone(), foreign)).await.unwrap();
    assert_eq!(rows_of_both, expected());
    for (warning, at_fault) in
        cleaned.warnings.iter().zip(["b.en.jsonl:3: missing_column", "b.km.jsonl:4: missing_column"])
    {
        assert!(warning.contains(at_fault), "{warning}");
    }
    let short = put("short.km.jsonl", lines[..2].join("\n")).await;
    let text = rows(beside(english, short)).await.unwrap_err().to_string();
    assert!(text.contains("short.km.jsonl: has fewer rows than") && text.contains("b.en.jsonl"), "{text}");

    let table = parquet_file(parquet::basic::Compression::SNAPPY);
    let source = beside(put("b.en.parquet", &table).await, put("b.km.parquet", &table).await);
    let columns = Columns { english: "translation.en".into(), foreign: "translation.km".into() };
    let source = Source { format: Some("parquet".parse().unwrap()), columns, ..source };
    assert_eq!(rows(source).await.unwrap(), expected());
}

#[tokio::test]
async fn broken_units_of_a_tmx_are_counted_and_the_rest_is_read() {
    let broken = TMX.replace(
        "</body>",
        "<tu><tuv xml:lang=\"en\"><seg>a</tuv></tu><tu><tuv xml:lang=\"en\"><seg>only</seg></tuv></tu>\
         <tu><tuv xml:lang=\"en\"><seg>&unknown;</seg></tuv></tu><tu><tuv xml:lang=\"en\"><seg>torn",
    );
    let counts = read(put("broken.tmx", broken).await).await.unwrap().1.counts;
    assert_eq!((counts["rows"], counts["kept"]), (6, 2), "{counts:?}");
    assert_eq!((counts["dropped_broken_xml"], counts["dropped_missing_language"]), (3, 1));

    // The file ends between two units, or right after one.
    let end = TMX.find("\n</body>").unwrap();
    for cut in [&TMX[..=end], &TMX[..end]] {
        let counts = read(put("cut.tmx", cut).await).await.unwrap().1.counts;
        assert_eq!((counts["rows"], counts["kept"], counts["dropped_broken_xml"]), (3, 2, 1));
    }

    let three = TMX.replace("<tuv xml:lang=\"km\">", "<tuv xml:lang=\"th\"><seg>x</seg></tuv><tuv xml:lang=\"km\">");
    let source = put("three.tmx", three).await;
    let said = rows(source.clone()).await.unwrap_err().to_string();
    assert!(said.contains("2 missing_language"), "which of two is left open: {said}");
    let languages = Languages { english: "en".into(), foreign: Some("km".into()) };
    assert_eq!(rows(Source { languages, ..source }).await.unwrap(), expected());

    for (content, expects) in [("not xml at all", "is not TMX"), ("<html><body>404</body></html>", "is a web page")] {
        let text = rows(put("wrong.tmx", content).await).await.unwrap_err().to_string();
        assert!(text.contains(expects), "{text}");
    }
}

fn parquet_file(compression: parquet::basic::Compression) -> Vec<u8> {
    let texts = |all: [Option<&str>; 3]| Arc::new(StringArray::from(all.to_vec()));
    let field = |name: &str| Arc::new(Field::new(name, DataType::Utf8, true));
    let english = texts([Some("A fish."), Some("A cow & a calf."), None]);
    let foreign = texts([Some("ត្រី"), Some("គោ <១>"), Some("x")]);
    let nested = StructArray::from(vec![(field("en"), english.clone() as Arc<dyn Array>), (field("km"), foreign)]);
    let schema = Schema::new(vec![
        Field::new("translation", nested.data_type().clone(), true),
        Field::new("english", DataType::Utf8, true),
    ]);
    let batch = RecordBatch::try_new(Arc::new(schema), vec![Arc::new(nested), english]).unwrap();
    let properties = parquet::file::properties::WriterProperties::builder().set_compression(compression).build();
    let mut content = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut content, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    content
}

#[tokio::test]
async fn parquet_is_read_by_column_names() {
    use parquet::basic::{BrotliLevel, Compression as C, GzipLevel};
    let named = Columns { english: "translation.en".into(), foreign: "translation.km".into() };
    for compression in
        [C::UNCOMPRESSED, C::SNAPPY, C::LZ4_RAW, C::GZIP(GzipLevel::default()), C::BROTLI(BrotliLevel::default())]
    {
        let source = Source { columns: named.clone(), ..put("p.parquet", parquet_file(compression)).await };
        let (rows, cleaned) = read(source).await.unwrap();
        assert_eq!(rows, expected(), "{compression:?}");
        assert_eq!(cleaned.counts["dropped_missing_column"], 1, "a null");
    }
    let content = parquet_file(C::SNAPPY);
    let text = rows(put("p.parquet", &content).await).await.unwrap_err().to_string();
    assert!(text.contains("no column `foreign`") && text.contains("translation.km"), "{text}");
    let text = rows(put("torn.parquet", &content[..content.len() - 20]).await).await.unwrap_err().to_string();
    assert!(text.contains("torn.parquet") && text.contains("Parquet"), "{text}");
}

#[tokio::test]
async fn a_truncated_archive_is_an_error_whatever_packed_it() {
    let text: String = (0..20_000).map(|n| format!("number {n}\tលេខ {n}\n")).collect();
    for (name, packed) in
        [("cut.tsv.gz", gz(&text)), ("cut.tsv.zst", zst(&text)), ("cut.tsv.xz", xz(&text)), ("cut.tsv.bz2", bz2(&text))]
    {
        for keep in [packed.len() - 1, packed.len() / 2, 30] {
            let said = rows(put(name, &packed[..keep]).await).await.unwrap_err().to_string();
            assert!(said.contains(name) && said.contains("decompressed"), "{keep}: {said}");
        }
        let (_, cleaned) = read(put(name, packed.repeat(2)).await).await.unwrap();
        assert_eq!(cleaned.counts["rows"], 40_000, "{name}: two members are one file");
    }
    // The last line of a member has no break: the first line of the next one continues it.
    let (_, cleaned) = read(put("two.tsv.gz", gz("a\tក\nb\tខ").repeat(2)).await).await.unwrap();
    assert_eq!(cleaned.counts["rows"], 3);
    let lies = rows(put("lies.tsv.zst", b"\x28\xB5\x2F\xFE\0\0").await).await;
    assert!(lies.unwrap_err().to_string().contains("decompressed"));
}

#[tokio::test]
async fn the_authors_alpaca_and_chat_forms_are_read() {
    let lines = [
        r#"{"task_type":"qa","input":"<foreign_emb> What?","response":"A cow.","foreign_raw":"គោ","english_ref":"a cow"}"#,
        r#"{"instruction":"Translate.","input":"ត្រី","output":"A fish.","english_ref":"a fish"}"#,
        r#"{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"Say it: គោពីរ"},{"role":"assistant","content":"Two cows."}],"foreign_raw":"គោពីរ","english_ref":"two cows","task":"translate"}"#,
        r#"{"conversations":[{"from":"human","value":"<foreign_emb>?"},{"from":"gpt","value":"Yes."}],"foreign_raw":"គោបី","english_ref":"three cows"}"#,
        r#"{"messages":[{"role":"user","content":"a"},{"role":"user","content":"b"}],"foreign_raw":"x","english_ref":"y"}"#,
        r#"{"messages":[{"role":"user","content":"no place"},{"role":"assistant","content":"x"}],"foreign_raw":"គោ","english_ref":"y"}"#,
        r#"{"instruction":"Translate.","input":"ត្រី","output":"A fish."}"#,
        r#"{"instruction":7,"input":"ត្រី","output":"A fish."}"#,
    ];
    let source = put("forms.jsonl", lines.join("\n")).await;
    let spec = CleanSpec { source, ..source_spec(Corpus::Instructions, "") };
    let (cleaned, table) = cleaned(&spec).await.unwrap();
    let counts = &cleaned.counts;
    assert_eq!((counts["rows"], counts["kept"]), (8, 4), "{counts:?}");
    for reason in ["many_turns", "no_placeholder", "missing_column", "not_text"] {
        assert_eq!(counts[&format!("dropped_{reason}")], 1, "{reason}");
    }
    let mut rows = read_instructions("instructions", table).unwrap();
    rows.sort_by(|a, b| a.english_ref.cmp(&b.english_ref));
    let found: Vec<_> = rows.iter().map(|r| (r.task.as_str(), r.instruction.as_str())).collect();
    assert_eq!(
        found,
        [("qa", "What?"), ("instruction", "Translate."), ("instruction", "?"), ("translate", "Be brief.\nSay it:")]
    );
}
