#!/usr/bin/env bash
# Runs all measurements that need a GPU, and writes one JSON (worker/cuda/proof.py lists them).
#
#     worker/cuda/proof.sh pack                       on any machine: builds and writes target/proof/proof.tar.xz (under 64 MiB)
#     worker/cuda/proof.sh run [SECTION…] [--out DIR] on the GPU machine, with that archive in the same place; a section takes
#                                                     less than 10 minutes: golden embed teacher align instruct ranks kill job
#     worker/cuda/proof.sh dry-run [SECTION…]         here, on the CPU, at the smallest size: finds errors of the script
#     worker/cuda/proof.sh emulated [SECTION…]        here, the CUDA build on the emulated GPU in the folder LLINK_CUDA_EMULATOR: golden ranks kill
#
# The peer's scripts are read from LLINK_REFERENCE, a folder with bench_reference.py and llink_reference.py.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
place=$root/target/proof
archive=$place/proof.tar.xz

# Copies the binaries of a build under plain names to $place/bin.
gather() {
    rm -rf "$place/bin" "$place/peer"
    mkdir -p "$place/bin" "$place/peer"
    while read -r name path; do
        install -s "$path" "$place/bin/$name" 2>/dev/null || install "$path" "$place/bin/$name"
    done
    local reference=${LLINK_REFERENCE:-$root/../shared/reference}
    for script in bench_reference.py llink_reference.py; do
        if [ -e "$reference/$script" ]; then cp "$reference/$script" "$place/peer/"; else echo "no $reference/$script: no peer" >&2; fi
    done
    git rev-parse HEAD > "$place/commit" 2>/dev/null || true
}

# Prints the name and the path of each binary that cargo built.
built() {
    python3 -c '
import json, sys
for line in sys.stdin:
    try: message = json.loads(line)
    except ValueError: continue
    if message.get("reason") == "compiler-artifact" and message.get("executable"):
        print(message["target"]["name"], message["executable"])'
}

# Builds all programs of the proof for CUDA.
build() {
    local target=(--release --target x86_64-unknown-linux-gnu --message-format json-render-diagnostics)
    # The default of build.sh. `nccl,flash-attn` adds fused attention.
    local features=${LLINK_CUDA_FEATURES:-nccl}
    {
        worker/cuda/build.sh build "${target[@]}" -p llink-worker --features "$features" --bins --bench speed
        worker/cuda/build.sh build "${target[@]}" -p llink-coord --no-default-features
        worker/cuda/build.sh test --no-run "${target[@]}" -p llink-worker --features "$features" --test it
    } | built | sort -u | gather
}

pack() {
    build
    # The binaries share most of their code, which a large window finds.
    tar -C "$place" -c bin peer commit | xz -T2 --lzma2=preset=6,dict=192MiB > "$archive"
    local bytes
    bytes=$(stat -c %s "$archive")
    echo "$archive: $((bytes / 1048576)) MiB"
    [ "$bytes" -lt $((60 * 1048576)) ] || { echo "too large to be carried" >&2; exit 1; }
}

# Finds CUDA's libraries, and makes a folder with the names that the binaries look for.
libraries() {
    local links=$place/libraries folder file name
    mkdir -p "$links"
    for folder in $(python3 -c 'import site, glob; print("\n".join(p for s in site.getsitepackages() for p in glob.glob(s + "/nvidia/*/lib")))' 2>/dev/null) \
        /usr/local/cuda/lib64 /usr/local/cuda-13*/lib64 /usr/lib/x86_64-linux-gnu; do
        [ -d "$folder" ] || continue
        for name in cublas cublasLt curand nccl nvrtc cudart; do
            for file in "$folder/lib$name.so" "$folder/lib$name".so.*; do
                if [ -e "$file" ] && [ ! -e "$links/lib$name.so" ]; then
                    ln -s "$file" "$links/lib$name.so"
                    # cuBLAS loads cuBLASLt by its own name.
                    ln -sf "$file" "$links/$(basename "$file")"
                fi
            done
        done
    done
    echo "$links"
}

case ${1:-} in
    pack) pack ;;
    run)
        shift
        [ -d "$place/bin" ] || tar -C "$place" -xJf "$archive"
        LD_LIBRARY_PATH=$(libraries)${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
        export LD_LIBRARY_PATH
        exec python3 worker/cuda/proof.py --place "$place" "$@"
        ;;
    emulated)
        shift
        emulator=${LLINK_CUDA_EMULATOR:?set it to the folder of the CUDA emulator, which holds install.sh}
        build
        # The emulator's folder may be read-only.
        CARGO_TARGET_DIR=$place/emulator "$emulator/install.sh" "$place/emulated"
        export LD_LIBRARY_PATH=$place/emulated
        [ $# -gt 0 ] || set -- golden ranks kill
        exec "${LLINK_PYTHON:-python3}" worker/cuda/proof.py --place "$place" --device cuda --small "$@"
        ;;
    dry-run)
        shift
        {
            cargo build --release --message-format json-render-diagnostics -p llink-worker -p llink-coord --bins --bench speed
            cargo test --no-run --release --message-format json-render-diagnostics -p llink-worker --test it
        } | built | sort -u | gather
        exec "${LLINK_PYTHON:-python3}" worker/cuda/proof.py --place "$place" --device cpu --small "$@"
        ;;
    *)
        sed -n '2,/^set/p' "$0" | sed -n 's/^# \{0,1\}//p'
        exit 2
        ;;
esac
