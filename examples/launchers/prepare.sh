#!/usr/bin/env bash
# Makes a folder with what the nodes of one run need: prepare.sh FOLDER WORKERS
# It holds the coordinator's certificate, a token for `submit`, and a join token for each worker, which admits one process.
# Keep the folder secret, and make a new one for each run.
set -euo pipefail
join=$1 workers=$2
umask 077
mkdir "$join"
llink-coord certs "$join/made" --name llink >/dev/null
mv "$join"/made/{ca.crt,coordinator.crt,coordinator.key} "$join"
# The authority's key and the other certificates would admit anyone who reads them.
rm -r "$join/made"
llink-coord token "$join/tokens.toml" --name person --role submit --days 30 >"$join/submit.token"
for ((worker = 0; worker < workers; worker++)); do
    llink-coord token "$join/tokens.toml" --name "worker-$worker" --role worker --once --days 30 >"$join/worker-$worker.token"
done
