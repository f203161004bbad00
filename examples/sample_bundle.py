"""Writes the bundle that examples/sample-bundle.toml trained as examples/sample-bundle: weights in 16-bit floats, tiny models of
this repository.

    python3 examples/sample_bundle.py target/sample-bundle/export/KEY examples/sample-bundle
"""

import hashlib
import json
import struct
import sys
from pathlib import Path

KEY = "sample"
MODELS = "../../worker/quickstart/assets"


def halved(content):
    """Returns a safetensors file with its 32-bit floats rounded to 16 bits."""
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    body = b""
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        begin, end = tensor["data_offsets"]
        assert tensor["dtype"] == "F32", f"{name} is {tensor['dtype']}, not F32"
        count = (end - begin) // 4
        halves = struct.pack(f"<{count}e", *struct.unpack(f"<{count}f", data[begin:end]))
        tensor.update(dtype="F16", data_offsets=[len(body), len(body) + len(halves)])
        body += halves
    text = json.dumps(header, separators=(",", ":"), sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def main(source, target):
    manifest = json.loads((source / "manifest.json").read_text())
    target.mkdir(parents=True, exist_ok=True)
    kept = []
    for artifact in manifest["artifacts"]:
        name = artifact["path"].rsplit("/", 1)[-1]
        content = (source / name).read_bytes()
        if name == "README.md":
            continue
        if name.endswith(".safetensors"):
            content = halved(content)
        if name == "config.json":
            config = json.loads(content)
            for role in ("encoder", "decoder"):
                config[role]["source"] = f"{MODELS}/{role}"
            content = (json.dumps(config, indent=2) + "\n").encode()
        (target / name).write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        kept.append({**artifact, "path": f"export/{KEY}/{name}", "bytes": len(content), "sha256": sha256})
    manifest.update(key=KEY, artifacts=kept)
    (target / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
