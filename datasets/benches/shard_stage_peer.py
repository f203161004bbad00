"""What `shard_stage` does, as one lazy query of Python polars: the peer that it is timed against.

    python shard_stage_peer.py SOURCE.tsv.gz FOLDER

The same filters (NFC, controls, trimmed, empty sides, identical sides, 1 to 256 characters with longer texts cut), exact
duplicates of either side in the form in which texts compare, and Parquet with zstd.
"""

import json
import pathlib
import resource
import sys
import time

import polars as pl

source, folder = sys.argv[1], pathlib.Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
began = time.perf_counter()


def clean(column: str) -> pl.Expr:
    text = pl.col(column).str.normalize("NFC").str.replace_all(r"[\p{Cc}\x{FEFF}]", "")
    return text.str.replace_all(r"\s+", " ").str.strip_chars(" \u200b\u200c\u200d")


def form(column: str) -> pl.Expr:
    text = pl.col(column).str.normalize("NFKC").str.to_lowercase()
    return text.str.replace_all(r"[\s\x{200B}-\x{200D}]", "").hash().alias(column + "_key")


rows = (
    pl.scan_csv(source, separator="\t", has_header=False, quote_char=None, new_columns=["english", "foreign"])
    .with_columns(clean("english"), clean("foreign"))
    .filter(pl.col("english") != "", pl.col("foreign") != "")
    .with_columns(pl.col("foreign").str.slice(0, 256))
    .with_columns(form("english"), form("foreign"), pl.col("foreign").str.len_chars().cast(pl.UInt16).alias("chars"))
    .filter(pl.col("english_key") != pl.col("foreign_key"))
    .unique("foreign_key", keep="any")
    .unique("english_key", keep="any")
    .sort("foreign_key")
    .select("english", "foreign", "chars")
)
rows.sink_parquet(folder / "pairs.parquet", compression="zstd", compression_level=3, row_group_size=8192)
seconds = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
print(json.dumps({"job": "shard_stage", "engine": f"polars {pl.__version__}", "source": source, "seconds": seconds, "peak_rss_mib": peak}))
