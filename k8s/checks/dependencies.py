#!/usr/bin/env python3
"""Licences, bans and sources of all dependencies, by `.cargo/deny.toml`, from `cargo metadata` alone.

What cargo-deny does for these three, without building it: it is run where it is installed.

    dependencies.py [--self-test]
"""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def allowed(expression, allow):
    """Whether an SPDX expression can be met with the licences that are allowed. `/` is how old crates wrote OR."""
    tokens = re.findall(r"\(|\)|[^\s()/]+|/", expression)
    position = 0

    def peek():
        return tokens[position] if position < len(tokens) else None

    def take():
        nonlocal position
        position += 1
        return tokens[position - 1]

    def one():
        token = take()
        if token == "(":
            met = either()
            if take() != ")":
                raise ValueError(expression)
            return met
        if peek() == "WITH":
            take()
            token = f"{token} WITH {take()}"
        return token in allow

    def both():
        met = one()
        while peek() == "AND":
            take()
            met = one() and met
        return met

    def either():
        met = both()
        while peek() in ("OR", "/"):
            take()
            met = both() or met
        return met

    met = either()
    if position != len(tokens):
        raise ValueError(expression)
    return met


def faults(packages, rules):
    allow = set(rules["licenses"]["allow"])
    banned = {entry["crate"] for entry in rules["bans"]["deny"]}
    registries = {f"registry+{url}" for url in rules["sources"]["allow-registry"]}
    for package in packages:
        name = f"{package['name']} {package['version']}"
        if package["name"] in banned:
            yield f"{name} is banned"
        if package["source"] is not None and package["source"] not in registries:
            yield f"{name} comes from {package['source']}"
        if package["source"] is None:
            for dependency in package["dependencies"]:
                if dependency["req"] == "*" and dependency.get("path") is None:
                    yield f"{name} takes any version of {dependency['name']}"
        try:
            if not package["license"] or not allowed(package["license"], allow):
                yield f"{name} is under {package['license'] or 'no licence that it names'}"
        except (ValueError, IndexError):
            yield f"{name}: its licence {package['license']!r} cannot be read"


def self_test(rules):
    """One fault of each kind is planted, to see it caught."""
    registry = "registry+" + rules["sources"]["allow-registry"][0]
    sound = {"name": "a", "version": "1", "source": registry, "license": "MIT", "dependencies": []}
    planted = [
        ({"license": "GPL-3.0-only"}, "GPL"),
        ({"license": "MIT AND GPL-3.0-only"}, "GPL"),
        ({"license": None}, "no licence"),
        ({"license": "(MIT"}, "cannot be read"),
        ({"name": "openssl"}, "banned"),
        ({"source": "git+https://example.org/a"}, "comes from"),
        ({"source": None, "dependencies": [{"name": "b", "req": "*"}]}, "any version"),
    ]
    for change, word in planted:
        found = list(faults([{**sound, **change}], rules))
        assert any(word in fault for fault in found), (change, found)
    for good in ("MIT", "GPL-3.0-only OR MIT", "Unlicense/MIT", "(MIT OR GPL-2.0-only) AND Unicode-3.0",
                 "Apache-2.0 WITH LLVM-exception"):
        assert not list(faults([{**sound, "license": good}], rules)), good


def main():
    rules = tomllib.loads((ROOT / ".cargo/deny.toml").read_text())
    self_test(rules)
    if "--self-test" in sys.argv:
        return
    if shutil.which("cargo-deny"):
        said = subprocess.run(["cargo", "deny", "--version"], capture_output=True, text=True).stdout
        version = re.search(r"0\.(\d+)", said)
        if version and int(version.group(1)) >= 16:
            command = ["cargo", "deny", "check", "--config", ".cargo/deny.toml", "licenses", "bans", "sources"]
            sys.exit(subprocess.run(command, cwd=ROOT).returncode)
    packages = {}
    for target in rules["graph"]["targets"]:
        command = ["cargo", "metadata", "--format-version", "1", "--locked", "--all-features", "--filter-platform", target]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if said.returncode != 0:
            sys.exit(said.stderr)
        metadata = json.loads(said.stdout)
        used = {node["id"] for node in metadata["resolve"]["nodes"]}
        packages |= {p["id"]: p for p in metadata["packages"] if p["id"] in used}
    found = sorted(faults(packages.values(), rules))
    for fault in found:
        print(fault)
    print(f"{len(packages)} packages: licences, bans and sources {'are not as' if found else 'as'} .cargo/deny.toml has them")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
