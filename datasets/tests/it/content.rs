//! A file is read by its content, whatever its name says. A refused file gets advice that works.

use crate::common::{beside, clean, files, put, read, sample_spec};
use crate::pack::{bz2, gz, zst};
use llink_datasets::Result;
use llink_datasets::read::{Columns, Languages, Lines, Source};
use llink_datasets::rows::Corpus;
use llink_datasets::shards::Cleaned;

type Rows = Vec<(String, String)>;

async fn read_named(name: &str, content: impl AsRef<[u8]>) -> Result<(Rows, Cleaned)> {
    read(put(name, content).await).await
}

async fn refusal(name: &str, content: impl AsRef<[u8]>) -> String {
    read_named(name, content).await.unwrap_err().to_string()
}

fn pairs(pairs: &[(&str, &str)]) -> Rows {
    let mut rows: Rows = pairs.iter().map(|(e, f)| ((*e).to_owned(), (*f).to_owned())).collect();
    rows.sort();
    rows
}

fn expected() -> Rows {
    pairs(&[("A boat.", "ទូក"), ("A river.", "ទន្លេ"), ("Rice.", "អង្ករ")])
}

const TSV: &str = "A river.\tទន្លេ\nA boat.\tទូក\nRice.\tអង្ករ\n";
const JSONL: &str = "{\"english\":\"A river.\",\"foreign\":\"ទន្លេ\"}\n{\"english\":\"A boat.\",\"foreign\":\"ទូក\"}\n\
    {\"english\":\"Rice.\",\"foreign\":\"អង្ករ\"}\n";

/// Returns a translation memory of the given segments, in English and Khmer.
fn memory(prolog: &str, segments: &[(&str, &str)]) -> String {
    let units = segments.iter().map(|(english, foreign)| {
        format!(
            "<tu><tuv xml:lang=\"EN-GB\"><seg>{english}</seg></tuv><tuv xml:lang=\"km-KH\"><seg>{foreign}</seg></tuv></tu>\n"
        )
    });
    let units: String = units.collect();
    format!("{prolog}<tmx version=\"1.4\"><header o-encoding=\"iso-8859-1\"/><body>\n{units}</body></tmx>\n")
}

const SEGMENTS: [(&str, &str); 3] = [("A river.", "ទន្លេ"), ("A boat.", "ទូក"), ("Rice.", "អង្ករ")];

fn utf16(text: &str, to_bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
    text.encode_utf16().flat_map(to_bytes).collect()
}

#[tokio::test]
async fn a_name_that_lies_about_the_compression_is_overruled_and_reported() {
    for (name, content, said) in [
        ("lost.tsv", gz(TSV), "is gzip"),
        ("lost.tmx", gz(memory("", &SEGMENTS)), "is gzip"),
        ("other.tsv.gz", bz2(TSV), "is bzip2"),
        ("other.jsonl.xz", zst(JSONL), "is zstd"),
        ("unpacked.tsv.gz", TSV.as_bytes().to_vec(), "is not compressed"),
        ("unpacked.jsonl.zst", utf16(&format!("\u{FEFF}{JSONL}"), u16::to_le_bytes), "is not compressed"),
    ] {
        let (rows, cleaned) = read_named(name, &content).await.unwrap();
        assert_eq!(rows, expected(), "{name}");
        let [note] = cleaned.warnings.as_slice() else { panic!("{name}: {:?}", cleaned.warnings) };
        assert!(note.contains(name) && note.contains(said), "{note}");
    }
    let (_, cleaned) = read_named("honest.tsv.gz", gz(TSV)).await.unwrap();
    assert_eq!(cleaned.warnings, [""; 0]);
}

#[tokio::test]
async fn what_holds_no_lines_is_named_with_what_to_do() {
    let tar = |name: &str| {
        let mut tar = vec![0; 1024];
        tar[..name.len()].copy_from_slice(name.as_bytes());
        tar[257..263].copy_from_slice(b"ustar\0");
        tar
    };
    for (name, content, said, advice) in [
        ("a.tsv", b"PK\x03\x04rest".to_vec(), "zip archive", "unpack"),
        ("a.tsv.gz", gz(tar("pairs.tsv")), "tar archive", "unpack"),
        ("a.tsv", b"7z\xBC\xAF\x27\x1C\0\x04".to_vec(), "7z archive", "unpack"),
        ("a.tsv.gz", gz(gz(TSV)), "compressed twice", "unpack it once"),
        ("a.tsv", b"%PDF-1.7\n".to_vec(), "PDF", "extracted"),
        ("a.jsonl", b"<!DOCTYPE html><html><body>Log in</body></html>".to_vec(), "web page", "fetch the file"),
        (
            "a.tmx",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n".to_vec(),
            "Git LFS pointer",
            "git lfs pull",
        ),
        ("a.parquet", gz(TSV), "is gzip and not Parquet", "unpack it"),
    ] {
        let text = refusal(name, &content).await;
        assert!(text.contains(name) && text.contains(said) && text.contains(advice), "{said}: {text}");
    }
}

#[tokio::test]
async fn parquet_of_another_name_is_read_as_the_advice_says() {
    clean(&files(), &sample_spec(Corpus::Pairs, 50, 1), "made.parquet").await.unwrap();
    let table = files().get("made.parquet").await.unwrap();
    let text = refusal("table.tsv", &table).await;
    assert!(text.contains("Parquet") && text.contains("format = \"parquet\""), "{text}");
    let advised = Source {
        format: Some("parquet".parse().unwrap()),
        columns: Columns { english: "english".into(), foreign: "foreign".into() },
        ..put("table.tsv", table).await
    };
    assert_eq!(read(advised).await.unwrap().1.counts["kept"], 50);
}

#[tokio::test]
async fn utf16_is_read_in_every_format_with_a_mark_and_without() {
    let prolog = "<?xml version=\"1.0\" encoding=\"utf-16\"?>\n";
    for (name, text) in [
        ("wide.tsv", TSV.to_owned()),
        ("wide.jsonl", JSONL.replace('\n', "\r\n")),
        ("wide.tmx", memory(prolog, &SEGMENTS)),
    ] {
        let marked = format!("\u{FEFF}{text}");
        for content in [
            utf16(&marked, u16::to_le_bytes),
            utf16(&marked, u16::to_be_bytes),
            utf16(&text, u16::to_le_bytes),
            utf16(&text, u16::to_be_bytes),
            gz(utf16(&marked, u16::to_le_bytes)),
            // The declaration says UTF-16 and the content is UTF-8, as `iconv` leaves it.
            text.clone().into_bytes(),
            marked.clone().into_bytes(),
        ] {
            let (rows, _) = read_named(name, &content).await.unwrap();
            assert_eq!(rows, expected(), "{name}");
        }
    }
    let moses = beside(
        put("wide.en", b"\xEF\xBB\xBFA river.\nA boat.\nRice.\n").await,
        put("wide.km", utf16("\u{FEFF}ទន្លេ\r\nទូក\r\nអង្ករ", u16::to_le_bytes)).await,
    );
    assert_eq!(read(moses).await.unwrap().0, expected());
}

#[tokio::test]
async fn half_a_character_of_utf16_costs_its_row_alone() {
    let mut content = utf16(&format!("\u{FEFF}{TSV}"), u16::to_le_bytes);
    content.extend(utf16("A tree.\tx", u16::to_le_bytes));
    content.extend([0x3D, 0xD8]);
    content.extend(utf16("y\nA cow.\tគោ\n", u16::to_le_bytes));
    let (rows, cleaned) = read_named("half.tsv", &content).await.unwrap();
    assert_eq!((rows.len(), cleaned.counts["dropped_broken_utf8"]), (4, 1));
    assert!(cleaned.warnings[0].contains("half.tsv:4: broken_utf8"), "{:?}", cleaned.warnings);
}

#[tokio::test]
async fn the_xml_declaration_alone_says_what_a_memory_is_in() {
    use encoding_rs::{GB18030, SHIFT_JIS, WINDOWS_1252};
    let prolog = |name: &str| format!("<?xml version=\"1.0\" encoding=\"{name}\"?>\n");
    let no_encoding = memory("<?xml version=\"1.0\"?>\n<!DOCTYPE tmx SYSTEM \"tmx14.dtd\">\n", &SEGMENTS);
    assert_eq!(read_named("none.tmx", &no_encoding).await.unwrap().0, expected());

    let french = [("The café.", "Le café où l’on va."), ("Summer.", "L’été.")];
    let japanese = [("A river.", "川"), ("Rice.", "ご飯")];
    for (name, encoding, segments) in [
        ("latin1", WINDOWS_1252, french),
        ("ISO-8859-1", WINDOWS_1252, french),
        ("cp1252", WINDOWS_1252, french),
        ("Windows-1252", WINDOWS_1252, french),
        ("Shift_JIS", SHIFT_JIS, japanese),
        ("cp932", SHIFT_JIS, japanese),
        ("GB18030", GB18030, japanese),
    ] {
        let text = memory(&prolog(name), &segments);
        let (content, _, unmappable) = encoding.encode(&text);
        assert!(!unmappable);
        let (rows, cleaned) = read_named("declared.tmx", &content).await.unwrap();
        assert_eq!(rows, pairs(&segments), "{name}");
        assert_eq!(cleaned.warnings, [""; 0]);
    }
    // Programs that convert such a file leave its declaration unchanged.
    let converted = memory(&prolog("iso-8859-1"), &SEGMENTS);
    let (rows, cleaned) = read_named("converted.tmx", &converted).await.unwrap();
    assert_eq!(rows, expected());
    let [note] = cleaned.warnings.as_slice() else { panic!("{:?}", cleaned.warnings) };
    assert!(note.contains("iso-8859-1") && note.contains("read as UTF-8"), "{note}");

    // An unknown encoding is refused, and the file is read after the advice is followed.
    let mut foreign = memory(&prolog("IBM850"), &[("A café", "x")]).into_bytes();
    let at = foreign.windows(2).position(|two| two == "é".as_bytes()).unwrap();
    foreign.splice(at..at + 2, [0x82]);
    let text = refusal("unknown.tmx", &foreign).await;
    assert!(text.contains("iconv -f IBM850 -t UTF-8"), "{text}");
    let advised = memory(&prolog("IBM850"), &[("A café", "x")]);
    assert_eq!(read_named("unknown.tmx", &advised).await.unwrap().0, pairs(&[("A café", "x")]));
}

#[tokio::test]
async fn inline_elements_wrap_text_unless_tmx_says_that_they_hold_code() {
    for (segment, text) in [
        ("The <g id=\"1\">river</g> is near.", "The river is near."),
        ("The <b>river</b> and <a href=\"x\">the <i>boat</i></a>.", "The river and the boat."),
        ("A <hi type=\"bold\">big <hi>red</hi></hi> boat<x id=\"1\"/>.", "A big red boat."),
        ("<bpt i=\"1\">{\\b </bpt>Bold<ept i=\"1\">}</ept> text.", "Bold text."),
        ("<it pos=\"begin\">&lt;i&gt;</it>One<ph>&lt;br/&gt;</ph> two<ut>x</ut>.", "One two."),
        ("See<ph>&lt;fn&gt;<sub>a footnote <g>here</g></sub>&lt;/fn&gt;</ph> it.", "See it."),
        ("<ph><ph>x</ph>y</ph>After.", "After."),
        ("A <![CDATA[<b>fish</b> & more]]> &amp; &#x17A0;.", "A <b>fish</b> & more & ហ."),
    ] {
        let content = memory("", &[(segment, "ទន្លេ")]);
        let (rows, _) = read_named("inline.tmx", &content).await.unwrap();
        assert_eq!(rows, pairs(&[(text, "ទន្លេ")]), "{segment}");
    }
}

#[tokio::test]
async fn carriage_returns_end_lines_where_there_are_no_line_feeds() {
    for (name, text) in [("mac.tsv", TSV), ("mac.jsonl", JSONL)] {
        for end in ["", "\n"] {
            let content = format!("{}{end}", text.replace('\n', "\r"));
            let (rows, cleaned) = read_named(name, &content).await.unwrap();
            assert_eq!(rows, expected(), "{name}");
            assert!(cleaned.warnings[0].contains("carriage returns"), "{:?}", cleaned.warnings);
        }
    }
    let moses = beside(put("mac.en", b"A river.\r\nA boat.\r\nRice.\r\n").await, put("mac.km", "ទន្លេ\rទូក\rអង្ករ\r").await);
    let (rows, cleaned) = read(moses).await.unwrap();
    assert_eq!(rows, expected());
    assert!(matches!(cleaned.warnings.as_slice(), [one] if one.contains("mac.km")), "{:?}", cleaned.warnings);
    // Beside line feeds, a carriage return is part of its line.
    let (rows, _) = read_named("mixed.tsv", "A\rriver.\tទន្លេ\nA boat.\tទូក\r\nRice.\tអង្ករ").await.unwrap();
    assert_eq!(rows, expected());
}

#[tokio::test]
async fn json_is_read_as_python_writes_it() {
    let lines = [
        "\u{FEFF}{\"english\":\"A river.\",\"foreign\":\"ទន្លេ\",\"score\":NaN}",
        // Concatenated files have byte order marks in the middle.
        "\u{FEFF}{\"english\":\"A boat.\",\"foreign\":\"ទូក\",\"score\":-Infinity,\"id\":1e400}",
        "{\"english\":\"Rice.\",\"foreign\":\"អង្ករ\",\"meta\":\"cut emoji \\ud83d\"}",
    ];
    let (rows, cleaned) = read_named("python.jsonl", lines.join("\r\n")).await.unwrap();
    assert_eq!((rows, cleaned.counts["rows"]), (expected(), 3));

    let array = "[{\"english\": \"A river.\", \"foreign\": \"ទន្លេ\"}]";
    let text = refusal("array.jsonl", &array).await;
    assert!(text.contains("array") && text.contains("jq -c '.[]'"), "{text}");
    let pretty = "{\n  \"english\": \"A river.\",\n  \"foreign\": \"ទន្លេ\"\n}\n";
    let text = refusal("pretty.jsonl", &pretty).await;
    assert!(text.contains("several lines") && text.contains("jq -c ."), "{text}");
}

#[tokio::test]
async fn warnings_name_the_side_at_fault_and_what_is_there_instead() {
    let moses = beside(
        put("side.en", b"A river.\nA boat.\nRice.\n \n").await,
        put("side.km", b"\xE1\x9E\x91\n\nx\xFF\n\xE1\x9E\x91\xE1\x9E\x91\n").await,
    );
    let (_, cleaned) = read(moses).await.unwrap();
    assert_eq!(
        cleaned.warnings,
        [
            "memory://files/side.km:2: empty_foreign",
            "memory://files/side.km:3: broken_utf8",
            "memory://files/side.en:4: empty_english",
        ]
    );

    let lines = format!("{JSONL}{{\"translation\":{{\"en\":\"a\",\"km\":\"b\"}},\"id\":1}}\n");
    let (_, cleaned) = read_named("keys.jsonl", &lines).await.unwrap();
    let expected = "keys.jsonl:4: missing_column (no text under `english`, it has id, translation.en, translation.km)";
    assert!(cleaned.warnings[0].ends_with(expected), "{:?}", cleaned.warnings);
    // The named keys work.
    let advised = Source {
        columns: Columns { english: "translation.en".into(), foreign: "translation.km".into() },
        ..put("keys.jsonl", &lines).await
    };
    assert_eq!(read(advised).await.unwrap().0, pairs(&[("a", "b")]));

    let (_, cleaned) = read_named("commas.tsv", format!("{TSV}A cow.,គោ\n")).await.unwrap();
    assert!(cleaned.warnings[0].ends_with("missing_column (no tab is in it)"), "{:?}", cleaned.warnings);
    let other = memory("", &SEGMENTS).replace("km-KH", "fr");
    let source = Source {
        languages: Languages { english: "en".to_owned(), foreign: Some("km".to_owned()) },
        ..put("other.tmx", &other).await
    };
    let text = read(source).await.unwrap_err().to_string();
    assert!(text.contains("the unit has EN-GB, fr"), "{text}");
}

#[tokio::test]
async fn latin1_text_is_named_and_read_once_it_is_converted() {
    let text = "The café.\tLe café là.\nSummer.\tL'été là.\n";
    let (latin1, ..) = encoding_rs::WINDOWS_1252.encode(text);
    let said = refusal("latin.tsv", &latin1).await;
    assert!(said.contains("2 broken_utf8") && said.contains("iconv -f WINDOWS-1252 -t UTF-8"), "{said}");
    let (rows, _) = read_named("latin.tsv", &text).await.unwrap();
    assert_eq!(rows.len(), 2);
}

#[tokio::test]
async fn a_source_is_called_as_its_label_says() {
    let labeled = Source { label: Some("a/train.tsv".to_owned()), ..put("train.tsv", TSV).await };
    let (_, cleaned) = read(labeled).await.unwrap();
    assert_eq!(cleaned.artifacts[0].metadata["llink.source"], "a/train.tsv");
}

#[tokio::test]
async fn lines_for_other_uses_are_read_alike() {
    let all = async |mut lines: Lines| {
        let mut found = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            found.push(line.map_err(|reason| reason.to_string()));
        }
        found
    };
    let source = put("lines.txt.gz", gz(b"\xEF\xBB\xBFone\r\ncaf\xE9\n\xE1\x9E\x91")).await;
    let expected = [Ok("one".to_owned()), Err("broken_utf8".to_owned()), Ok("ទ".to_owned())];
    assert_eq!(all(Lines::of_text(&source.url).await.unwrap()).await, expected);
    let array = put("array.json", b"[{\"text\": \"a\"}]").await;
    assert!(Lines::of_json(&array.url).await.err().unwrap().to_string().contains("array"));
    assert_eq!(all(Lines::of_text(&array.url).await.unwrap()).await.len(), 1);
}
