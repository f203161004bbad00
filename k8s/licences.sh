#!/bin/sh
# Gathers the licenses of all crates that are linked into the programs: licences.sh FOLDER. It reads the crates that
# cargo has fetched. It fails if a crate names no license or has not been fetched.
set -eu
out=$1
mkdir -p "$out/crates"
cargo tree --locked --prefix none --edges normal,build --format '{p}|{l}' -p llink-coord -p llink-worker |
    sed 's/ (\*)$//; s/ (proc-macro)//; s/ (\/.*)|/|/' | sort -u > "$out/list"
sed 's/|/  /' "$out/list" > "$out/THIRD-PARTY.txt"
registry=${CARGO_HOME:-$HOME/.cargo}/registry/src
missing=0
while IFS='|' read -r crate licence; do
    name=$(echo "$crate" | cut -d' ' -f1)
    version=$(echo "$crate" | cut -d' ' -f2 | sed 's/^v//')
    case $name in '' | llink-*) continue ;; esac
    if [ -z "$licence" ]; then
        echo "$name $version names no license" >&2
        missing=1
    fi
    for folder in "$registry"/*/"$name-$version"; do
        [ -d "$folder" ] || { echo "$name $version is not in the registry's folder" >&2; missing=1; continue; }
        for text in "$folder"/LICEN[SC]E* "$folder"/COPYING* "$folder"/NOTICE* "$folder"/license*; do
            [ -f "$text" ] && cp "$text" "$out/crates/$name-$version-$(basename "$text")"
        done
    done
done < "$out/list"
rm "$out/list"
# The chart library of the page is no crate.
echo "uPlot v1.6.32  MIT" >> "$out/THIRD-PARTY.txt"
cp coordinator/assets/uPlot.LICENSE "$out/crates/uPlot-1.6.32-LICENSE"
# Debian has the text of Apache-2.0, which is llink's own license.
if [ -f /usr/share/common-licenses/Apache-2.0 ]; then
    cp /usr/share/common-licenses/Apache-2.0 "$out/LICENSE"
fi
exit $missing
