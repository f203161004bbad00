"""Times llink's readers of corpora beside polars, pyarrow and plain Python on the same files, in one run.

    python datasets/benches/readers.py files DIR SOURCE.tsv    writes the pairs of a TSV file in each format
    python datasets/benches/readers.py run DIR BENCH >> lines.jsonl    (BENCH is the program of `cargo bench --bench readers`)

Each program ends with all rows as strings: llink as one row after the other, polars and pyarrow as a table, and Python as a list. Nothing is
cleaned. A rate in MB/s counts the bytes of both texts in UTF-8, so it does not depend on the format. `worker/benches/table.py write` makes
the table. polars and pyarrow are needed.
"""
import argparse, gzip, json, lzma, os, pathlib, resource, subprocess, sys, time
import xml.etree.ElementTree as xml
from xml.sax.saxutils import escape

XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
FILES = {"TSV, gzip": ["pairs.tsv.gz"], "JSONL, zstd": ["pairs.jsonl.zst"], "Parquet, zstd": ["pairs.parquet"], "TMX, gzip": ["pairs.tmx.gz"],
         "Moses, xz": ["pairs.en.xz", "pairs.km.xz"]}


def write_files(folder, source):
    import pyarrow, pyarrow.parquet
    pairs = [line.split("\t")[:2] for line in source.read_text().splitlines()]
    folder.mkdir(parents=True, exist_ok=True)
    english, foreign = zip(*pairs)
    with gzip.open(folder / "pairs.tsv.gz", "wt", compresslevel=6) as out:
        out.writelines(f"{e}\t{f}\n" for e, f in pairs)
    with pyarrow.output_stream(str(folder / "pairs.jsonl.zst"), compression="zstd") as out:
        for e, f in pairs:
            out.write((json.dumps({"english": e, "foreign": f}, ensure_ascii=False) + "\n").encode())
    pyarrow.parquet.write_table(pyarrow.table({"english": english, "foreign": foreign}), folder / "pairs.parquet", compression="zstd")
    with gzip.open(folder / "pairs.tmx.gz", "wt", compresslevel=6) as out:
        out.write('<?xml version="1.0" encoding="UTF-8"?>\n<tmx version="1.4"><header srclang="en"/><body>\n')
        for sides in pairs:
            units = "".join(f'<tuv xml:lang="{lang}"><seg>{escape(text)}</seg></tuv>' for lang, text in zip(["en", "km"], sides))
            out.write(f"<tu>{units}</tu>\n")
        out.write("</body></tmx>\n")
    for name, texts in [("pairs.en.xz", english), ("pairs.km.xz", foreign)]:
        with lzma.open(folder / name, "wt") as out:
            out.writelines(text + "\n" for text in texts)
    size = sum(len(text.encode()) for text in english + foreign)
    (folder / "pairs.json").write_text(json.dumps({"rows": len(pairs), "bytes": size}))


def polars(name, files):
    import polars
    if name.startswith("TSV"):
        return polars.read_csv(files[0], separator="\t", has_header=False, quote_char=None).height
    if name.startswith("JSONL"):
        return polars.scan_ndjson(files[0]).collect().height
    return polars.read_parquet(files[0]).height


def pyarrow(name, files):
    import pyarrow.csv, pyarrow.json, pyarrow.parquet
    if name.startswith("TSV"):
        options = {"read_options": pyarrow.csv.ReadOptions(column_names=["english", "foreign"]),
                   "parse_options": pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False)}
        return pyarrow.csv.read_csv(files[0], **options).num_rows
    if name.startswith("JSONL"):
        return pyarrow.json.read_json(pyarrow.input_stream(files[0], compression="zstd")).num_rows
    return pyarrow.parquet.read_table(files[0]).num_rows


def python(name, files):
    if name.startswith("TSV"):
        return len([line.rstrip("\n").split("\t") for line in gzip.open(files[0], "rt")])
    if name.startswith("Moses"):
        return len([(e.rstrip("\n"), f.rstrip("\n")) for e, f in zip(lzma.open(files[0], "rt"), lzma.open(files[1], "rt"))])
    rows = []
    for _, unit in xml.iterparse(gzip.open(files[0])):
        if unit.tag == "tu":
            sides = {side.get(XML_LANG): side.findtext("seg") for side in unit.iter("tuv")}
            rows.append((sides["en"], sides["km"]))
            unit.clear()
    return len(rows)


ENGINES = {"polars": (polars, ["TSV", "JSONL", "Parquet"]), "pyarrow": (pyarrow, ["TSV", "JSONL", "Parquet"]), "Python": (python, ["TSV", "TMX", "Moses"])}


def read(engine, name, files):
    # Imports are not timed.
    work = ENGINES[engine][0]
    version = "" if engine == "Python" else " " + __import__(engine).__version__
    if engine == "pyarrow":
        import pyarrow.csv, pyarrow.json, pyarrow.parquet
    began = time.perf_counter()
    rows = work(name, files)
    seconds = time.perf_counter() - began
    print(json.dumps({"engine": engine + version, "rows": rows, "seconds": seconds, "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}))


def run(folder, bench, rounds):
    size = json.loads((folder / "pairs.json").read_text())
    for name, files in FILES.items():
        files = [str(folder / file) for file in files]
        commands = {"llink": [bench, *files]}
        commands |= {engine: [sys.executable, __file__, "read", engine, name, *files] for engine, (_, formats) in ENGINES.items()
                     if name.split(",")[0] in formats}
        for _ in range(rounds):
            for engine, command in commands.items():
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
                if found["rows"] != size["rows"]:
                    raise SystemExit(f"{engine} finds {found['rows']} of {size['rows']} rows in {files}")
                found |= {"table": "readers", "row": name, "column": engine, "cores": os.cpu_count(),
                          "rows_per_s": size["rows"] / found["seconds"], "mb_per_s": size["bytes"] / found["seconds"] / 1e6}
                print(json.dumps(found), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("files")
    command.add_argument("folder", type=pathlib.Path)
    command.add_argument("source", type=pathlib.Path)
    command = commands.add_parser("run")
    command.add_argument("folder", type=pathlib.Path)
    command.add_argument("bench")
    command.add_argument("--rounds", type=int, default=5)
    command = commands.add_parser("read")
    command.add_argument("engine")
    command.add_argument("name")
    command.add_argument("files", nargs="+")
    options = parser.parse_args()
    if options.command == "files":
        return write_files(options.folder, options.source)
    if options.command == "read":
        return read(options.engine, options.name, options.files)
    run(options.folder, options.bench, options.rounds)


main()
