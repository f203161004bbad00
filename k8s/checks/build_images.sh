#!/usr/bin/env bash
# Builds the image's targets with buildah and runs their programs as pods would, without a registry. Clean Debian roots
# take the place of a registry's images. This machine's Rust is mounted into the one that builds.
#
#     build_images.sh FOLDER [cpu] [cuda]       keeps roots in FOLDER and images in buildah's store
set -euo pipefail
shopt -s inherit_errexit
container=
trap '[ -z "$container" ] || buildah rm "$container" > /dev/null; buildah rmi --prune > /dev/null 2>&1 || true' EXIT
cd "$(dirname "$0")/../.."
out=$(mkdir -p "$1" && cd "$1" && pwd)
targets=("${@:2}")
[ ${#targets[@]} -gt 0 ] || targets=(cpu)
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=${STORAGE_DRIVER:-overlay}

# Makes an image of a clean Debian 12: base NAME [PACKAGES]
base() {
    local name=llink-check/$1 root=$out/root-$1
    local container
    if [ ! -e "$root/complete" ]; then
        rm -rf "$root"
        debootstrap --variant=minbase ${2:+--include="$2"} bookworm "$root" > "$out/debootstrap-$1.log" && touch "$root/complete"
    fi
    container=$(buildah from scratch)
    buildah copy -q "$container" "$root" / > /dev/null
    buildah config --env PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        --env CARGO_HOME=/usr/local/cargo "$container"
    buildah commit -q --rm "$container" "localhost/$name:12" > /dev/null
    echo "localhost/$name:12"
}

# Runs a program of the image with its environment and its user, as the manifests do: nothing writable, no capabilities,
# no network.
inside() {
    unshare --mount --net --pid --fork --kill-child sh -ec '
        root=$1 user=${2%%:*} group=${2##*:}
        shift 2
        mount --bind "$root" "$root"
        mount -o remount,ro,bind "$root"
        mount -t proc proc "$root/proc"
        exec chroot "$root" /usr/bin/setpriv --reuid "$user" --regid "$group" --clear-groups --bounding-set=-all --inh-caps=-all \
            --no-new-privs /usr/bin/env -i "$@"' sh "$root" "$user" "${env[@]}" "$@"
}

# The build uses this machine's compiler, the crates that cargo has fetched, and the trusted certificates.
toolchain=$(rustc --print sysroot)
registry=${CARGO_HOME:-$HOME/.cargo}/registry
mkdir -p "$registry"
volumes=(--volume "$toolchain:/usr/local/rust:ro" --volume "$registry:/usr/local/cargo/registry"
    --volume /etc/ssl/certs:/etc/ssl/certs:ro)

rust=$(base rust gcc,libc6-dev,ca-certificates)
runtime=$(base runtime libstdc++6)
for target in "${targets[@]}"; do
    image=localhost/llink-check/$target:built
    python3 k8s/checks/image.py --needed "$target" > "$out/Dockerfile-$target"
    nice -n "${LLINK_NICE:-0}" buildah bud -q --layers=false --ignorefile k8s/Dockerfile.dockerignore --network host "${volumes[@]}" \
        --build-arg "RUST=$rust" --build-arg "RUNTIME=$runtime" --env "PIP_CERT=/etc/ssl/certs/ca-certificates.crt" \
        --target "$target" -t "$image" -f "$out/Dockerfile-$target" .
    echo "built $target: $(buildah images --format '{{.Size}}' "$image"), the root it stands on is $(buildah images --format '{{.Size}}' "$runtime")"
    container=$(buildah from "$image")
    root=$(buildah mount "$container")
    user=$(buildah inspect --type image --format '{{.OCIv1.Config.User}}' "$image")
    mapfile -t env < <(buildah inspect --type image --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' "$image" | grep .)
    inside sh -c 'test "$(id -u)" = 65532 && ! touch /usr/local/bin/x 2> /dev/null && test -s /usr/share/doc/llink/THIRD-PARTY.txt'
    inside llink-worker --version
    if [ "$target" = cpu ]; then
        inside llink-coord --version
    else
        # Every library finds its dependencies, except the driver, which the node provides.
        listed=$(inside sh -c 'ldd /usr/local/lib/llink-cuda/*.so*')
        [[ $listed == *libcublasLt* ]] || { echo "no libraries of CUDA in the image" >&2; exit 1; }
        if echo "$listed" | grep 'not found'; then echo "the image lacks these libraries" >&2; exit 1; fi
        said=$(inside llink-worker --coordinator http://127.0.0.1:1 --device cuda 2>&1) && { echo "a GPU was found?" >&2; exit 1; }
        echo "$said" | grep 'there is no NVIDIA driver' || { echo "$said" >&2; exit 1; }
    fi
    buildah rm "$container" > /dev/null
    container=
done
