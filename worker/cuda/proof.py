"""Measures on a GPU what only a GPU can show, and writes it to one JSON. proof.sh runs it.

golden             the tensor form against PyTorch's golden files, in f32 and bf16, on the device
embed teacher      vectors at real size beside PyTorch in bf16, interleaved on the same weights and ids
align instruct     steps at real size beside PyTorch
ranks              2 and 4 NCCL ranks on one GPU: the losses of one rank
kill               SIGKILL of a rank for which the other waits in an all-reduce: abort, next generation, the job's end
job                the whole job at mission size with random weights at real size: seconds for each stage

Each section writes DIR/SECTION.json at its end, and DIR/proof.json holds all of them. This script needs only Python's own
library. The peer needs torch, transformers and peft.
"""
import argparse, datetime, glob, json, os, pathlib, re, shutil, signal, socket, statistics, subprocess, sys, tempfile, time

SECTIONS = ["golden", "embed", "teacher", "align", "instruct", "ranks", "kill", "job"]
# The dense bf16 operations per second, from NVIDIA's data sheets.
PEAKS = {"H100 80GB HBM3": 989e12, "H100 PCIe": 756e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}
GOALS = {"embed": (">=", 1.0), "teacher": (">=", 1.0), "align": ("<=", 0.5), "instruct": ("<=", 1.0)}


def say(text):
    print(f"[{datetime.datetime.now():%H:%M:%S}] {text}", flush=True)


def run(command, timeout=540, env=None, check=True, **kw):
    """Runs a command and returns its output. A failure shows the end of the output."""
    command = [str(part) for part in command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env={**os.environ, **(env or {})}, **kw)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")
    return done


def last_json(text):
    """Returns the last line that is JSON."""
    for line in reversed(text.strip().splitlines()):
        try:
            return json.loads(line)
        except ValueError:
            pass
    raise RuntimeError(f"no JSON in {text[-500:]!r}")


def machine(a):
    facts = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "device": a.device, "small": a.small}
    commit = a.place / "commit"
    facts["commit"] = commit.read_text().strip() if commit.exists() else None
    facts["llink"] = run([a.bin / "llink-worker", "--version"]).stdout.strip()
    facts["processors"] = os.cpu_count()
    if a.device != "cpu":
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        facts["gpu"] = run(query, check=False).stdout.strip() if shutil.which(query[0]) else "no nvidia-smi"
        versions = "import torch; print(torch.__version__, torch.version.cuda, '.'.join(map(str, torch.cuda.nccl.version())))"
        facts["torch"] = run([sys.executable, "-c", versions], check=False).stdout.strip()
    return facts


def peak(a):
    name = machine(a).get("gpu", "")
    return next((value for key, value in PEAKS.items() if key in name), None)


# ------------------------------------------------------------------------------------------------------------- golden


def golden(a):
    env = {"CARGO_MANIFEST_DIR": str(a.root / "worker"), "LLINK_TEST_DEVICE": a.device}
    out = {}
    for name in ["golden_models", "golden_align", "golden_instruct"]:
        done = run([a.bin / "it", f"{name}::", "--nocapture", "--test-threads", "1"], env=env, check=False)
        lines = [l for l in done.stdout.splitlines() if re.search(r"error|within|differs|steps:", l)]
        counted = re.search(r"test result: (\w+)\. (\d+) passed; (\d+) failed", done.stdout)
        if not counted or int(counted[2]) == 0:
            raise RuntimeError(f"{name} ran nothing: {(done.stdout + done.stderr)[-2000:]}")
        out[name] = {"result": counted[1], "passed": int(counted[2]), "failed": int(counted[3]), "figures": lines}
        if done.returncode != 0:
            out[name]["output"] = (done.stdout + done.stderr)[-3000:]
    out["ok"] = all(test["failed"] == 0 for test in out.values())
    return out


# -------------------------------------------------------------------------------------------------------------- bench


def models(a):
    """Makes random weights at real size, and inputs with the lengths of real sentences, once."""
    folder = a.work / "models"
    if not (folder / "decoder_ids.json").exists():
        say("making random weights")
        size = ["--small"] if a.small else []
        run([sys.executable, a.place / "peer/bench_reference.py", "prepare", folder, *size], timeout=560)
    return folder


def interleaved(a, job, ours, theirs, key):
    """Runs both `a.rounds` times, one after the other, and takes the medians of `key`."""
    folder = models(a)
    dtype = "f32" if a.device == "cpu" else "bf16"
    found = {"llink": [], "torch": []}
    for round in range(a.rounds):
        say(f"{job} {ours}: round {round + 1} of {a.rounds}")
        own = [job, folder, "--device", a.device, "--dtype", dtype, *ours] + (["--tensors"] if a.device == "cpu" else [])
        found["llink"].append(last_json(run([a.bin / "speed", *own]).stdout))
        peer = [sys.executable, a.place / "peer/bench_reference.py", job, folder, "--device", a.device, "--dtype", dtype, *theirs]
        found["torch"].append(last_json(run(peer).stdout))
    median = {engine: statistics.median(figure[key] for figure in figures) for engine, figures in found.items()}
    ratio = median["llink"] / median["torch"]
    sign, goal = GOALS[job]
    met = ratio >= goal if sign == ">=" else ratio <= goal
    return {"key": key, "median": median, "ratio": ratio, "goal": f"{sign} {goal}", "met": met, "runs": found}


def vectors(a, job):
    cases = {}
    for budget in [1024] if a.small else [4096, 32768]:
        n = 64 if a.small else 4096
        flags = ["--n", n, "--budget", budget]
        case = interleaved(a, job, flags, flags, "tokens_per_s")
        top = peak(a)
        if top:
            rate = statistics.median(figure["gflops"] for figure in case["runs"]["llink"]) * 1e9
            case["share_of_peak"] = rate / top
        cases[f"budget {budget}"] = case
    return cases


def embed(a):
    return vectors(a, "embed")


def teacher(a):
    return vectors(a, "teacher")


def align(a):
    steps = 2 if a.small else 200
    cases = {}
    for batch in [16] if a.small else [128, 1024]:
        flags = ["--batch", batch, "--steps", steps]
        cases[f"batch {batch}"] = interleaved(a, "align", flags, flags, "step_ms")
    return cases


def instruct(a):
    steps = 1 if a.small else 10
    cases = {}
    for batch in [2] if a.small else [4, 32]:
        flags = ["--batch", batch, "--steps", steps]
        case = interleaved(a, "instruct", flags, flags, "step_s")
        top = peak(a)
        if top:
            # The forward pass and the backward pass to the inputs take two products each for every weight of the decoder.
            operations = 4 * 1.236e9 * case["runs"]["llink"][0]["batch"] * case["runs"]["llink"][0]["length"]
            case["share_of_peak"] = operations / case["median"]["llink"] / top
        cases[f"batch {batch}"] = case
    return cases


# -------------------------------------------------------------------------------------------------------------- gangs

JOB = """
name = "{name}"
output = "out"
seed = 11
[corpus]
source = "sample"
train_pairs = {pairs}
holdout_pairs = {holdout}
shard_rows = {shard}
[instructions]
source = "sample"
train = {instructions}
validation = {validation}
[models]
encoder = "{encoder}"
decoder = "{decoder}"
[embed]
token_budget = {budget}
[align]
steps = {align_steps}
batch = {align_batch}
warmup_steps = {warmup}
checkpoint_every = {checkpoint}
validate_every = 0
step_timeout_s = 20
min_ranks = {min_ranks}
max_ranks = {max_ranks}
[instruct]
steps = {instruct_steps}
batch = {instruct_batch}
validate_every = 0
min_ranks = {min_ranks}
max_ranks = {max_ranks}
[evaluate]
benchmark_pairs = {benchmark}
answers = {answers}
max_answer_tokens = 32
"""

SMALL_JOB = dict(pairs=1200, holdout=300, shard=400, instructions=150, validation=30, encoder="tiny", decoder="tiny", budget=8192,
                 align_steps=120, align_batch=64, warmup=10, checkpoint=20, instruct_steps=6, instruct_batch=16, benchmark=200,
                 answers=4, min_ranks=1, max_ranks=0)


class Cluster:
    """A coordinator and its workers as processes. Ranks on one GPU count as separate hosts."""

    def __init__(self, a, name, workers, gather=3.0):
        self.a, self.dir = a, a.work / name
        shutil.rmtree(self.dir, ignore_errors=True)
        self.dir.mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.processes = []
        serve = ["serve", "--listen", f"127.0.0.1:{self.port}", "--state", self.dir / "state", "--gather", gather, "--lease", 5]
        self.start("coordinator", [a.bin / "llink-coord", *serve], {})
        self.reachable()
        threads = max(1, os.cpu_count() // max(1, workers))
        for rank in range(workers):
            env = {"NCCL_HOSTID": f"llink-{name}-{rank}", "NCCL_SOCKET_IFNAME": "lo", "LLINK_LOG": "info"}
            flags = ["--coordinator", self.url, "--name", f"rank-{rank}", "--threads", threads, "--device", a.device]
            self.start(f"worker-{rank}", [a.bin / "llink-worker", *flags], env)

    def start(self, name, command, env):
        log = open(self.dir / f"{name}.log", "w")
        process = subprocess.Popen([str(c) for c in command], stdout=log, stderr=log, cwd=self.dir, env={**os.environ, **env})
        self.processes.append((name, process))
        return process

    def reachable(self):
        deadline = time.time() + 20
        while time.time() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise RuntimeError(f"the coordinator does not listen: {self.log('coordinator')[-2000:]}")

    def submit(self, **settings):
        (self.dir / "job.toml").write_text(JOB.format(name=self.dir.name, **settings))
        command = [self.a.bin / "llink-coord", "submit", "job.toml", "--coordinator", self.url, "--json"]
        return self.start("submit", command, {})

    def wait(self, submitted, timeout=500):
        code = submitted.wait(timeout=timeout)
        if code != 0:
            logs = "\n".join(f"--- {name}\n{self.log(name)[-1500:]}" for name, _ in self.processes)
            raise RuntimeError(f"the job ended with {code}\n{logs}")
        return last_json(self.log("submit"))

    def log(self, name):
        return (self.dir / f"{name}.log").read_text(errors="replace")

    def worker_logs(self):
        return "\n".join(self.log(name) for name, _ in self.processes if name.startswith("worker"))

    def losses(self, stage):
        """Returns the loss by step, of the training that counted."""
        files = glob.glob(str(self.dir / f"out/{stage}/*/generation-*/metrics.jsonl"))
        if not files:
            raise RuntimeError(f"no metrics of {stage} in {self.dir}")
        records = [json.loads(line) for line in open(max(files, key=os.path.getmtime))]
        return {record["step"]: record["loss"] for record in records}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for _, process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for _, process in self.processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


def transport(a):
    return "NCCL communicator ready" if a.device != "cpu" else 'transport="TCP"'


def patience(a):
    """Returns the time limit of a small job in seconds. A real GPU is used for at most 10 minutes, an emulated one for longer."""
    return 500 if not a.small else 1_500


def ranks(a):
    out, alone = {}, None
    for count in [1, 2] if a.small else [1, 2, 4]:
        say(f"{count} ranks")
        with Cluster(a, f"ranks-{count}", count) as cluster:
            began = time.time()
            cluster.wait(cluster.submit(**{**SMALL_JOB, "min_ranks": count, "max_ranks": count}), timeout=patience(a))
            found = {stage: cluster.losses(stage) for stage in ["align", "instruct"]}
            entry = {"seconds": time.time() - began, "steps": {stage: len(losses) for stage, losses in found.items()}}
            if count == 1:
                alone = found
            else:
                if transport(a) not in cluster.worker_logs():
                    raise RuntimeError(f"no {transport(a)!r} in the workers' logs\n{cluster.worker_logs()[-3000:]}")
                entry["largest_difference"] = {
                    stage: max(abs(losses[step] - alone[stage][step]) for step in alone[stage]) for stage, losses in found.items()
                }
                # In bf16, sums in another order round differently. On the CPU all is f32.
                bounds = {"align": 1e-3, "instruct": 1e-3} if a.device == "cpu" else {"align": 5e-2, "instruct": 5e-2}
                entry["ok"] = all(entry["largest_difference"][stage] < bound for stage, bound in bounds.items())
            out[f"{count} ranks"] = entry
    out["ok"] = all(entry.get("ok", True) for entry in out.values())
    return out


def kill(a):
    """Stops rank 1 so that rank 0 waits for it in a collective, then kills it."""
    with Cluster(a, "kill", 2, gather=2.0) as cluster:
        steps = 20_000 if not a.small else 3_000 if a.device == "cpu" else 400
        submitted = cluster.submit(**{**SMALL_JOB, "align_steps": steps, "checkpoint": 200 if steps > 400 else 40, "instruct_steps": 2})
        victim = dict(cluster.processes)["worker-1"]
        deadline = time.time() + (240 if not a.small else 900)
        while time.time() < deadline and not glob.glob(str(cluster.dir / "out/align/*/checkpoints/*")):
            if submitted.poll() is not None:
                raise RuntimeError(f"the job ended before a rank could be killed\n{cluster.log('submit')[-2000:]}")
            time.sleep(0.1)
        if transport(a) not in cluster.worker_logs():
            raise RuntimeError(f"the gang does not speak {transport(a)!r}\n{cluster.worker_logs()[-3000:]}")
        victim.send_signal(signal.SIGSTOP)
        time.sleep(0.5)
        killed = time.time()
        victim.kill()
        noticed = None
        while noticed is None and time.time() < killed + 60:
            if re.search(r"rank 1 is lost|lost its peer|stopped:", cluster.log("worker-0")):
                noticed = time.time() - killed
            time.sleep(0.02)
        cluster.wait(submitted, timeout=patience(a))
        events = run([a.bin / "llink-coord", "list", "--coordinator", cluster.url, "--json"], check=False).stdout
        said = [line for line in cluster.log("worker-0").splitlines() if re.search("lost|goes on from|gang of|NCCL|stopped", line)]
        losses = cluster.losses("align")
        return {"noticed_after_s": noticed, "ended_after_s": time.time() - killed, "align_steps": len(losses), "said": said[-20:],
                "jobs": events[-1500:], "ok": noticed is not None and len(losses) == steps}


def job(a):
    """Runs the job at full size, with random weights of the real models and tokenizers made from the sample corpus."""
    with Cluster(a, "tokenizers", 1) as cluster:
        say("tokenizers")
        settings = {**SMALL_JOB, "align_steps": 20, "instruct_steps": 1, "answers": 0}
        if not a.small:
            settings |= {"pairs": 20_000, "holdout": 2_000, "shard": 10_000}
        cluster.wait(cluster.submit(**settings))
        folder = models(a)
        for name in ["encoder", "decoder"]:
            made = next(pathlib.Path(p) for p in glob.glob(str(cluster.dir / f"out/models/*/{name}")))
            shutil.copy(made / "tokenizer.json", folder / name / "tokenizer.json")
    size = SMALL_JOB if a.small else dict(pairs=100_000, holdout=40_000, shard=20_000, instructions=40_000, validation=2_000, budget=65536,
                                          align_steps=20_000, align_batch=128, warmup=3_000, checkpoint=5_000, instruct_steps=100,
                                          instruct_batch=128, benchmark=1024, answers=16, min_ranks=1, max_ranks=0)
    settings = {**size, "encoder": str(folder / "encoder"), "decoder": str(folder / "decoder")}
    if a.small:
        settings |= {"align_steps": 20, "instruct_steps": 1, "answers": 1, "pairs": 60, "holdout": 20, "instructions": 12, "validation": 4,
                     "align_batch": 16, "instruct_batch": 4, "benchmark": 20}
    with Cluster(a, "job", 1) as cluster:
        say("the whole job")
        began = time.time()
        cluster.wait(cluster.submit(**settings), timeout=580)
        seconds = time.time() - began
        listed = json.loads(run([a.bin / "llink-coord", "get", job_id(cluster), "--coordinator", cluster.url, "--json"]).stdout)
        stages = {stage.get("stage"): stage.get("seconds") for stage in listed["stages"]}
        idle = re.findall(r"embedded on.*", cluster.worker_logs())
        shares = [float(share) for share in re.findall(r"idle=([0-9.]+)", cluster.worker_logs())]
        return {"seconds": seconds, "stages": stages, "settings": {k: v for k, v in settings.items() if k not in ("encoder", "decoder")},
                "embedded_shards": len(idle), "device_idle_share": statistics.mean(shares) if shares else None}


def job_id(cluster):
    return last_json(cluster.log("submit"))["id"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", default=[], metavar="SECTION", help=", ".join(SECTIONS) + "; all by default")
    parser.add_argument("--place", type=pathlib.Path, required=True, help="where bin/ and peer/ are")
    parser.add_argument("--out", type=pathlib.Path, default=None, help="where the JSON goes: $OUT, or PLACE/results")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="the smallest size: to try this script out")
    parser.add_argument("--rounds", type=int, default=None, help="of each engine; 3, or 1 with --small")
    a = parser.parse_args()
    for section in a.sections:
        if section not in SECTIONS:
            parser.error(f"no section `{section}`: {', '.join(SECTIONS)}")
    a.place = a.place.resolve()
    a.root, a.bin = pathlib.Path(__file__).resolve().parents[2], a.place / "bin"
    a.out = a.out or pathlib.Path(os.environ.get("OUT") or a.place / "results")
    a.rounds = a.rounds or (1 if a.small else 3)
    a.work = pathlib.Path(os.environ.get("LLINK_PROOF_WORK") or tempfile.gettempdir()) / "llink-proof"
    a.work.mkdir(parents=True, exist_ok=True)
    a.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for section in a.sections or SECTIONS:
        say(f"== {section}")
        began = time.time()
        try:
            figures = globals()[section](a)
        except Exception as error:  # one section's failure must not cost the others
            figures = {"ok": False, "error": str(error)[-6000:]}
        figures = {"section_seconds": time.time() - began, **figures}
        if figures.get("ok") is False:
            failed.append(section)
        (a.out / f"{section}.json").write_text(json.dumps(figures, indent=1))
        short = {k: v for k, v in figures.items() if k != "runs"}
        say(f"{section}: {json.dumps(short)[:1500]}")
    proof = {"machine": machine(a)}
    for section in SECTIONS:
        path = a.out / f"{section}.json"
        if path.exists():
            proof[section] = json.loads(path.read_text())
    (a.out / "proof.json").write_text(json.dumps(proof, indent=1))
    say(f"{a.out / 'proof.json'}; failed: {', '.join(failed) or 'nothing'}")
    sys.exit(1 if failed else 0)


main()
