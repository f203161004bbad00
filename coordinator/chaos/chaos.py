#!/usr/bin/env python3
"""Runs three jobs at once on real processes, breaks things at random, and compares the results with an undisturbed run.

    sudo coordinator/chaos/chaos.py --llink target/release/llink-coord --minutes 60

Each process lives in a network namespace of its own, so that it can be cut off. Coordinators and workers are killed, stopped and cut
off, coordinators are told to end, and the disks of the state and of the output are filled for seconds. A round ends when all three
jobs have ended. It must leave the artifacts that the undisturbed run left, to the byte. Rounds follow one another until the minutes are
over. The last line is a summary as JSON. Linux and root are needed. A failed round keeps its folder and prints its seed; `--seed` repeats
the choice of faults.
"""
import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BRIDGE, NET = "llchaos", "10.77.0"
SERVICE = f"{NET}.100"  # the address that clients know; it moves to the coordinator that serves
PORT = 7070
# Artifacts that tell when or where they were made.
OF_ITS_TIME = ("metrics", "report", "report-page", "bundle/config", "bundle/card")

JOB = """
name = "NAME"
output = "OUTPUT"
seed = 11
[corpus]
source = "sample"
train_pairs = 6_000
holdout_pairs = 1_200
shard_rows = 500
[align]
steps = STEPS
batch = 64
queue = 512
hard_negatives = 32
warmup_steps = 50
learning_rate = RATE
checkpoint_every = 100
min_ranks = RANKS
max_ranks = RANKS
step_timeout_s = 20
[evaluate]
benchmark_pairs = 500
"""
# Two jobs share a corpus and its vectors; one trains on two ranks, and only with two, so that its bits are the same whoever dies.
JOBS = {"one": {"STEPS": 8_000, "RATE": "3e-3", "RANKS": 1}, "two": {"STEPS": 5_000, "RATE": "2e-3", "RANKS": 2},
        "three": {"STEPS": 5_000, "RATE": "1e-3", "RANKS": 1}}


# A training of two ranks, each of which is killed in turn.
LONG = {"STEPS": 4_000, "RATE": "3e-3", "RANKS": 2, "batch = 64": "batch = 1_024", "queue = 512": "queue = 8_192"}


def sh(*command, check=True):
    return subprocess.run(command, check=check, capture_output=True, text=True)


def mounted(path):
    return subprocess.run(["mountpoint", "-q", str(path)]).returncode == 0


class Node:
    """A process in a network namespace of its own, started again when it ends."""

    def __init__(self, place, name, number, command):
        self.place, self.name, self.command = place, name, command
        self.space, self.link = f"ll-{name}", f"llv-{number}"
        self.process, self.back_at, self.stopped, self.starts = None, 0.0, False, 0
        sh("ip", "netns", "add", self.space)
        sh("ip", "link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.space)
        sh("ip", "link", "set", self.link, "master", BRIDGE, "up")
        self.address = f"{NET}.{number}"
        self.inside("ip", "addr", "add", f"{self.address}/24", "dev", "eth0")
        self.inside("ip", "link", "set", "eth0", "up")
        self.inside("ip", "link", "set", "lo", "up")

    def inside(self, *command, check=True):
        return sh("ip", "netns", "exec", self.space, *command, check=check)

    def start(self):
        log = open(self.place / f"{self.name}.log", "ab")
        # The group is killed as one, as a container's processes are.
        self.process = subprocess.Popen(["ip", "netns", "exec", self.space, *self.command(self)], stdout=log, stderr=log,
                                        start_new_session=True)
        self.starts, self.stopped = self.starts + 1, False

    def signal(self, number):
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def kill(self, back_after):
        self.signal(signal.SIGKILL)
        self.process.wait()
        self.back_at = time.monotonic() + back_after

    def keep_up(self):
        if self.process.poll() is not None and time.monotonic() >= self.back_at:
            self.start()

    def cut(self, off):
        sh("ip", "link", "set", self.link, "down" if off else "up")

    def remove(self):
        if self.process:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGKILL)
            self.process.wait()
        sh("ip", "netns", "del", self.space, check=False)
        sh("ip", "link", "del", self.link, check=False)


class Cluster:
    """Coordinators, workers, and two small disks: one for the states, one for the output."""

    def __init__(self, args, place):
        self.args, self.place = args, place
        for disk, size in (("state", "64m"), ("disk", "512m")):
            (place / disk).mkdir()
            sh("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place / disk))
        sh("ip", "link", "add", BRIDGE, "type", "bridge")
        sh("ip", "addr", "add", f"{NET}.1/24", "dev", BRIDGE)
        sh("ip", "link", "set", BRIDGE, "up")
        replicated = "--replica" in sh(args.llink, "serve", "--help").stdout
        self.coordinators = [Node(place, f"c{i}", 10 + i, self.serve(replicated)) for i in range(2 if replicated else 1)]
        self.workers = [Node(place, f"w{i}", 20 + i, self.work) for i in range(args.workers)]
        self.leader = None
        for node in self.coordinators + self.workers:
            node.start()
        self.until(self.serves, 60, "no coordinator serves")

    def serve(self, replicated):
        def command(node):
            more = ["--replica", str(self.place / "disk" / "replica")] if replicated else []
            return [self.args.llink, "serve", "--listen", f"0.0.0.0:{PORT}", "--state", str(self.place / "state" / node.name), "--insecure",
                    "--lease", "5", "--gather", "5", "--health", f"0.0.0.0:{PORT + 1}", *more]
        return command

    def work(self, node):
        return [self.args.llink, "worker", "--coordinator", f"http://{SERVICE}:{PORT}", "--name", node.name, "--threads", "1"]

    def serves(self):
        """Moves the service's address to the coordinator that is ready, as a Kubernetes Service does."""
        for node in self.coordinators:
            alive = node.process.poll() is None and not node.stopped
            if alive and node.inside(self.args.llink, "list", "--coordinator", f"http://{node.address}:{PORT}", check=False).returncode == 0:
                if self.leader is not node:
                    if self.leader:
                        self.leader.inside("ip", "addr", "del", f"{SERVICE}/24", "dev", "eth0", check=False)
                    node.inside("ip", "addr", "add", f"{SERVICE}/24", "dev", "eth0", check=False)
                    sh("ip", "neigh", "flush", "dev", BRIDGE, check=False)
                    for worker in self.workers:
                        worker.inside("ip", "neigh", "flush", "dev", "eth0", check=False)
                    self.leader = node
                return True
        return False

    def until(self, holds, seconds, otherwise):
        end = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > end:
                raise RuntimeError(otherwise)
            self.keep_up()
            time.sleep(0.5)

    def keep_up(self):
        for node in self.coordinators + self.workers:
            node.keep_up()

    def submit(self, name, values):
        text = JOB.replace("NAME", name).replace("OUTPUT", str(self.place / "disk" / "out"))
        for key, value in values.items():
            text = text.replace(key, str(value))
        (self.place / f"{name}.toml").write_text(text)
        self.client("submit", str(self.place / f"{name}.toml"), "--detach")

    def client(self, *command, check=True):
        return sh(self.args.llink, *command, "--coordinator", f"http://{SERVICE}:{PORT}", check=check)

    def states(self):
        answer = self.client("list", "--json", check=False)
        return [json.loads(line)["state"] for line in answer.stdout.splitlines()] if answer.returncode == 0 else None

    def close(self):
        for node in self.coordinators + self.workers:
            node.remove()
        sh("ip", "link", "del", BRIDGE, check=False)

    def unmount(self):
        for disk in ("state", "disk"):
            if mounted(self.place / disk):
                sh("umount", "-l", str(self.place / disk), check=False)


class Faults:
    """Chooses what happens next; every fault is undone some seconds later."""

    def __init__(self, cluster, seed):
        self.cluster, self.random, self.counts, self.undo = cluster, random.Random(seed), {}, []
        self.next = time.monotonic() + 3

    def tick(self):
        now = time.monotonic()
        for when, what in [entry for entry in self.undo if entry[0] <= now]:
            what()
            self.undo.remove((when, what))
        if now >= self.next:
            self.next = now + self.random.uniform(2, 12)
            name = self.random.choices(("kill a worker", "stop a worker", "cut a worker off", "kill the coordinator", "end the coordinator",
                                        "stop the coordinator", "cut the coordinator off", "fill the output's disk", "fill the state's disk"),
                                       weights=(6, 3, 3, 2, 2, 1, 1, 1, 1))[0]
            self.counts[name] = self.counts.get(name, 0) + 1
            print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
            self.happen(name, self.random.uniform(1, 12))

    def happen(self, name, seconds):
        if "disk" in name:
            ballast = self.cluster.place / ("disk" if "output" in name else "state") / "ballast"
            subprocess.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=1M"], stderr=subprocess.DEVNULL)
            return self.later(min(seconds, 6), lambda: ballast.unlink(missing_ok=True))
        node = self.random.choice(self.cluster.workers) if "worker" in name else self.cluster.leader
        if name.startswith("kill"):
            node.kill(seconds)
        elif name.startswith("end"):
            # It hands over to the other one.
            node.back_at = time.monotonic() + seconds
            node.signal(signal.SIGTERM)
        elif name.startswith("stop"):
            node.stopped = True
            node.signal(signal.SIGSTOP)
            self.later(seconds, lambda: (node.signal(signal.SIGCONT), setattr(node, "stopped", False)))
        else:
            node.cut(True)
            self.later(seconds, lambda: node.cut(False))

    def later(self, seconds, what):
        self.undo.append((time.monotonic() + seconds, what))

    def mend_all(self):
        for _, what in self.undo:
            what()
        self.undo.clear()


def left_behind(output):
    """The SHA-256 of each stage's artifacts, by stage, key, role and file name. A file that is not what its manifest says ends the run."""
    found = {}
    for manifest in sorted(output.glob("*/*/manifest.json")):
        stage = str(manifest.parent.relative_to(output))
        for artifact in json.loads(manifest.read_text())["artifacts"]:
            sha256 = hashlib.sha256((output / artifact["path"]).read_bytes()).hexdigest()
            if sha256 != artifact["sha256"]:
                raise RuntimeError(f"{artifact['path']} is not what its manifest says")
            if artifact["role"] not in OF_ITS_TIME:
                found[f"{stage} {artifact['role']} {Path(artifact['path']).name}"] = sha256
    return found


def run(args, seed):
    """One round: submits the jobs, disturbs them unless `seed` is None, and returns what they left, with figures."""
    place = Path(tempfile.mkdtemp(prefix="llink-chaos-", dir=args.dir))
    began, faults, cluster = time.monotonic(), None, Cluster(args, place)
    try:
        output = place / "disk" / "out"
        for name, values in JOBS.items():
            cluster.submit(name, values)
        faults = Faults(cluster, seed) if seed is not None else None
        ended = {"succeeded", "failed", "cancelled"}
        while True:
            states = cluster.states() if cluster.serves() else None
            if states and len(states) == len(JOBS) and set(states) <= ended:
                break
            if time.monotonic() - began > args.round_minutes * 60:
                raise RuntimeError(f"the jobs did not end: {states}")
            if faults:
                faults.tick()
            cluster.keep_up()
            time.sleep(0.3)
        if faults:
            faults.mend_all()
        if set(states) != {"succeeded"}:
            raise RuntimeError(f"jobs ended as {states}")
        starts = sum(node.starts - 1 for node in cluster.coordinators + cluster.workers)
        figures = {"seconds": round(time.monotonic() - began, 1), "restarts": starts, "faults": faults.counts if faults else {}}
        left = left_behind(output)
        if not left:
            raise RuntimeError("the jobs left no artifact")
        return left, figures
    except BaseException:
        print(f"seed {seed}: everything is in {place} (its disks are copied to {place}/kept)", flush=True)
        for disk in ("state", "disk"):
            shutil.copytree(place / disk, place / "kept" / disk, dirs_exist_ok=True)
        raise
    finally:
        if faults:
            faults.mend_all()
        cluster.close()
        cluster.unmount()
        if not (place / "kept").exists():
            shutil.rmtree(place, ignore_errors=True)


def effective(args):
    """Kills one of two training ranks every `args.kill_every` seconds and prints the share of the time that counted."""
    place = Path(tempfile.mkdtemp(prefix="llink-chaos-", dir=args.dir))
    args.workers = 2
    cluster, kills, began = Cluster(args, place), 0, time.monotonic()
    try:
        cluster.submit("long", LONG)
        due = began + args.kill_every
        while not (states := cluster.states()) or states[0] not in ("succeeded", "failed", "cancelled"):
            if time.monotonic() >= due:
                cluster.workers[kills % 2].kill(2)
                kills, due = kills + 1, due + args.kill_every
            cluster.keep_up()
            time.sleep(0.5)
        report = json.loads(next((place / "disk" / "out").glob("report.json")).read_text())
        print(json.dumps({"state": states[0], "kills": kills, "seconds": round(time.monotonic() - began), "training": report["training"]}))
    finally:
        cluster.close()
        cluster.unmount()
        shutil.rmtree(place, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llink", required=True, help="the program llink-coord")
    parser.add_argument("--minutes", type=float, default=60, help="how long to begin new rounds")
    parser.add_argument("--round-minutes", type=float, default=20, help="the longest round")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the first round; each round adds one")
    parser.add_argument("--kill-every", type=float, help="instead: train 4,000 steps on two ranks and kill one every so many seconds")
    parser.add_argument("--dir", help="where the folders are made")
    args = parser.parse_args()
    args.llink = str(Path(args.llink).resolve())
    if args.kill_every:
        return effective(args)
    end, seed, totals = time.monotonic() + args.minutes * 60, args.seed, {}
    expected, quiet = run(args, None)
    print(f"undisturbed: {quiet['seconds']} s, {len(expected)} artifacts", flush=True)
    rounds = []
    while not rounds or time.monotonic() < end:
        found, figures = run(args, seed)
        differ = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if differ:
            sys.exit(f"seed {seed}: {len(differ)} artifacts differ from the undisturbed run, among them {differ[:5]}")
        print(f"seed {seed}: equal, {figures}", flush=True)
        rounds.append(figures["seconds"])
        for fault, count in figures["faults"].items():
            totals[fault] = totals.get(fault, 0) + count
        seed += 1
    print(json.dumps({"rounds": len(rounds), "artifacts": len(expected), "undisturbed_s": quiet["seconds"], "disturbed_s": rounds, "faults": totals}))


if __name__ == "__main__":
    main()
