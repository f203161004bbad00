"""Times tokenizing in llink and in Hugging Face's tokenizers with the same tokenizer, texts and number of threads.

    python worker/benches/tokenize.py SPEED DIR >> lines.jsonl

SPEED is the program of `cargo bench --bench speed`, and DIR holds `tokenizer.json` and `texts.txt`. Both take 4,096 texts at once, and
both end with lists of ids. `worker/benches/table.py write` makes the table.
"""
import json, os, pathlib, sys, time

from table import last_line


def peer(folder):
    import tokenizers
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = (folder / "texts.txt").read_text().split("\n")[:-1]
    began, tokens = time.perf_counter(), 0
    for first in range(0, len(texts), 4096):
        tokens += sum(len(found.ids) for found in tokenizer.encode_batch_fast(texts[first:first + 4096]))
    seconds = time.perf_counter() - began
    print(json.dumps({"engine": f"tokenizers {tokenizers.__version__}", "texts": len(texts), "tokens": tokens, "seconds": seconds,
                      "tokens_per_s": tokens / seconds, "mb_per_s": sum(len(text.encode()) for text in texts) / seconds / 1e6}))


def run(speed, folder, rounds=3):
    for threads in sorted({1, os.cpu_count()}):
        commands = {"llink": [speed, "tokenize", folder, "--n", "1000000000"], "tokenizers": [sys.executable, __file__, "peer", folder]}
        for _ in range(rounds):
            tokens = set()
            for column, command in commands.items():
                environment = {**os.environ, "RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false"}
                found = last_line(command, env=environment)
                tokens.add(found["tokens"])
                print(json.dumps({**found, "table": "tokenize", "row": str(threads), "column": column}), flush=True)
            if len(tokens) > 1:
                raise SystemExit(f"the programs find {tokens} tokens")


if sys.argv[1] == "peer":
    peer(pathlib.Path(sys.argv[2]))
else:
    run(sys.argv[1], pathlib.Path(sys.argv[2]))
