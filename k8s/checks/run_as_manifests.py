#!/usr/bin/env python3
"""Runs the coordinator and the workers as the manifests say, without a cluster, and a small job across them.

Each pod gets a network namespace with its own address, the manifest's user, environment, command and arguments, and no
capabilities. Its root file system is read-only except for its volumes. Probes come from the node's side. The script
compares the manifests' variables with those that the programs know, and the ports with those that they listen on. It
also compares the paths with those that the programs read and write.

    run_as_manifests.py RENDERED.yaml BINARIES [OTHER_RENDERED.yaml ...]

It needs root, iproute2 and util-linux. Where they are missing, it says so and exits with 0.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
GROUP = 65532
# The quickstart with a size that takes seconds, on the volume that the pods share.
SIZES = {"output": '"/data/out"', "train_pairs": 1200, "holdout_pairs": 300, "train": 150, "validation": 30, "batch": 64,
         "warmup_steps": 10, "epochs": 1, "benchmark_pairs": 200}
ALIGN = "[align]\ncheckpoint_every = 20\nqueue = 512\nhard_negatives = 32"


def job(steps):
    text = (ROOT / "examples/quickstart-long.toml").read_text()
    for key, value in {**SIZES, "steps": steps}.items():
        text, changed = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
        assert changed, f"examples/quickstart-long.toml has no {key}"
    return text.replace("[align]", ALIGN)


def run(*command, check=True, **more):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **more)
    if check and done.returncode != 0:
        raise SystemExit(f"{shlex.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def quantity(text):
    number, suffix = re.fullmatch(r"([\d.]+)([A-Za-z]*)", str(text)).groups()
    factors = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 10**3, "M": 10**6, "G": 10**9}
    return int(float(number) * factors[suffix])


def pods_of(objects):
    return [o for o in objects if "containers" in o.get("spec", {}).get("template", {}).get("spec", {})]


def known_variables(binaries, command):
    said = run(binaries / command[0], *command[1:], "--help").stdout
    return set(re.findall(r"\[env:\s+(\w+)=", said))


def check_variables(objects, binaries, what):
    """Checks that the program of each manifest reads every LLINK_ variable in it."""
    faults = []
    for owner in pods_of(objects):
        for container in owner["spec"]["template"]["spec"]["containers"]:
            command = container["command"] + container.get("args", [])
            known = known_variables(binaries, command)
            for variable in container.get("env", []):
                name = variable["name"]
                if name.startswith("LLINK_") and name not in known:
                    faults.append(f"{what}: {owner['kind']}/{owner['metadata']['name']} sets {name}, "
                                  f"which `{' '.join(command)}` does not know")
    return faults


class Cluster:
    """Network namespaces, a bridge between them, and their processes."""

    def __init__(self, objects, binaries, place):
        self.objects, self.binaries, self.place = objects, binaries, place
        self.tag = f"llk{os.getpid() % 100000}"
        self.node = f"{self.tag}-node"
        self.spaces, self.running, self.next_host = [], {}, 10
        self.secrets, self.hosts = {}, {"127.0.0.1": "localhost"}

    def __enter__(self):
        self.add_space(self.node)
        self.inside(self.node, "ip", "link", "add", "br0", "type", "bridge")
        self.inside(self.node, "ip", "addr", "add", "10.77.0.1/24", "dev", "br0")
        self.inside(self.node, "ip", "link", "set", "br0", "up")
        return self

    def __exit__(self, *_):
        for name in list(self.running):
            self.end(name, signal.SIGKILL)
        for space in self.spaces:
            run("ip", "netns", "del", space, check=False)

    def add_space(self, space):
        run("ip", "netns", "add", space)
        self.spaces.append(space)
        self.inside(space, "ip", "link", "set", "lo", "up")

    def inside(self, space, *command, **more):
        return run("ip", "netns", "exec", space, *command, **more)

    def add_pod_space(self, name):
        space, host = f"{self.tag}-{name}", self.next_host
        self.next_host += 1
        self.add_space(space)
        outer = f"v{host}"
        self.inside(self.node, "ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space)
        self.inside(self.node, "ip", "link", "set", outer, "master", "br0", "up")
        self.inside(space, "ip", "addr", "add", f"10.77.0.{host}/24", "dev", "eth0")
        self.inside(space, "ip", "link", "set", "eth0", "up")
        return space, f"10.77.0.{host}"

    def find(self, kind, name):
        found = [o for o in self.objects if o["kind"] == kind and o["metadata"]["name"] == name]
        return found[0] if found else None

    def volume(self, pod, volume, owner):
        """Returns the folder that stands for a volume, and the mount options of one in memory."""
        name = volume["name"]
        if "secret" in volume:
            content = self.secrets.get(volume["secret"]["secretName"])
            if content is None and not volume["secret"].get("optional"):
                raise SystemExit(f"{owner}: there is no Secret {volume['secret']['secretName']}")
            folder = self.place / pod / name
            folder.mkdir(parents=True, exist_ok=True)
            for file, text in (content or {}).items():
                (folder / file).write_text(text)
                os.chown(folder / file, 0, GROUP)
                (folder / file).chmod(volume["secret"].get("defaultMode", 0o644))
            return folder, None
        if "emptyDir" in volume:
            size = quantity(volume["emptyDir"]["sizeLimit"])
            return None, f"size={size},mode=1777"
        shared = "persistentVolumeClaim" in volume
        folder = self.place / "claims" / (volume["persistentVolumeClaim"]["claimName"] if shared else f"{pod}-{name}")
        folder.mkdir(parents=True, exist_ok=True)
        os.chown(folder, 0, GROUP)
        folder.chmod(0o2775)
        return folder, None

    def environment(self, container, pod_name):
        env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/"}
        for variable in container.get("env", []):
            source = variable.get("valueFrom", {})
            if "configMapKeyRef" in source:
                reference = source["configMapKeyRef"]
                env[variable["name"]] = self.find("ConfigMap", reference["name"])["data"][reference["key"]]
            elif "fieldRef" in source:
                assert source["fieldRef"]["fieldPath"] == "metadata.name", source
                env[variable["name"]] = pod_name
            else:
                env[variable["name"]] = variable["value"]
        return env

    def start(self, owner, pod_name, space):
        spec = owner["spec"]["template"]["spec"]
        container = spec["containers"][0]
        claims = [{"name": c["metadata"]["name"]} for c in owner["spec"].get("volumeClaimTemplates", [])]
        volumes = {v["name"]: v for v in spec["volumes"] + claims}
        mounts = []
        for mount in container["volumeMounts"]:
            folder, memory = self.volume(pod_name, volumes[mount["name"]], pod_name)
            mounts.append((mount["mountPath"], folder, memory, mount.get("readOnly", False)))
        security = spec["securityContext"]
        assert container["securityContext"]["readOnlyRootFilesystem"] and security["runAsNonRoot"]
        command = container["command"] + container.get("args", [])
        user = (security["runAsUser"], security["runAsGroup"], security["fsGroup"])
        self.spawn(pod_name, space, command, self.environment(container, pod_name), mounts, user)

    def spawn(self, name, space, command, env, mounts, user):
        """Starts a process in its own root, where only its volumes are writable."""
        root = f"{self.place}/root-{name}"
        Path(root).mkdir(exist_ok=True)
        hosts = "".join(f"{ip}\t{names}\n" for ip, names in self.hosts.items())
        q = shlex.quote
        lines = [
            "set -e", f"mount -t tmpfs layer {q(root)}", f"mkdir {q(root)}/up {q(root)}/work {q(root)}/all",
            f"mount -t overlay overlay -o lowerdir=/,upperdir={q(root)}/up,workdir={q(root)}/work {q(root)}/all",
            f"cd {q(root)}/all", f"printf %s {q(hosts)} > etc/hosts",
            "mkdir -p tmp usr/local/bin", "mount --bind . .", f"cd {q(root)}/all",
            # The image has none of the further software of this machine.
            "for d in *; do case $d in bin|dev|etc|lib*|proc|sbin|sys|usr|var) ;; *) "
            '[ -L "$d" ] || [ ! -d "$d" ] || mount -t tmpfs -o size=4k,mode=755 hidden "$d" ;; esac; done',
        ]
        lines += [f"mkdir -p .{q(path)}" for path, *_ in mounts]
        for binary in ("llink-coord", "llink-worker"):
            lines.append(f"touch usr/local/bin/{binary} && mount --bind {q(str(self.binaries / binary))} usr/local/bin/{binary}")
        lines += ["mount -o remount,ro,bind .", "mount -t proc proc proc",
                  "mount -t tmpfs -o size=64k,mode=755 dev dev"]
        lines += [f"touch dev/{d} && mount --bind /dev/{d} dev/{d}" for d in ("null", "zero", "random", "urandom")]
        if not any(path == "/dev/shm" for path, *_ in mounts):
            mounts = mounts + [("/dev/shm", None, f"size={64 << 20},mode=1777", False)]
        for path, folder, memory, read_only in mounts:
            if path.startswith("/dev/"):
                lines.append(f"mkdir -p .{q(path)}")
            if memory:
                lines.append(f"mount -t tmpfs -o {memory} volume .{q(path)}")
            else:
                lines.append(f"mount --bind {q(str(folder))} .{q(path)}")
                if read_only:
                    lines.append(f"mount -o remount,ro,bind .{q(path)}")
        uid, gid, group = user
        variables = " ".join(q(f"{k}={v}") for k, v in env.items())
        lines.append(
            f"exec chroot . /usr/bin/setpriv --reuid {uid} --regid {gid} --groups {group} --inh-caps=-all --bounding-set=-all "
            f"--no-new-privs /usr/bin/env -i {variables} {shlex.join(command)}"
        )
        log = open(self.place / f"{name}.log", "ab")
        process = subprocess.Popen(
            ["ip", "netns", "exec", space, "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", "\n".join(lines)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )
        self.running[name] = process
        return process

    def log(self, name):
        return (self.place / f"{name}.log").read_text(errors="replace")

    def end(self, name, how):
        """Signals the program itself, as a kubelet does, and waits for it."""
        process = self.running.pop(name)
        children = run("pgrep", "-P", str(process.pid), check=False).stdout.split()
        for child in children:
            try:
                os.kill(int(child), how)
            except ProcessLookupError:
                pass
        try:
            return process.wait(timeout=150)
        except subprocess.TimeoutExpired:
            process.kill()
            raise SystemExit(f"{name} does not end\n{self.log(name)}") from None

    def probe(self, owner, name, address, which):
        probe = owner["spec"]["template"]["spec"]["containers"][0][which]
        grpc = probe["grpc"]
        asked = [self.binaries / "llink-coord", "health", f"http://{address}:{grpc['port']}", "--service", grpc.get("service", "")]
        tries = probe.get("failureThreshold", 3)
        for _ in range(tries * 10):
            done = self.inside(self.node, *asked, check=False)
            if done.returncode == 0:
                return
            if self.running[name].poll() is not None:
                break
            time.sleep(probe.get("periodSeconds", 10) / 10)
        raise SystemExit(f"{name}: {which} fails: {done.stderr}\n{self.log(name)}")

    def families(self, name, space):
        """Checks that the health port answers over IPv4 and IPv6."""
        for host in ("127.0.0.1", "[::1]"):
            done = self.inside(space, self.binaries / "llink-coord", "health", f"http://{host}:7071", check=False)
            if done.returncode != 0:
                raise SystemExit(f"{name} does not answer on {host}: {done.stderr}")

    def ports(self, owner, name, space):
        """Checks that the pod listens on exactly the ports that its manifest names."""
        said = self.inside(space, "ss", "-ltnH").stdout
        listening = {int(line.split()[3].rsplit(":", 1)[1]) for line in said.splitlines()}
        ports = owner["spec"]["template"]["spec"]["containers"][0].get("ports", [])
        named = {p["containerPort"] for p in ports}
        if listening != named:
            raise SystemExit(f"{name} listens on {sorted(listening)}, and its manifest names {sorted(named)}")


def missing():
    if os.geteuid() != 0:
        return "not root"
    for tool in ("ip", "unshare", "setpriv", "ss", "pgrep", "chroot"):
        if not shutil.which(tool):
            return f"{tool} is missing"
    probe = run("unshare", "--mount", "sh", "-c", "mkdir -p /tmp/.llk && mount -t tmpfs t /tmp/.llk && mkdir /tmp/.llk/u "
                "/tmp/.llk/w /tmp/.llk/a && mount -t overlay o -o lowerdir=/,upperdir=/tmp/.llk/u,workdir=/tmp/.llk/w /tmp/.llk/a",
                check=False)
    if probe.returncode != 0:
        return f"no overlay file systems here: {probe.stderr.strip()}"
    if not Path("/proc/net/if_inet6").exists():
        return "no IPv6 here"
    probe = run("ip", "netns", "add", f"llkprobe{os.getpid()}", check=False)
    if probe.returncode != 0:
        return f"no network namespaces here: {probe.stderr.strip()}"
    run("ip", "netns", "del", f"llkprobe{os.getpid()}")
    return None


# The steps of the longer job, which are enough for two interruptions.
LONG = 12_000


def submit(cluster, space, folder, steps, user, again=""):
    (folder / "job.toml").write_text(job(steps))
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/", "LLINK_COORDINATOR": "https://llink-coordinator:7070",
           "LLINK_TLS_CA": "/certs/ca.crt", "LLINK_TLS_CERT": "/certs/admin.crt", "LLINK_TLS_KEY": "/certs/admin.key"}
    name = f"client-{steps}{again}"
    command = ["llink-coord", "submit", "/certs/job.toml"]
    return name, cluster.spawn(name, space, command, env, [("/certs", folder, None, True)], user)


def main():
    rendered, binaries = Path(sys.argv[1]), Path(sys.argv[2]).resolve()
    objects = [o for o in yaml.safe_load_all(rendered.read_text()) if o]
    faults = []
    for path in [rendered, *map(Path, sys.argv[3:])]:
        faults += check_variables([o for o in yaml.safe_load_all(path.read_text()) if o], binaries, path.name)
    planted = json.loads(json.dumps(objects))
    pods_of(planted)[0]["spec"]["template"]["spec"]["containers"][0]["env"].append({"name": "LLINK_LISTN", "value": "x"})
    if not any("LLINK_LISTN" in f for f in check_variables(planted, binaries, "planted")):
        faults.append("a planted variable that no program knows was not caught")
    if faults:
        raise SystemExit("\n".join(faults))
    print("variables: each is one that its program knows")
    why = missing()
    if why:
        print(f"SKIPPED: pods in network namespaces: {why}")
        return
    place = Path(tempfile.mkdtemp(prefix="llink-pods-"))
    place.chmod(0o755)
    try:
        with Cluster(objects, binaries, place) as cluster:
            play(cluster, place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def play(cluster, place):
    began = time.monotonic()
    certs = place / "certs"
    secrets = run(cluster.binaries / "llink-coord", "certs", certs, "--kubernetes").stdout
    cluster.secrets = {s["metadata"]["name"]: s["stringData"] for s in json.loads(secrets)["items"]}
    for file in certs.iterdir():
        os.chown(file, 0, GROUP)
        file.chmod(0o440)
    certs.chmod(0o755)
    by_name = {(o["kind"], o["metadata"]["name"]): o for o in pods_of(cluster.objects)}
    coordinator, worker = by_name["StatefulSet", "llink-coordinator"], by_name["Deployment", "llink-worker"]

    coordinator_space, address = cluster.add_pod_space("coord")
    service = cluster.find("Service", "llink-coordinator")["metadata"]
    names = [service["name"], f"{service['name']}.{service['namespace']}", f"{service['name']}.{service['namespace']}.svc"]
    cluster.hosts[address] = " ".join(names)
    cluster.start(coordinator, "coordinator", coordinator_space)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        cluster.probe(coordinator, "coordinator", address, probe)
    cluster.ports(coordinator, "coordinator", coordinator_space)
    workers = []
    for i in range(worker["spec"]["replicas"]):
        space, worker_address = cluster.add_pod_space(f"w{i}")
        cluster.start(worker, f"worker-{i}", space)
        workers.append((f"worker-{i}", space, worker_address))
    for name, space, worker_address in workers:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            cluster.probe(worker, name, worker_address, probe)
        cluster.ports(worker, name, space)
        cluster.families(name, space)
    cluster.families("coordinator", coordinator_space)
    print(f"pods: coordinator and {len(workers)} workers are up, probed, and listen on the ports that they name, over IPv4 and IPv6")

    client_space, _ = cluster.add_pod_space("client")
    user = (65532, 65532, 65532)
    name, client = submit(cluster, client_space, certs, 60, user)
    code = client.wait(timeout=180)
    if code != 0 or "succeeded in" not in cluster.log(name):
        logs = "\n".join(cluster.log(n) for n in [name, "coordinator", *(w[0] for w in workers)])
        raise SystemExit(f"the job across namespaces: exit {code}\n{logs}")
    cluster.running.pop(name)
    if 'transport="TCP, sealed"' not in "".join(cluster.log(worker) for worker, *_ in workers):
        raise SystemExit(f"the ring between the workers is not encrypted\n{cluster.log('worker-0')}")
    print(f"job: succeeded across namespaces, {time.monotonic() - began:.0f} s since the start")

    # During a longer training of both workers, one worker is drained, and then the coordinator.
    name, client = submit(cluster, client_space, certs, LONG, user)
    trained = place / "claims/llink-data/out/align"
    steps = lambda: [int(p.name.split("-")[1]) for p in trained.glob("*/checkpoints/step-*.safetensors")]
    wait_for(lambda: max(steps(), default=0) > 100, "checkpoints of the longer job", cluster)
    reached = max(steps())
    asked = time.monotonic()
    code = cluster.end("worker-0", signal.SIGTERM)
    took = time.monotonic() - asked
    grace = worker["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    # The job still runs (docs/running.md, "Exit codes").
    if code != 75 or took > grace:
        raise SystemExit(f"a drained worker: exit {code} after {took:.1f} s of {grace}\n{cluster.log('worker-0')}")
    wait_for(lambda: "worker-0 was told to stop" in cluster.log(name), "the lease that was handed back", cluster)
    wait_for(lambda: "ranks 1" in cluster.log(name), "the survivor to go on", cluster)
    if max(steps()) <= reached:
        raise SystemExit(f"no checkpoint after step {reached}\n{cluster.log('worker-1')}")
    print(f"drain: the worker saved and gave its lease back, {took:.1f} s of {grace} s; the other one went on alone")
    code = cluster.end("coordinator", signal.SIGTERM)
    if code != 0:
        raise SystemExit(f"the coordinator: exit {code} on SIGTERM\n{cluster.log('coordinator')}")
    client.wait(timeout=60)
    cluster.running.pop(name, None)
    reached = max(steps())
    cluster.start(coordinator, "coordinator", coordinator_space)
    cluster.probe(coordinator, "coordinator", address, "startupProbe")
    cluster.probe(worker, "worker-1", workers[1][2], "readinessProbe")
    # The job is submitted again and is the same one. The client follows it to its end.
    name, client = submit(cluster, client_space, certs, LONG, user, "-again")
    code = client.wait(timeout=300)
    if code != 0 or "succeeded in" not in cluster.log(name):
        raise SystemExit(f"the job after the restart: exit {code}\n{cluster.log(name)}\n{cluster.log('coordinator')}\n{cluster.log('worker-1')}")
    cluster.running.pop(name)
    resumed = [int(step) for step in re.findall(r"goes on from \S*step-(\d+)", cluster.log("worker-1"))]
    if not resumed or resumed[-1] < reached:
        raise SystemExit(f"after the restart training went on from {resumed}, and step {reached} was saved\n{cluster.log('worker-1')}")
    print(f"restart: the coordinator is back on its volume, the worker came back to it and trained on from step {resumed[-1]} to the "
          f"end; {time.monotonic() - began:.0f} s in all")


def wait_for(true, what, cluster):
    began = time.monotonic()
    while not true():
        if time.monotonic() - began > 120:
            logs = "\n".join(f"--- {n}\n{cluster.log(n)}" for n in cluster.running)
            raise SystemExit(f"not reached in time: {what}\n{logs}")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
