#!/usr/bin/env bash
# Builds llink for NVIDIA GPUs (features `cuda` and `nccl`). The machine needs no GPU and no installed CUDA.
#
#     worker/cuda/build.sh                      llink-coord and llink-worker, in target/cuda/x86_64-unknown-linux-gnu/release/
#     worker/cuda/build.sh check                type-checks the Rust code only: no toolkit, no kernel is compiled
#     worker/cuda/build.sh libraries FOLDER     copies the libraries that the binaries load beside the driver: cuBLAS,
#                                               cuRAND (which needs the runtime) and NCCL, with their licenses
#     worker/cuda/build.sh ARGS…                cargo ARGS… in the environment that CUDA needs
#
# The toolkit is CUDA 13.0 (driver 580 or newer) from NVIDIA's packages on PyPI, kept in target/cuda/toolkit. LLINK_CUDA_HOME
# names another one. The binaries load driver and libraries at their start (dlopen), so the same file also runs without them.
# CUDA_COMPUTE_CAP is the GPU's generation, by default 90 (H100, H200). LLINK_CUDA_FEATURES is by default `nccl`, and
# `nccl,flash-attn` adds fused attention. nvcc needs minutes for each of its 53 kernels, whose headers (CUTLASS) come from GitHub.
set -euo pipefail
shopt -s inherit_errexit
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
place=${LLINK_CUDA_TARGET:-$root/target/cuda}
target=x86_64-unknown-linux-gnu
packages=(
    nvidia-cuda-nvcc==13.0.88 nvidia-cuda-cccl==13.0.85 nvidia-cuda-runtime==13.0.96 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88
    nvidia-cublas==13.0.2.14 nvidia-cuda-nvrtc==13.0.88 nvidia-curand==10.4.5.25
)
loaded=(nvidia-cublas==13.0.2.14 nvidia-curand==10.4.5.25 nvidia-cuda-runtime==13.0.96 nvidia-nccl-cu13==2.28.9)

# Copies the libraries under the names that the loader asks for.
libraries() {
    local venv=$place/libraries out=$1
    if [ ! -e "$venv/complete" ]; then
        python3 -m venv "$venv" && "$venv/bin/python" -m pip install -q "${loaded[@]}" && touch "$venv/complete"
    fi
    mkdir -p "$out/licences"
    local packages=("$venv"/lib/python3*/site-packages)
    cp "${packages[0]}"/nvidia/cu13/lib/lib{cublas,cublasLt}.so.13 "${packages[0]}"/nvidia/cu13/lib/libcurand.so.10 \
        "${packages[0]}"/nvidia/cu13/lib/libcudart.so.13 \
        "${packages[0]}"/nvidia/nccl/lib/libnccl.so.2 "$out"
    # cudarc looks for NCCL under this name only.
    ln -sf libnccl.so.2 "$out/libnccl.so"
    local licence name
    for licence in "${packages[0]}"/nvidia_*.dist-info/licenses/*; do
        name=$(basename "$(dirname "$(dirname "$licence")")" .dist-info)
        cp "$licence" "$out/licences/$name-$(basename "$licence")"
    done
}

# Type-checks the CUDA code with an nvcc that writes empty files. It shares the dependencies that `cargo clippy` has checked.
check() {
    local home=$place/no-toolkit
    mkdir -p "$home"/{bin,include,lib}
    cat > "$home/bin/nvcc" <<'NVCC'
#!/usr/bin/env bash
out= folder= sources=()
while [ $# -gt 0 ]; do
    case $1 in
        --version) printf '%s\n' nvcc '' '' 'Cuda compilation tools, release 13.0, V13.0.88' ;; # the fourth line is read
        --list-gpu-code) echo sm_90 ;;
        -o | --output-file) out=$2 && shift ;;
        --output-directory) folder=$2 && shift ;;
        *.cu) sources+=("$1") ;;
    esac
    shift
done
if [ -n "$out" ]; then
    : > "$out"
elif [ -n "$folder" ]; then
    for source in "${sources[@]}"; do : > "$folder/$(basename "$source" .cu).ptx"; done
fi
NVCC
    chmod +x "$home/bin/nvcc"
    echo '#define CUDA_VERSION 13000' > "$home/include/cuda.h"
    export CUDA_HOME=$home CUDA_PATH=$home CUDA_ROOT=$home CUDA_TOOLKIT_ROOT_DIR=$home PATH=$home/bin:$PATH CUDA_COMPUTE_CAP=90
    cargo check --release --workspace --lib --bins --benches --features llink-worker/nccl,llink-coord/nccl
}

if [ "${1:-}" = check ]; then
    check
    exit
fi

if [ "${1:-}" = libraries ]; then
    libraries "${2:?a folder for the libraries}"
    exit
fi

toolkit() {
    if [ -n "${LLINK_CUDA_HOME:-}" ]; then
        echo "$LLINK_CUDA_HOME"
        return
    fi
    local venv=$place/toolkit
    if [ ! -e "$venv/complete" ]; then
        echo "installing CUDA 13.0 from PyPI into $venv" >&2
        python3 -m venv "$venv" >&2 && "$venv/bin/python" -m pip install -q "${packages[@]}" >&2 && touch "$venv/complete"
    fi
    echo "$venv"/lib/python3*/site-packages/nvidia/cu13
}

home=$(toolkit)
[ -x "$home/bin/nvcc" ] || { echo "no nvcc in $home/bin: LLINK_CUDA_HOME must name a CUDA toolkit" >&2; exit 1; }
export CUDA_HOME=$home CUDA_PATH=$home CUDA_ROOT=$home CUDA_TOOLKIT_ROOT_DIR=$home
export PATH=$home/bin:$PATH CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90}

# The libraries for the linker. candle names them although they are loaded at run time. The CUDA runtime is linked in, and the
# others are empty and leave no trace in the binary.
links=$place/link
mkdir -p "$links"
for folder in "$home/lib" "$home/lib64"; do
    [ -e "$folder/libcudart_static.a" ] && ln -sf "$folder/libcudart_static.a" "$links/libcudart.a"
done
[ -e "$links/libcudart.a" ] || { echo "no libcudart_static.a in $home/lib or $home/lib64" >&2; exit 1; }
for name in cuda nccl nvrtc curand cublas cublasLt; do
    [ -e "$links/lib$name.so" ] || echo | cc -shared -fPIC -x c - -o "$links/lib$name.so"
done

# candle builds cudarc for linking, and the cfg makes it load the libraries instead. Flags reach only the target's crates.
export CARGO_TARGET_DIR=$place
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="--cfg feature=\"dynamic-loading\" -L native=$links -C link-arg=-Wl,--as-needed ${RUSTFLAGS:-}"
# Cargo would use it in place of the target's own flags.
unset RUSTFLAGS
# The line tables of a hundred crates would make the binary too large to copy.
export CARGO_PROFILE_RELEASE_DEBUG=${CARGO_PROFILE_RELEASE_DEBUG:-false} CARGO_PROFILE_RELEASE_STRIP=${CARGO_PROFILE_RELEASE_STRIP:-symbols}

features=()
for feature in $(echo "${LLINK_CUDA_FEATURES:-nccl}" | tr , ' '); do features+=("llink-worker/$feature" "llink-coord/$feature"); done
both=(--release --target "$target" -p llink-worker -p llink-coord --features "$(IFS=,; echo "${features[*]}")")

case "${*:-build}" in
    build) cargo build "${both[@]}" ;;
    *) exec cargo "$@" ;;
esac
