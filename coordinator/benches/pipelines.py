"""Measures what a whole `submit` takes beside its computation: waits, memory and checkpoints. Each command prints JSON lines.

    python coordinator/benches/pipelines.py submit LLINK [--workers N]    100,000 + 40,000 sample pairs and 40,000 instructions, tiny models
    python coordinator/benches/pipelines.py memory LLINK                  the peak of a worker's and the coordinator's memory while they shard
    python coordinator/benches/pipelines.py checkpoints LLINK DIR         DIR is what `scaling.py models` made

Times are those of the coordinator's state. `worker/benches/table.py write` makes the tables.
"""
import argparse, bisect, collections, glob, json, os, pathlib, re, shutil, signal, sqlite3, subprocess, tempfile, time

from scaling import job, put

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


def peak_mib(process):
    text = pathlib.Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmHWM:\s*(\d+)", text)
    return int(found[1]) >> 10 if found else 0


def computed_s(process):
    """The processor time of a process in seconds."""
    fields = pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Run:
    """A `submit` of its own: its state, when it began (in ms, as the state has it), and the memory and processor time of its processes."""

    def __init__(self, llink, place, job, workers, until=lambda run: False):
        (place / "job.toml").write_text(job)
        self.state, self.began, self.peaks, self.computed, spent = place / "state", time.time() * 1e3, collections.Counter(), [(0, 0)], {}
        command = [llink, "submit", place / "job.toml", "--state", self.state, "--workers", str(workers), "--json"]
        with open(place / "submit.log", "w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        while process.poll() is None:
            try:
                for task in pathlib.Path(f"/proc/{process.pid}/task").iterdir():
                    for child in (task / "children").read_text().split():
                        self.peaks["worker"] = max(self.peaks["worker"], peak_mib(child))
                        spent[child] = computed_s(child)
                self.peaks["coordinator"] = max(self.peaks["coordinator"], peak_mib(process.pid))
                self.computed.append((time.time() * 1e3, sum(spent.values())))
            except (FileNotFoundError, ProcessLookupError):
                pass  # One of them has just ended.
            if until(self):
                process.send_signal(signal.SIGINT)
                process.wait()
                return
            time.sleep(0.05)
        if process.returncode != 0:
            raise SystemExit(f"the job ended with {process.returncode}:\n{(place / 'submit.log').read_text()[-2000:]}")

    def rows(self, query):
        with sqlite3.connect(f"file:{self.state}/state.db?mode=ro", uri=True) as state:
            return state.execute(query).fetchall()

    def stages(self):
        """When each stage began and ended."""
        return {name: times for name, *times in self.rows("SELECT name, started_at, ended_at FROM stages WHERE ended_at > 0 ORDER BY position")}

    def share(self, began, ended):
        """The share of the processor's time that the workers used."""
        first, last = (self.computed[min(bisect.bisect(self.computed, (at,)), len(self.computed) - 1)] for at in (began, ended))
        return (last[1] - first[1]) / os.cpu_count() / (ended - began) * 1e3


def submit(options):
    place = pathlib.Path(tempfile.mkdtemp(prefix="llink-pipelines-"))
    run = Run(options.llink, place, SUBMIT.format(place=place), options.workers)
    column, stages = f"{options.workers} worker{'s' if options.workers > 1 else ''}", run.stages()
    [[accepted]], [[first]] = run.rows("SELECT submitted_at FROM jobs"), run.rows("SELECT MIN(at) FROM events WHERE task > 0")
    for row, at in (("the job is accepted", accepted), ("the first task starts", first)):
        put(table="submit", row=row, column=column, seconds=(at - run.began) / 1e3)
    for name, (began, ended) in stages.items():
        put(table="submit", row=f"`{name}` ends", column=column, seconds=(ended - run.began) / 1e3, took=(ended - began) / 1e3, share=run.share(began, ended))
    logs = "".join(path.read_text() for path in (run.state / "logs").glob("*.log"))
    shards = [(float(it[1]), float(it[2])) for it in re.finditer(r"embedded on.*?seconds=([\d.]+) idle=([\d.]+)", logs)]
    put(table="waits", row="`embed`", column=column, seconds=sum(took for took, _ in shards), share=sum(took * idle for took, idle in shards) / sum(took for took, _ in shards))
    for stage in ("align", "instruct"):
        [lines] = glob.glob(f"{place}/out/{stage}/*/generation-*/metrics.jsonl")
        steps = [json.loads(line)["seconds"] for line in open(lines)]
        total, waited = (sum(step[phase] for step in steps for phase in phases) for phases in (["total"], ["data", "reduce"]))
        put(table="waits", row=f"`{stage}`", column=column, seconds=total, share=waited / total)
    shutil.rmtree(place)


def end_of(stage):
    """Tells whether a run's stage has ended, after which it is not needed any more."""
    def has(run):
        try:
            return bool(run.rows(f"SELECT 1 FROM stages WHERE name = '{stage}' AND ended_at > 0"))
        except sqlite3.OperationalError:
            return False  # The state is not there yet.
    return has


def memory(options):
    for pairs in (100_000, 1_000_000):
        place = pathlib.Path(tempfile.mkdtemp(prefix="llink-pipelines-"))
        subprocess.run([options.llink, "sample", place, "--pairs", str(pairs), "--instructions", "1", "--seed", "7"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["gzip", "-1", place / "pairs.tsv"], check=True)

        run = Run(options.llink, place, MEMORY.format(place=place, source=place / "pairs.tsv.gz"), 1, end_of("shard"))
        began, ended = run.stages()["shard"]
        for name in ("worker", "coordinator"):
            put(table="memory", row=name, column=f"{pairs:,} pairs", seconds=(ended - began) / 1e3, peak_rss_mib=run.peaks[name])
        shutil.rmtree(place)


def checkpoints(options):
    """The time of both trainings with and without checkpoints. The learning rate makes each training a new one."""
    every = {"without": (0, 0), "with": (10, 3)}
    for number in range(2 * options.rounds + 1):
        place, kind = pathlib.Path(tempfile.mkdtemp(prefix="llink-pipelines-")), ("with", "without")[number % 2]
        text = job(options.folder, 1e-3 * (1 + time.time() % 1e6 / 1e12), a_steps=100, b_steps=12, queue=32_768, checkpoint_every=every[kind])
        run = Run(options.llink, place, text, 1, end_of("instruct"))
        for stage, steps, made in (("align", 100, 9), ("instruct", 12, 3)):
            began, ended = run.stages()[stage]
            seconds = (ended - began) / 1e3
            if number:  # The first run prepares what the others find.
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
