#!/usr/bin/env bash
# Checks that the chart renders the same objects as the kustomizations that `run` has rendered into the folder: chart.sh
# HELM CHECKS FOLDER VALIDATE
set -euo pipefail
helm=$1 checks=$2 out=$3 validate=$4
fail() { echo "k8s checks: $*" >&2; exit 1; }
render() { "$helm" template llink k8s/chart --namespace llink "${@:2}" 2>"$out/helm.log" > "$out/chart-$1.yaml" || { cat "$out/helm.log"; return 1; }; }
profile() { render "$1" --values "k8s/chart/profiles/$2.yaml" "${@:3}"; }

"$helm" lint --strict k8s/chart >"$out/helm.log" 2>&1 || fail "helm lint"
render all
for name in cpu gpu kueue; do profile "$name" "$name"; done
profile with-monitoring gpu --set monitoring.enabled=true
profile with-tracing gpu --set tracing.enabled=true
profile with-autoscale gpu --set autoscale.enabled=true
profile with-rdma gpu --set workers.rdma.enabled=true
profile with-kueue-topology kueue --set workers.topology.podset-preferred-topology=cloud.provider.com/topology-rack
for name in all cpu gpu kueue with-monitoring with-tracing with-autoscale with-rdma with-kueue-topology; do
    except=()
    # Helm deletes the Deployment of an earlier release, while the overlay scales it to 0.
    case $name in *kueue*) except=(Deployment/llink-worker PodDisruptionBudget/llink-worker) ;; esac
    "$checks" same "$out/$name.yaml" "$out/chart-$name.yaml" "${except[@]}" || fail "the chart differs from $name"
    "$checks" "$out/chart-$name.yaml"
done
"$validate" --strict "$out"/chart-{all,cpu,gpu,kueue,with-tracing,with-rdma,with-kueue-topology}.yaml 2>&1 | grep -v '^INFO' && fail "a schema is not met"

# The chart must render with every option, and planted faults must be found.
render options --set ingress.enabled=true,coordinator.runtimeClassName=gvisor,workers.runtimeClassName=nvidia,workers.priorityClassName=low \
    --set 'image.pullSecrets[0].name=registry,workers.volumes.cacheClaim=models,coordinator.storage.className=fast' \
    --set 'workers.tolerations[0].key=spot,workers.tolerations[0].operator=Exists,coordinator.nodeSelector.pool=system'
for word in 'kind: Ingress' 'runtimeClassName: gvisor' 'runtimeClassName: nvidia' 'name: registry' 'claimName: models' 'storageClassName: fast' 'key: spot' \
    'pool: system' 'priorityClassName: low'; do
    grep -q "$word" "$out/chart-options.yaml" || fail "the chart has no $word where a value asks for it"
done
"$validate" --strict "$out/chart-options.yaml" 2>&1 | grep -v '^INFO' && fail "a schema is not met"
profile planted gpu --set workers.replicas=3
if "$checks" same "$out/gpu.yaml" "$out/chart-planted.yaml" >/dev/null; then fail "a planted difference was not found"; fi
if render planted --set worker.replicas=3 >/dev/null; then fail "a value that is none was not refused"; fi
first=$(sed -n 's/^  name: \(llink-worker-.*\)/\1/p' "$out/chart-kueue.yaml")
profile planted kueue --set workers.image=llink-cuda:0.2.0
second=$(sed -n 's/^  name: \(llink-worker-.*\)/\1/p' "$out/chart-planted.yaml")
if [ -z "$first" ] || [ "$first" = "$second" ]; then fail "a Job of another image has the same name: ${first:-none}"; fi
echo "the chart renders what nine kustomizations render; what was planted was found"
