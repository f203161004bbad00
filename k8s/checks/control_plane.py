#!/usr/bin/env python3
"""Applies the manifests and the chart to a real control plane, and checks the behavior of its controllers.

It starts etcd, kube-apiserver, kube-controller-manager and kube-scheduler on loopback. There is no kubelet. The script
reports the status of nodes and pods in its place. So nothing is computed, and network policies, probes, `exec`,
`attach` and `port-forward` are not tested. Commands that need them are listed as left out.

    control_plane.py ASSETS BINARIES [--helm HELM]

ASSETS has kube-apiserver, etcd and kubectl, as KUBEBUILDER_ASSETS does for envtest. Without kube-controller-manager and
kube-scheduler in it, the sets are applied, and the rest is listed as left out. BINARIES has llink-coord.
"""

import argparse
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NODES = ["node-a", "node-b", "node-c", "node-d"]
TOKEN = "loopback-only"
# The exit code of `llink-worker` that was told to stop while a job runs.
WORK_LEFT = 75


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(what, true, limit=60):
    began = time.monotonic()
    while True:
        found = true()
        if found:
            return found
        if time.monotonic() - began > limit:
            raise SystemExit(f"not reached within {limit} s: {what}")
        time.sleep(0.2)


class Api:
    def __init__(self, port):
        self.url = f"https://127.0.0.1:{port}"
        # The server's certificate was made a moment ago, on loopback.
        self.context = ssl._create_unverified_context()

    def call(self, method, path, body=None, kind="application/json"):
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.url + path, data, method=method)
        request.add_header("Authorization", f"Bearer {TOKEN}")
        request.add_header("Content-Type", kind)
        with urllib.request.urlopen(request, context=self.context, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def patch(self, path, body):
        return self.call("PATCH", path, body, "application/merge-patch+json")

    def ready(self):
        try:
            self.call("GET", "/api/v1/namespaces/default")
            return True
        except (OSError, ValueError):
            return False

    def list(self, path):
        return self.call("GET", path)["items"]


class Kubelet(threading.Thread):
    """Plays the kubelets: bound pods run, and deleted ones end."""

    def __init__(self, api):
        super().__init__(daemon=True)
        self.api, self.stopped = api, threading.Event()
        self.exit_code = WORK_LEFT
        self.error = None

    def run(self):
        while not self.stopped.wait(0.2):
            try:
                for pod in self.api.list("/api/v1/pods"):
                    if pod["spec"].get("nodeName"):
                        self.look(pod)
            except urllib.error.HTTPError as e:
                # The pod changed or was deleted between the two calls.
                if e.code not in (404, 409, 422):
                    self.error = e
            except OSError as e:
                self.error = e

    def look(self, pod):
        meta, phase = pod["metadata"], pod["status"].get("phase")
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        if meta.get("deletionTimestamp"):
            if phase not in ("Failed", "Succeeded"):
                self.end(path, pod, self.exit_code if "llink-worker" in meta["name"] else 0)
            if self.api.call("GET", path)["status"]["phase"] in ("Failed", "Succeeded"):
                self.api.call("DELETE", path, {"gracePeriodSeconds": 0, "preconditions": {"uid": meta["uid"]}})
        elif phase == "Pending":
            self.api.patch(f"{path}/status", {"status": self.status(pod, "Running", {"running": {"startedAt": now()}})})

    def end(self, path, pod, code):
        phase = "Failed" if code else "Succeeded"
        ended = {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed", "startedAt": now(), "finishedAt": now()}}
        self.api.patch(f"{path}/status", {"status": self.status(pod, phase, ended)})

    def status(self, pod, phase, state):
        running = phase == "Running"
        conditions = [c for c in pod["status"].get("conditions", []) if c["type"] not in ("Ready", "ContainersReady", "Initialized")]
        for kind in ("Initialized", "ContainersReady", "Ready"):
            met = running or kind == "Initialized"
            conditions.append({"type": kind, "status": "True" if met else "False", "lastTransitionTime": now()})
        container = pod["spec"]["containers"][0]
        return {
            "phase": phase, "conditions": conditions, "startTime": pod["status"].get("startTime", now()), "hostIP": "10.1.0.1",
            "podIP": "10.2.0.1", "podIPs": [{"ip": "10.2.0.1"}],
            "containerStatuses": [{"name": container["name"], "image": container["image"], "imageID": container["image"], "ready": running,
                                   "started": running, "restartCount": 0, "state": state}],
        }


def now():
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class ControlPlane:
    def __init__(self, assets, place):
        self.assets, self.place, self.running = assets, place, []
        self.port, self.whole = free_port(), all((assets / p).exists() for p in ("kube-controller-manager", "kube-scheduler"))
        self.api, self.kubelet = Api(self.port), None

    def start(self, name, *options):
        log = open(self.place / f"{name}.log", "wb")
        process = subprocess.Popen([self.assets / name, *map(str, options)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.place)
        self.running.append((name, process))

    def __enter__(self):
        try:
            self.begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def begin(self):
        client, peer = free_port(), free_port()
        self.start("etcd", "--data-dir", self.place / "etcd", "--listen-client-urls", f"http://127.0.0.1:{client}",
                   "--advertise-client-urls", f"http://127.0.0.1:{client}", "--listen-peer-urls", f"http://127.0.0.1:{peer}",
                   "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}", "--initial-cluster", f"default=http://127.0.0.1:{peer}",
                   "--unsafe-no-fsync")
        key = self.place / "accounts.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        (self.place / "tokens.csv").write_text(f'{TOKEN},admin,admin,"system:masters"\n')
        config = {"apiVersion": "v1", "kind": "Config", "current-context": "here",
                  "clusters": [{"name": "here", "cluster": {"server": self.api.url, "insecure-skip-tls-verify": True}}],
                  "users": [{"name": "admin", "user": {"token": TOKEN}}],
                  "contexts": [{"name": "here", "context": {"cluster": "here", "user": "admin"}}]}
        (self.place / "kubeconfig").write_text(json.dumps(config))
        self.start("kube-apiserver", "--etcd-servers", f"http://127.0.0.1:{client}", "--bind-address", "127.0.0.1", "--secure-port", self.port,
                   "--cert-dir", self.place / "certs-apiserver", "--token-auth-file", self.place / "tokens.csv",
                   "--service-cluster-ip-range", "10.96.0.0/16", "--service-account-issuer", "https://127.0.0.1",
                   "--service-account-key-file", key, "--service-account-signing-key-file", key, "--advertise-address", "127.0.0.1",
                   "--endpoint-reconciler-type", "none", "--authorization-mode", "AlwaysAllow")
        self.wait("the API server answers", self.api.ready, 120)
        if not self.whole:
            return
        kubeconfig = self.place / "kubeconfig"
        self.start("kube-controller-manager", "--kubeconfig", kubeconfig, "--service-account-private-key-file", key, "--leader-elect=false",
                   "--bind-address", "127.0.0.1", "--secure-port", free_port(), "--node-monitor-grace-period", "1h")
        self.start("kube-scheduler", "--kubeconfig", kubeconfig, "--leader-elect=false", "--bind-address", "127.0.0.1",
                   "--secure-port", free_port())
        for i, node in enumerate(NODES):
            self.add_node(node, i)
        for i in range(4):
            self.api.call("POST", "/api/v1/persistentvolumes", {
                "metadata": {"name": f"disk-{i}"},
                "spec": {"capacity": {"storage": "20Gi"}, "accessModes": ["ReadWriteOncePod" if i < 2 else "ReadWriteOnce"],
                         "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": f"/disks/{i}"}}})
        self.kubelet = Kubelet(self.api)
        self.kubelet.start()
        free = lambda: all(not n["spec"].get("taints") for n in self.api.list("/api/v1/nodes"))
        self.wait("nodes without taints", free)
        self.wait("the default account", lambda: self.api.list("/api/v1/namespaces/default/serviceaccounts"))

    def add_node(self, name, i):
        labels = {"kubernetes.io/hostname": name, "nvidia.com/gpu.present": "true", "topology.kubernetes.io/zone": "one"}
        self.api.call("POST", "/api/v1/nodes", {"metadata": {"name": name, "labels": labels}})
        size = {"cpu": "64", "memory": "512Gi", "pods": "50", "ephemeral-storage": "1Ti", "nvidia.com/gpu": "2", "rdma/hca_shared_devices_a": "8"}
        self.api.patch(f"/api/v1/nodes/{name}/status", {"status": {
            "capacity": size, "allocatable": size, "addresses": [{"type": "InternalIP", "address": f"10.1.0.{i + 1}"}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "Played", "message": "", "lastHeartbeatTime": now(),
                            "lastTransitionTime": now()}]}})

    def wait(self, what, true, limit=60):
        for name, process in self.running:
            if process.poll() is not None:
                raise SystemExit(f"{name} ended: {self.tail(name)}")
        try:
            return wait_for(what, true, limit)
        except SystemExit as e:
            ended = [n for n, p in self.running if p.poll() is not None]
            raise SystemExit(f"{e}\n" + "\n".join(f"{n} ended: {self.tail(n)}" for n in ended)) from None

    def tail(self, name):
        return (self.place / f"{name}.log").read_text(errors="replace")[-3000:]

    def __exit__(self, *_):
        if self.kubelet:
            self.kubelet.stopped.set()
            self.kubelet.join()
        for _, process in reversed(self.running):
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()


class Cluster:
    """Runs commands as a person does, from the root of the project."""

    def __init__(self, plane, binaries, helm, place):
        self.plane, self.api, self.place = plane, plane.api, place
        tools = place / "tools"
        tools.mkdir()
        for name, target in {"kubectl": plane.assets / "kubectl", "llink-coord": binaries / "llink-coord", "helm": helm}.items():
            if target:
                (tools / name).symlink_to(target)
        self.home = place / "project"
        self.home.mkdir()
        for name in ("k8s", "job.toml", "examples"):
            (self.home / name).symlink_to(ROOT / name)
        self.env = {"PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(place), "KUBECONFIG": str(place / "kubeconfig")}
        self.helm = helm

    def say(self, command, fails=False, limit=120):
        try:
            done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], cwd=self.home, env=self.env, capture_output=True, text=True,
                                  timeout=limit, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            raise SystemExit(f"{command}: no end after {limit} s") from None
        said = done.stdout + done.stderr
        if (done.returncode != 0) != fails:
            raise SystemExit(f"{command}: exit {done.returncode}\n{said}{self.state()}")
        if "Warning:" in said and "Warning: deleting" not in said:
            raise SystemExit(f"{command}: the API server warns\n{said}")
        return said

    def state(self):
        shown = subprocess.run(["bash", "-c", "kubectl -n llink get all,pvc -o wide; kubectl -n llink get events | tail -n 15"], cwd=self.home,
                               env=self.env, capture_output=True, text=True, timeout=60)
        return shown.stdout + shown.stderr

    def get(self, kind, name, group="/api/v1"):
        try:
            return self.api.call("GET", f"{group}/namespaces/llink/{kind}/{name}")
        except urllib.error.HTTPError as e:
            if e.code == 404:
                return None
            raise

    def pods(self, label):
        return [p for p in self.api.list("/api/v1/namespaces/llink/pods") if p["metadata"]["labels"].get("app.kubernetes.io/name") == label]

    def running(self, label, count):
        """Returns the pods of a label, once this number runs and none of them ends."""
        def settled():
            pods = self.pods(label)
            fit = [p for p in pods if p["status"]["phase"] == "Running" and not p["metadata"].get("deletionTimestamp")]
            return len(fit) == len(pods) == count and (fit or True)
        try:
            found = self.plane.wait(f"{count} running pods of {label}", settled)
        except SystemExit as e:
            raise SystemExit(f"{e}\n{self.state()}") from None
        return found if count else []

    def rolled_out(self):
        """Returns whether controllers have processed what was applied."""
        for kind in ("deployments", "statefulsets"):
            for owner in self.api.list(f"/apis/apps/v1/namespaces/llink/{kind}"):
                wanted, status = owner["spec"]["replicas"], owner["status"]
                counts = [status.get(k, 0) for k in ("replicas", "updatedReplicas", "availableReplicas")]
                if status.get("observedGeneration", 0) < owner["metadata"]["generation"] or counts != [wanted] * 3:
                    return False
        return True

    def settled(self, workers):
        try:
            self.plane.wait("rollouts to end", self.rolled_out)
        except SystemExit as e:
            raise SystemExit(f"{e}\n{self.state()}") from None
        coordinator = self.running("llink-coordinator", 1)
        return {p["metadata"]["uid"] for p in coordinator + self.running("llink-worker", workers)}

    def applied_twice(self, command, workers):
        self.say(command)
        first = self.settled(workers)
        self.say(command)
        # A second is long enough for the controllers to react.
        time.sleep(1)
        if self.settled(workers) != first:
            raise SystemExit(f"{command}: applied again, it replaces pods")

    def overlay(self, name, text):
        folder = self.home / name
        folder.mkdir(exist_ok=True)
        (folder / "kustomization.yaml").write_text("apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: llink\n" + text)
        return folder.name

    def drain(self, node, limit=60):
        self.say(f"kubectl drain {node} --ignore-daemonsets --delete-emptydir-data --timeout={limit}s", limit=limit + 30)
        self.say(f"kubectl uncordon {node}")


def blocks(document):
    """Returns the code blocks of a document that call programs, as lists of commands."""
    found, block, fenced, shell = [], [], False, False
    for line in (ROOT / document).read_text().splitlines() + [""]:
        if line.lstrip().startswith("```"):
            fenced = not fenced
            shell = fenced and line.strip() in ("```", "```sh", "```bash")
            continue
        if (fenced and shell) or (not fenced and re.match(r" {4,}\S", line)):
            block.append(re.split(r"\s+# ", line)[0].strip())
        elif block:
            found.append(block)
            block = []
    tools = ("kubectl", "helm", "llink-coord", "docker", "kind")
    return [b for b in found if any(t in line for t in tools for line in b)]


# The commands that need a real kubelet or an image.
LEFT_OUT = re.compile(r"\b(port-forward|exec|attach|docker|kind load|llink-coord (submit|backup|restore|health|logs)|export)\b")


class Documents:
    def __init__(self, cluster):
        self.cluster, self.left_out, self.ran = cluster, [], 0

    def run(self, commands, **values):
        for command in commands:
            for name, value in values.items():
                command = command.replace(name, value)
            if LEFT_OUT.search(command):
                self.left_out.append(command)
                if " attach " in command:
                    self.cluster.plane.kubelet.end("/api/v1/namespaces/llink/pods/llink-restore", self.cluster.get("pods", "llink-restore"), 0)
                continue
            self.cluster.say(command)
            self.ran += 1


def only(blocks, word):
    found = [b for b in blocks if any(word in line for line in b)]
    if len(found) != 1:
        raise SystemExit(f"{len(found)} blocks of commands have {word!r}, expected one")
    return found[0]


def sets_alone(cluster):
    """Checks with only the API server that everything is accepted twice without a warning."""
    for command in blocks("k8s/README.md")[0]:
        cluster.say(command)
    for _ in range(2):
        for overlay in ("", "overlays/cpu", "overlays/gpu", "overlays/kueue"):
            if overlay == "overlays/kueue":
                cluster.say("kubectl -n llink delete job llink-worker --ignore-not-found")
            cluster.say(f"kubectl apply -k k8s/{overlay}")
    print("API server: base and overlays are accepted twice without a warning")


def play(cluster):
    readme, book = blocks("k8s/README.md"), blocks("k8s/RUNBOOK.md")
    documents = Documents(cluster)

    documents.run(readme[0])
    cluster.settled(2)
    cluster.applied_twice("kubectl apply -k k8s/", 2)
    print("base: README's commands bring it up, without a warning; applied again, it replaces no pod")

    changed = cluster.overlay("changed", "resources: [../k8s]\nconfigMapGenerator:\n  - name: llink-settings\n    behavior: merge\n"
                              "    literals: [allow-root=s3://other]\n")
    before = cluster.settled(2)
    cluster.say(f"kubectl apply -k {changed}")
    cluster.plane.wait("pods with the changed setting", lambda: not before & {p["metadata"]["uid"] for p in
                       cluster.pods("llink-worker") + cluster.pods("llink-coordinator")})
    cluster.settled(2)
    print("settings: a changed one replaces every pod")

    cluster.applied_twice("kubectl apply -k k8s/overlays/gpu", 4)
    for _ in range(4):
        before = cluster.settled(4)
        cluster.say("kubectl -n llink rollout restart deployment/llink-worker")
        cluster.say("kubectl -n llink rollout status deployment/llink-worker --timeout=90s", limit=100)
        nodes = [p["spec"]["nodeName"] for p in cluster.running("llink-worker", 4)]
        if before & cluster.settled(4) - {p["metadata"]["uid"] for p in cluster.pods("llink-coordinator")}:
            raise SystemExit("a rollout left a worker")
        if len(set(nodes)) != 4:
            raise SystemExit(f"after a rollout four workers are on {sorted(nodes)}")
    print("rollouts: four workers are on four nodes after each of four")

    documents.run(only(book, "kubectl drain"), NODE="node-a")
    cluster.say("kubectl uncordon node-a")
    cluster.settled(4)
    print("drain: the run book's command ends, and the workers run elsewhere")

    queue(cluster, documents, readme)
    restore(cluster, documents, book)

    cluster.say("kubectl apply -k k8s/")
    claim = cluster.get("persistentvolumeclaims", "state-llink-coordinator-0")["metadata"]["uid"]
    cluster.say("kubectl delete -k k8s/")
    cluster.running("llink-coordinator", 0)
    if not cluster.get("secrets", "llink-coordinator-tls"):
        raise SystemExit("kubectl delete -k deletes the certificates")
    cluster.say("kubectl apply -k k8s/")
    cluster.settled(2)
    if cluster.get("persistentvolumeclaims", "state-llink-coordinator-0")["metadata"]["uid"] != claim:
        raise SystemExit("kubectl delete -k deletes the state")
    print("delete: the namespace, the Secrets and the state stay; applied again, it goes on with them")

    documents.run(only(readme, "port-forward"))
    if '\noutput = "s3://llink/first"\n' not in (cluster.home / "first.toml").read_text():
        raise SystemExit("README's sed leaves the job's output as it was")
    documents.run(only(readme, "llink-authority"))
    cluster.say("kubectl delete -k k8s/")
    cluster.running("llink-coordinator", 0)
    documents.run(only(readme, "kind load"))
    cluster.applied_twice("kubectl apply -k k8s/overlays/cpu", 2)
    cluster.say("kubectl delete -k k8s/overlays/cpu")
    cluster.running("llink-coordinator", 0)
    print("overlays/cpu: up, applied again, and gone")

    documents.run(only(blocks("k8s/SECURITY.md"), "privileged"))
    rdma = cluster.overlay("rdma", "resources: [../k8s]\ncomponents: [../k8s/components/rdma]\n")
    cluster.applied_twice(f"kubectl apply -k {rdma}", 2)
    cluster.say(f"kubectl delete -k {rdma}")
    cluster.running("llink-coordinator", 0)
    cluster.say("kubectl apply -f k8s/namespace.yaml")
    print("components/rdma: workers run on the nodes' network, once the namespace admits them")

    if cluster.helm:
        chart(cluster, documents, readme)
    else:
        print("LEFT OUT: the chart, as there is no helm")
    cluster.say("kubectl delete namespace llink --timeout=60s")
    print(f"documents: {documents.ran} of their commands ran, in their order. Left out, as they need a kubelet, an image or a coordinator at work:")
    for command in documents.left_out:
        print(f"    {command}")


def queue(cluster, documents, readme):
    """Checks overlays/kueue over the base. The test sets `suspend` in place of Kueue."""
    api = "/apis/batch/v1"
    job = lambda: cluster.get("jobs", "llink-worker", api)
    command = "kubectl apply -k k8s/overlays/kueue"
    cluster.say(command)
    cluster.settled(4)
    if cluster.get("deployments", "llink-worker", "/apis/apps/v1")["status"].get("replicas"):
        raise SystemExit("the old Deployment keeps its GPUs")
    # Kueue takes the Job out of the queue and puts it back.
    for suspended, count in ((True, 0), (False, 4)):
        cluster.api.patch(f"{api}/namespaces/llink/jobs/llink-worker", {"spec": {"suspend": suspended}})
        cluster.running("llink-worker", count)
    cluster.applied_twice(command, 4)
    print("overlays/kueue: the Deployment gives its GPUs back; suspended and resumed; applied again, no worker is stopped")

    def evicted():
        before = {p["metadata"]["uid"]: p["spec"]["nodeName"] for p in cluster.running("llink-worker", 4)}
        cluster.drain(next(iter(before.values())))
        return before

    before = evicted()
    after = {p["metadata"]["uid"] for p in cluster.running("llink-worker", 4)}
    status = job()["status"]
    if after == set(before) or status.get("succeeded") or status.get("failedIndexes"):
        raise SystemExit(f"an evicted worker is not replaced, or counts: {status}")
    print("overlays/kueue: a drain ends; an evicted worker is replaced, and neither counts as completed nor as failed")

    for uid in after:
        pod = next((p for p in cluster.pods("llink-worker") if p["metadata"]["uid"] == uid), None)
        if pod:
            cluster.say(f"kubectl -n llink delete pod {pod['metadata']['name']} --wait=false")
    cluster.plane.wait("pods in the place of those that were deleted",
                       lambda: not after & {p["metadata"]["uid"] for p in cluster.pods("llink-worker")})
    cluster.running("llink-worker", 4)
    if job()["status"].get("failedIndexes") or job()["status"].get("succeeded"):
        raise SystemExit(f"a deleted worker counts: {job()['status']}")
    print("overlays/kueue: workers that were deleted with work left are replaced, and count as no failure")

    newer = cluster.overlay("newer", "resources: [../k8s/overlays/kueue]\nimages:\n  - { name: llink-cuda, newTag: 0.2.0 }\n")
    said = cluster.say(f"kubectl apply -k {newer}", fails=True)
    if "immutable" not in said:
        raise SystemExit(f"a new version over the Job: {said}")
    again = [c.replace("k8s/overlays/kueue", newer) for c in only(readme, "delete job llink-worker")]
    documents.run(again)
    images = {p["spec"]["containers"][0]["image"] for p in cluster.running("llink-worker", 4)}
    if images != {"llink-cuda:0.2.0"}:
        raise SystemExit(f"after the upgrade the workers are {images}")
    print("overlays/kueue: README's commands upgrade it")

    # The faults that were found before must be found again when they are planted.
    cluster.say("kubectl -n llink patch pdb llink-worker --type=json "
                "-p='[{\"op\":\"remove\",\"path\":\"/spec/selector/matchLabels/llink~1workload\"}]'")
    node = cluster.running("llink-worker", 4)[0]["spec"]["nodeName"]
    time.sleep(2)
    said = cluster.say(f"kubectl drain {node} --ignore-daemonsets --delete-emptydir-data --timeout=8s", fails=True)
    if "disruption budget" not in said:
        raise SystemExit(f"a planted budget over the Job's pods does not block the drain: {said}")
    cluster.say(f"kubectl uncordon {node}")
    cluster.say("kubectl -n llink delete pdb llink-worker")
    cluster.running("llink-worker", 4)
    cluster.plane.kubelet.exit_code = 0
    evicted()
    cluster.plane.wait("a planted exit code 0 to count as completed", lambda: job()["status"].get("succeeded"))
    cluster.plane.kubelet.exit_code = WORK_LEFT
    print("planted: a budget over the Job's pods blocks the drain, and a worker that is evicted with 0 is not replaced")

    cluster.say("kubectl -n llink delete job llink-worker")
    cluster.say("kubectl apply -k k8s/")
    cluster.settled(2)


def restore(cluster, documents, book):
    documents.run(only(book, "backup -"))
    documents.run(only(book, "examples/restore.yaml"))
    cluster.settled(2)
    print("restore: the run book's commands, each waits for what the next one needs")


def chart(cluster, documents, readme):
    documents.run(only(readme, "helm upgrade"))
    command = "helm upgrade --install llink k8s/chart --namespace llink"
    cluster.applied_twice(command, 2)
    before = cluster.settled(2)
    cluster.say(f"{command} --set 'roots={{s3://other}}'")
    cluster.plane.wait("pods with the changed root", lambda: not before & {p["metadata"]["uid"] for p in
                       cluster.pods("llink-worker") + cluster.pods("llink-coordinator")})
    for profile, workers in (("gpu", 4), ("kueue", 4), ("cpu", 2)):
        cluster.applied_twice(f"{command} --values k8s/chart/profiles/{profile}.yaml", workers)
    queued = f"{command} --values k8s/chart/profiles/kueue.yaml"
    cluster.say(queued)
    cluster.settled(4)
    cluster.say(f"{queued} --set workers.image=llink-cuda:0.2.0")
    cluster.plane.wait("the Job of the new image", lambda: {p["spec"]["containers"][0]["image"] for p in cluster.pods("llink-worker")}
                       == {"llink-cuda:0.2.0"})
    cluster.settled(4)
    cluster.say("helm uninstall llink --namespace llink")
    cluster.running("llink-worker", 0)
    if not cluster.get("persistentvolumeclaims", "state-llink-coordinator-0"):
        raise SystemExit("helm uninstall deletes the state")
    print("chart: installed, upgraded without a change, with another root, over each profile, to another image; the state stays")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("assets", type=Path)
    parser.add_argument("binaries", type=Path)
    parser.add_argument("--helm", type=Path)
    options = parser.parse_args()
    assets = options.assets.resolve()
    missing = [name for name in ("kube-apiserver", "etcd", "kubectl") if not (assets / name).exists()]
    if missing or not shutil.which("openssl"):
        raise SystemExit(f"{assets} lacks {', '.join(missing)}" if missing else "openssl is missing")
    place = Path(tempfile.mkdtemp(prefix="llink-control-plane-"))
    try:
        with ControlPlane(assets, place) as plane:
            version = plane.api.call("GET", "/version")["gitVersion"]
            print(f"control plane {version} on loopback, {len(NODES) if plane.whole else 'no'} played nodes")
            helm = options.helm.resolve() if options.helm else None
            cluster = Cluster(plane, options.binaries.resolve(), helm, place)
            if plane.whole:
                play(cluster)
            else:
                sets_alone(cluster)
                print("LEFT OUT: whatever controllers and the scheduler do, as the folder lacks them")
            if plane.kubelet and plane.kubelet.error:
                print(f"the played kubelet had an error: {plane.kubelet.error}", file=sys.stderr)
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    main()
