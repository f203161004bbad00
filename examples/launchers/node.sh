#!/usr/bin/env bash
# Runs one node's part of a job: node.sh JOB RANK HEAD GPUS
# Node 0 runs the coordinator and `submit`. Every node runs a worker for each GPU, or one on the CPU for GPUS=0.
# LLINK_JOIN is the folder of prepare.sh. LLINK_ALLOW_ROOT is the URL or absolute path below which the job reads and writes.
# LLINK_STATE is the coordinator's folder, on a disk of node 0.
set -euo pipefail
job=$1 rank=$2 head=$3 gpus=$4
: "${LLINK_ALLOW_ROOT:?names no place that the job may use}"
join=${LLINK_JOIN:-join} port=${LLINK_PORT:-7070} count=$((gpus > 0 ? gpus : 1))
export LLINK_COORDINATOR=https://$head:$port LLINK_TLS_CA=$join/ca.crt LLINK_TLS_SERVER_NAME=llink
workers=() coordinator=
stop() { kill "${workers[@]}" $coordinator 2>/dev/null || true; }
trap stop EXIT
if [ "$rank" = 0 ]; then
    llink-coord serve --listen "0.0.0.0:$port" --state "${LLINK_STATE:-.llink}" --tokens "$join/tokens.toml" \
        --tls-cert "$join/coordinator.crt" --tls-key "$join/coordinator.key" &
    coordinator=$!
fi
for ((gpu = 0; gpu < count; gpu++)); do
    device=cpu
    [ "$gpus" = 0 ] || device=cuda:$gpu
    llink-worker --name "node-$rank-$gpu" --device "$device" --token-file "$join/worker-$((rank * count + gpu)).token" \
        --connect-timeout 600 --idle-exit "${LLINK_IDLE_EXIT_S:-120}" &
    workers+=($!)
done
code=0
if [ "$rank" = 0 ]; then
    until llink-coord list --token-file "$join/submit.token" >/dev/null 2>&1; do
        kill -0 "$coordinator" || exit 1
        sleep 1
    done
    llink-coord submit "$job" --token-file "$join/submit.token" || code=$?
fi
# Workers end by themselves once no job runs, on node 0 before the coordinator does.
for worker in "${workers[@]}"; do wait "$worker" || code=$?; done
[ "$rank" != 0 ] || sleep "${LLINK_LAST_S:-15}"
exit "$code"
