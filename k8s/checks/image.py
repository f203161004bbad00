#!/usr/bin/env python3
"""Checks the Dockerfile as far as possible without a build. build_images.sh builds it.

    image.py BINARIES
    image.py --needed TARGET        prints the stages that a target needs, as BuildKit would build them

The copied files exist and are in the context, from which cargo could build. Each named stage exists. The last stages
have a user other than root, use fixed images and run no commands. The licenses can be gathered. The programs need no
library that the runtime image lacks.
"""

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "k8s/Dockerfile"
# The libraries of gcr.io/distroless/cc-debian12 and of every glibc system.
RUNTIME_LIBRARIES = {"linux-vdso.so.1", "libgcc_s.so.1", "libm.so.6", "libc.so.6", "libpthread.so.0", "libdl.so.2",
                     "librt.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
NEWEST_GLIBC = (2, 36)  # of Debian 12


def instructions(text):
    joined = re.sub(r"\\\n", " ", text)
    for line in joined.splitlines():
        line = line.strip()
        if line and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            yield word.upper(), rest.strip()


def ignored(path, rules):
    """Applies `.dockerignore` as BuildKit does: the last rule that matches decides."""
    out = False
    for rule in rules:
        keep, pattern = rule.startswith("!"), rule.lstrip("!")
        parts = Path(path).parts
        heads = ["/".join(parts[: i + 1]) for i in range(len(parts))]
        plain = pattern.removeprefix("**/")
        if any(fnmatch.fnmatch(h, pattern) for h in heads) or (
            pattern.startswith("**/") and any(fnmatch.fnmatch(p, plain) for p in parts)
        ):
            out = not keep
    return out


def faults_of(text, rules):
    stages, arguments, current, faults = {}, {}, None, []
    for word, rest in instructions(text):
        if word == "ARG" and current is None:
            name, _, value = rest.partition("=")
            arguments[name] = value
            if "@sha256:" not in value and (":" not in value or value.endswith(":latest")):
                faults.append(f"ARG {name}: {value} is no fixed image")
        elif word == "FROM":
            image, _, name = re.sub(r"\s+[Aa][Ss]\s+", "\n", rest).partition("\n")
            variable = re.fullmatch(r"\$\{(\w+)\}", image)
            if variable and variable.group(1) not in arguments:
                faults.append(f"FROM {image}: no such ARG")
            elif not variable and image not in stages and ":" not in image:
                faults.append(f"FROM {image} is no fixed image")
            current = {"user": None, "commands": [], "copies": []}
            stages[name] = current
        elif word == "COPY":
            words = shlex.split(rest)
            source_stage = next((w.split("=")[1] for w in words if w.startswith("--from=")), None)
            paths = [w for w in words if not w.startswith("--")][:-1]
            if source_stage and source_stage not in stages:
                faults.append(f"COPY --from={source_stage}: no such stage before it")
            for path in [] if source_stage else paths:
                if not (ROOT / path).exists():
                    faults.append(f"COPY {path}: no such file")
                elif ignored(path, rules):
                    faults.append(f"COPY {path}: .dockerignore keeps it out")
        elif word == "USER":
            current["user"] = rest
        elif word == "RUN":
            current["commands"].append(rest)
    for name in ("cpu", "cuda"):
        stage = stages.get(name)
        if not stage:
            faults.append(f"there is no stage {name}")
            continue
        if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", stage["user"] or ""):
            faults.append(f"stage {name} ends as the user {stage['user']}")
        if stage["commands"]:
            faults.append(f"stage {name} runs commands: it is the same bytes only without")
    return faults


def cargo_features(text):
    """Checks that the packages that the Dockerfile builds exist, with their features."""
    faults = []
    for line in re.findall(r"(?:cargo|build\.sh) build ([^\n&]+)", text):
        packages, features = re.findall(r"-p (\S+)", line), re.findall(r"--features (\S+)", line)
        for package in packages:
            folder = {"llink-coord": "coordinator", "llink-inspect": "coordinator/inspect", "llink-worker": "worker"}.get(package)
            if not folder:
                faults.append(f"cargo build -p {package}: no such package")
                continue
            manifest = (ROOT / folder / "Cargo.toml").read_text()
            for feature in ",".join(features).split(","):
                if feature and not re.search(rf"^{feature} = ", manifest, re.M):
                    faults.append(f"{package} has no feature {feature}")
    return faults


def context(text, rules, place):
    """Copies the files of the build stage, as BuildKit would."""
    first = text[: text.index(" AS cpu")]
    copies = [shlex.split(rest) for word, rest in instructions(first) if word == "COPY" and "--from=" not in rest]
    for words in copies:
        *sources, target = words
        for source in sources:
            path = ROOT / source
            files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
            for file in files:
                name = file.relative_to(ROOT)
                if not ignored(str(name), rules):
                    inside = place / target / file.name if path.is_file() and target.endswith("/") else \
                        place / target / file.relative_to(path) if path.is_dir() else place / target
                    inside.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, inside)


def builds_from(place):
    """Checks that the lock file fits, and that every target's root and every included file is in the context."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--offline", "--no-deps"]
    said = subprocess.run(command, cwd=place, capture_output=True, text=True)
    if said.returncode != 0:
        return [f"cargo in the context: {said.stderr.strip()}"]
    faults = []
    for package in json.loads(said.stdout)["packages"]:
        for target in package["targets"]:
            if target["kind"][0] in ("bin", "lib", "custom-build") and not Path(target["src_path"]).exists():
                faults.append(f"{target['src_path']} is not in the context")
    for file in place.rglob("*.rs"):
        # Tests are compiled elsewhere, and may include more files.
        code = file.read_text().split("#[cfg(test)]")[0] if not file.name.endswith("tests.rs") else ""
        for named in re.findall(r'include_(?:str|bytes)!\(\s*"([^"]+)"', code):
            if not (file.parent / named).exists():
                faults.append(f"{file.relative_to(place)} takes in {named}, which is not in the context")
    return faults


def libraries(binary):
    said = subprocess.run(["ldd", str(binary)], capture_output=True, text=True).stdout
    names = {Path(line.split()[0]).name for line in said.splitlines() if line.strip()}
    faults = [f"{binary.name} needs {name}, which the runtime image lacks" for name in sorted(names - RUNTIME_LIBRARIES)]
    symbols = subprocess.run(["objdump", "-T", str(binary)], capture_output=True, text=True)
    needed = [tuple(map(int, v.split("."))) for v in re.findall(r"GLIBC_(\d+\.\d+)", symbols.stdout)]
    if needed and max(needed) > NEWEST_GLIBC:
        faults.append(f"{binary.name} needs glibc {max(needed)}; Debian 12 has {NEWEST_GLIBC}")
    return faults


def needed(text, target):
    head, *stages = re.split(r"(?m)^(?=FROM )", text)
    names = [re.match(r"FROM (\S+) AS (\S+)", stage) for stage in stages]
    wanted, found = {target}, []
    for name, stage in reversed(list(zip(names, stages))):
        if name[2] in wanted:
            wanted |= {name[1], *re.findall(r"--from=(\S+)", stage)}
            found.insert(0, stage)
    return head + "".join(found)


def self_test(text, rules):
    """Plants one fault of each kind and checks that it is found."""
    planted = [
        (text.replace("COPY proto proto", "COPY porto porto"), "no such file"),
        (text.replace("COPY proto proto", "COPY k8s/base base"), "keeps it out"),
        (text.replace("--from=build-cuda", "--from=build-cdua"), "no such stage"),
        (text.replace("USER 65532:65532", "USER root"), "ends as the user"),
        (text.replace("FROM ${RUNTIME} AS cpu", "FROM debian AS cpu"), "no fixed image"),
        (text.replace("ARG RUST=rust:1.95-slim-bookworm", "ARG RUST=rust:latest"), "no fixed image"),
        (text.replace("USER 65532:65532", "RUN true\nUSER 65532:65532"), "runs commands"),
        (text.replace("AS cuda", "AS gpu"), "no stage cuda"),
    ]
    for changed, word in planted:
        assert changed != text, word
        assert any(word in fault for fault in faults_of(changed, rules)), (word, faults_of(changed, rules))


def main():
    text = DOCKERFILE.read_text()
    if sys.argv[1] == "--needed":
        print(needed(text, sys.argv[2]))
        return
    binaries = Path(sys.argv[1])
    lines = (ROOT / "k8s/Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    faults = faults_of(text, rules) + cargo_features(text)
    self_test(text, rules)
    with tempfile.TemporaryDirectory() as place:
        context(text, rules, Path(place))
        faults += builds_from(Path(place))
        # A planted fault must be found.
        shutil.rmtree(Path(place) / "worker/quickstart/assets")
        assert any("takes in" in fault for fault in builds_from(Path(place))), "a planted gap in the context was not caught"
    with tempfile.TemporaryDirectory() as out:
        done = subprocess.run(["sh", str(ROOT / "k8s/licences.sh"), out], cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            faults.append(f"licences.sh: {done.stderr}")
        texts = len(os.listdir(Path(out) / "crates")) if done.returncode == 0 else 0
    for name in ("llink-coord", "llink-worker"):
        if not (binaries / name).exists():
            faults.append(f"{binaries / name} is not built")
            continue
        faults += libraries(binaries / name)
    for fault in faults:
        print(fault)
    print(f"Dockerfile: {texts} license texts; " + ("faults above" if faults else "its copies, stages, users and libraries are sound"))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
