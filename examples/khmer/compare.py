#!/usr/bin/env python3
"""Compares the cached vectors of a job of examples/khmer with those of Transformers on the same models.

    python compare.py OUTPUT MODELS      OUTPUT is the job's output folder, MODELS holds e5-small and smollm2.gguf
"""

import sys
from pathlib import Path

import numpy as np
import polars as pl
import torch
from gguf import GGUFReader
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

output, models = Path(sys.argv[1]), Path(sys.argv[2])
ROWS = 64
# Vectors are cached in f16. llink unpacks the GGUF's weights to bf16, and Transformers to f32.
TOLERANCE = 5e-3


def relative(ours, theirs):
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def cached(tower, pairs):
    files = sorted(output.glob(f"embed/*/embeddings/{tower}/train/*.parquet"))
    table = pl.read_parquet(files)
    rows = pairs.join(table, on="id", how="left", maintain_order="left")
    return np.array(rows["vector"].to_list(), dtype=np.float32)


def check(name, ours, theirs):
    error = relative(ours, theirs)
    print(f"{name}: {len(ours)} vectors, relative error {error:.1e}")
    if not error < TOLERANCE:
        sys.exit(f"{name}: {error} is above {TOLERANCE}")


pairs = pl.read_parquet(sorted(output.glob("shard/*/pairs/train/*.parquet"))).head(ROWS)

tokenizer = AutoTokenizer.from_pretrained(models / "e5-small")
encoder = AutoModel.from_pretrained(models / "e5-small").eval()
with torch.no_grad():
    means = []
    for text in pairs["foreign"]:
        ids = tokenizer(text[:256], return_tensors="pt", truncation=True, max_length=256)
        means.append(encoder(**{k: v for k, v in ids.items() if k != "token_type_ids"}).last_hidden_state[0].mean(0).numpy())
check("encoder", cached("encoder", pairs), np.stack(means))

# The recipe's teacher is the mean of one hidden layer over the sentence without its first token. Transformers' reader of GGUF
# does not split digits as the file says, so sentences with digits are left out.
pairs = pairs.filter(~pl.col("english").str.contains(r"\d"))
tokenizer = AutoTokenizer.from_pretrained(models, gguf_file="smollm2.gguf")
decoder = AutoModelForCausalLM.from_pretrained(models, gguf_file="smollm2.gguf", dtype=torch.float32).model.eval()
begins = GGUFReader(models / "smollm2.gguf").fields.get("tokenizer.ggml.add_bos_token")
BEGIN = [tokenizer.bos_token_id] if begins is not None and begins.contents() else []
LAYER = decoder.config.num_hidden_layers // 3
with torch.no_grad():
    means = []
    for text in pairs["english"]:
        ids = [*BEGIN, *tokenizer(text, add_special_tokens=False)["input_ids"]][:127]
        states = decoder(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[LAYER][0]
        means.append(states[1:].mean(0).numpy() if len(ids) > 1 else states[0].numpy())
check("teacher", cached("teacher", pairs), np.stack(means))
print("vectors agree with Transformers")
