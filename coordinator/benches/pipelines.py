"""Measures what a whole `submit` takes beside the computation: waits, memory and checkpoints. Each command prints JSON lines.

    python coordinator/benches/pipelines.py submit LLINK [--workers N]    100,000 + 40,000 sample pairs and 40,000 instructions, tiny models
    python coordinator/benches/pipelines.py memory LLINK                  the peak of a worker's and the coordinator's memory while they shard
    python coordinator/benches/pipelines.py checkpoints LLINK DIR         DIR is what `scaling.py models` made

Times are those of the coordinator's state. `worker/benches/table.py write` makes the tables.
"""
import argparse, collections, glob, json, pathlib, re, shutil, signal, sqlite3, subprocess, tempfile, time

SUBMIT = """
name = "pipelines"
output = "{place}/out"
[corpus]
source = "sample"
train_pairs = 100_000
holdout_pairs = 40_000
[instructions]
source = "sample"
train = 40_000
validation = 2_000
[align]
steps = 500
warmup_steps = 50
[instruct]
steps = 20
expander_hidden = 512
[evaluate]
benchmark_pairs = 1_024
answers = 20
max_answer_tokens = 32
"""
MEMORY = """
name = "memory"
output = "{place}/out"
[corpus]
source = "{source}"
train_pairs = 0
holdout_pairs = 40_000
[align]
steps = 1
"""
CHECKPOINTS = """
name = "checkpoints"
output = "{models}/out-checkpoints"
[corpus]
source = "sample"
train_pairs = 2_000
holdout_pairs = 200
[instructions]
source = "sample"
train = 600
validation = 20
[models]
encoder = "{models}/encoder"
decoder = "{models}/decoder"
[align]
steps = 100
queue = 32_768
learning_rate = {rate}
validate_every = 0
checkpoint_every = {every_a}
checkpoint_minutes = 0
[instruct]
steps = 20
batch = 16
learning_rate = {rate}
validate_every = 0
checkpoint_every = {every_b}
checkpoint_minutes = 0
[evaluate]
benchmark_pairs = 64
answers = 1
max_answer_tokens = 1
"""


def put(**line):
    print(json.dumps(line), flush=True)


def peak_mib(process):
    text = pathlib.Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmHWM:\s*(\d+)", text)
    return int(found[1]) >> 10 if found else 0


class Run:
    """A `submit` of its own: its state, the peak memory of its processes, and when it began (in ms, as the state has it)."""

    def __init__(self, llink, place, job, workers, until=lambda run: False):
        (place / "job.toml").write_text(job)
        self.state, self.began, self.peaks = place / "state", time.time() * 1e3, collections.Counter()
        command = [llink, "submit", place / "job.toml", "--state", self.state, "--workers", str(workers), "--json"]
        with open(place / "submit.log", "w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        while process.poll() is None:
            try:
                children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                children += [it for task in pathlib.Path(f"/proc/{process.pid}/task").iterdir() for it in (task / "children").read_text().split()]
                for name, pid in [("coordinator", process.pid), *(("worker", child) for child in children)]:
                    self.peaks[name] = max(self.peaks[name], peak_mib(pid))
            except (FileNotFoundError, ProcessLookupError):
                pass
            if until(self):
                process.send_signal(signal.SIGINT)
                process.wait()
                return
            time.sleep(0.1)
        if process.returncode != 0:
            raise SystemExit(f"the job ended with {process.returncode}:\n{(place / 'submit.log').read_text()[-2000:]}")

    def rows(self, query):
        with sqlite3.connect(f"file:{self.state}/state.db?mode=ro", uri=True) as state:
            return state.execute(query).fetchall()

    def stages(self):
        """Of each stage that ran: when it began and ended, and the seconds of its tasks."""
        tasks = {stage: (began, spent / 1e3) for stage, began, spent in self.rows(
            "SELECT stage, MIN(started_at), SUM(ended_at - started_at) FROM attempts JOIN tasks ON task = id GROUP BY stage")}
        ended = self.rows("SELECT name, ended_at FROM stages WHERE ended_at > 0 ORDER BY position")
        return {name: (tasks[name][0], end, tasks[name][1]) for name, end in ended if name in tasks}


def submit(options):
    place = pathlib.Path(tempfile.mkdtemp(prefix="llink-pipelines-"))
    run = Run(options.llink, place, SUBMIT.format(place=place), options.workers)
    column, stages = f"{options.workers} worker{'s' if options.workers > 1 else ''}", run.stages()
    [[accepted]] = run.rows("SELECT submitted_at FROM jobs")
    after = lambda at: (at - run.began) / 1e3
    put(table="submit", row="the job is accepted", column=column, seconds=after(accepted))
    put(table="submit", row="the first task starts", column=column, seconds=after(min(began for began, _, _ in stages.values())))
    for name, (began, end, spent) in stages.items():
        put(table="submit", row=f"`{name}` ends", column=column, seconds=after(end), took=(end - began) / 1e3, busy=spent / options.workers / (end - began) * 1e3)
    logs = "".join(path.read_text() for path in (run.state / "logs").glob("*.log"))
    shards = [(float(it[1]), float(it[2])) for it in re.finditer(r"embedded on.*?seconds=([\d.]+) idle=([\d.]+)", logs)]
    put(table="waits", row="`embed`", column=column, seconds=sum(took for took, _ in shards), share=sum(took * idle for took, idle in shards) / sum(took for took, _ in shards))
    for stage in ("align", "instruct"):
        [lines] = glob.glob(f"{place}/out/{stage}/*/generation-*/metrics.jsonl")
        steps = [json.loads(line)["seconds"] for line in open(lines)]
        total, waited = (sum(step[phase] for step in steps for phase in phases) for phases in (["total"], ["data", "reduce"]))
        put(table="waits", row=f"`{stage}`", column=column, seconds=total, share=waited / total)
    shutil.rmtree(place)


def memory(options):
    for pairs in (100_000, 1_000_000):
        place = pathlib.Path(tempfile.mkdtemp(prefix="llink-pipelines-"))
        subprocess.run([options.llink, "sample", place, "--pairs", str(pairs), "--instructions", "1", "--seed", "7"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["gzip", "-1", place / "pairs.tsv"], check=True)

        def sharded(run):
            return run.state.joinpath("state.db").exists() and any(run.rows("SELECT 1 FROM stages WHERE name = 'shard' AND ended_at > 0"))

        run = Run(options.llink, place, MEMORY.format(place=place, source=place / "pairs.tsv.gz"), 1, sharded)
        [(began, end, _)] = run.stages().values()
        for name in ("worker", "coordinator"):
            put(table="memory", row=name, column=f"{pairs:,} pairs", seconds=(end - began) / 1e3, peak_rss_mib=run.peaks[name])
        shutil.rmtree(place)


def checkpoints(options):
    """The time of both trainings with and without checkpoints. The learning rate makes each training a new one."""
    found, every = collections.defaultdict(list), {"without": (0, 0), "with": (10, 5)}
    for number in range(2 * options.rounds + 1):
        place, kind = pathlib.Path(tempfile.mkdtemp(prefix="llink-pipelines-")), ("with", "without")[number % 2]
        rate, (every_a, every_b) = 1e-3 * (1 + time.time() % 1e6 / 1e12), every[kind]
        run = Run(options.llink, place, CHECKPOINTS.format(models=options.folder, rate=rate, every_a=every_a, every_b=every_b), 1)
        for stage, steps, made in (("align", 100, 9), ("instruct", 20, 3)):
            seconds = run.stages()[stage][2]
            if number:  # The first run prepares what the others find.
                found[stage, kind].append(seconds)
                put(table="checkpoints", row=f"`{stage}`", column=kind, seconds=seconds, steps=steps, made=made if kind == "with" else 0)
        shutil.rmtree(place)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("submit", "memory", "checkpoints"):
        command = commands.add_parser(name)
        command.add_argument("llink", type=lambda path: pathlib.Path(path).resolve())
        command.add_argument("--workers", type=int, default=2)
        command.add_argument("--rounds", type=int, default=3)
    command.add_argument("folder", type=lambda path: pathlib.Path(path).resolve())
    options = parser.parse_args()
    globals()[options.command](options)


main()
