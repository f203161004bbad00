"""Measures how jobs scale over workers and ranks, in network namespaces with a set bandwidth and delay, and predicts it.

    python coordinator/benches/scaling.py models LLINK DIR               makes models with real widths and one layer (needs transformers)
    sudo python coordinator/benches/scaling.py ring SPEED               sums of 35 MB over 2 and 4 ranks; SPEED is the program of `--bench speed`
    sudo python coordinator/benches/scaling.py train LLINK DIR          steps of both stages on 1 to 4 ranks
    sudo python coordinator/benches/scaling.py embed LLINK              the stage `embed` on 1 to 8 workers
    python coordinator/benches/scaling.py predict                       the mission's time by GPUs and network

Every process has `--share` of a core (Linux control groups), so that eight of them do not compete for two cores. Each command prints
JSON lines, of which `worker/benches/table.py write` makes tables. Run alone, because it needs the addresses 10.78.0.0/24.
"""
import argparse, glob, itertools, json, os, pathlib, re, shutil, statistics, subprocess, sys, tempfile, time

from network import Network

GROUPS = pathlib.Path("/sys/fs/cgroup/cpu")
UNREACHABLE = 6
# Of a step: the share of the computation that every rank does again, the bytes that are summed, the number of sums, and the seconds of a
# core that a rank needs for each byte that it sends.
STEPS = {"align": (0.5, 36e6, 3, 0.0), "instruct": (0.0, 347e6, 21, 3e-9)}
ONE_LAYER = 305e6  # the bytes of Stage B with the models of this bench, whose adapter has one layer
PAYLOAD = 0.97  # of a network's bandwidth, beside the headers of TCP
NETWORKS = [(10_000, 0.1), (1_000, 0.1), (1_000, 1), (1_000, 10), (100, 1)]
STREAM = """
import socket, sys, time
role, address, size = sys.argv[1], (sys.argv[2], 9_000), int(sys.argv[3]) << 20
line = socket.create_server(address).accept()[0] if role == "read" else socket.create_connection(address)
line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
if role == "read":
    for _ in range(20): line.sendall(line.recv(1))
    while size: size -= len(line.recv(min(size, 1 << 20)))
    line.sendall(b"x")
else:
    trips, block = [], b"x" * (1 << 20)
    for _ in range(20):
        began = time.perf_counter(); line.sendall(b"x"); line.recv(1); trips.append(time.perf_counter() - began)
    began = time.perf_counter()
    for _ in range(size >> 20): line.sendall(block)
    line.recv(1)
    print(size * 8 / (time.perf_counter() - began), sorted(trips)[10])
"""
JOB = """
name = "scaling"
output = "{models}/out"
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
steps = {a_steps}
queue = {queue}
learning_rate = {rate}
validate_every = 0
checkpoint_every = {every_a}
checkpoint_minutes = 0
min_ranks = {ranks}
max_ranks = {ranks}
[instruct]
steps = {b_steps}
batch = 4
usage_every = 0
learning_rate = {rate}
validate_every = 0
checkpoint_every = {every_b}
checkpoint_minutes = 0
min_ranks = {ranks}
max_ranks = {ranks}
[evaluate]
benchmark_pairs = 64
answers = 1
max_answer_tokens = 1
"""
EMBED = """
name = "scaling"
output = "{place}/out-{workers}"
[corpus]
source = "sample"
train_pairs = 12_000
holdout_pairs = 400
shard_rows = 300
[align]
steps = 1
[evaluate]
benchmark_pairs = 64
"""


def job(models, rate, a_steps, b_steps, ranks=1, queue=2_048, checkpoint_every=(0, 0)):
    """A job that trains both stages on the models of a folder. Another learning rate makes another training."""
    every_a, every_b = checkpoint_every
    return JOB.format(models=models, rate=rate, a_steps=a_steps, b_steps=b_steps, ranks=ranks, queue=queue, every_a=every_a, every_b=every_b)


def many(number, word):
    return f"{number} {word}" + "s" * (number > 1)


def put(**line):
    print(json.dumps(line), flush=True)


def called(megabits, delay_ms):
    return f"{megabits // 1000} Gbit/s, {delay_ms:g} ms" if megabits >= 1000 else f"{megabits} Mbit/s, {delay_ms:g} ms"


def reached(network):
    """The bandwidth in bytes/s and the delay of one way in s that one TCP stream gets between the last two nodes."""
    first, last = len(network.spaces) - 2, len(network.spaces) - 1
    size = max(4, int(network.rate / 2e6))
    network.start(last, sys.executable, "-c", STREAM, "read", network.addresses[last], size)
    time.sleep(0.3)
    out = network.start(first, sys.executable, "-c", STREAM, "write", network.addresses[last], size, stdout=subprocess.PIPE).communicate(timeout=60)[0]
    bits, trip = map(float, out.split())
    return bits / 8, trip / 2


def wire_seconds(size, ranks, bandwidth, delay, sums=1):
    """The time of `sums` sums of `size` bytes in all: each rank sends 2(N - 1)/N of the bytes, and each sum waits for 2(N - 1) delays."""
    return 2 * (ranks - 1) / ranks * size / bandwidth + 2 * (ranks - 1) * delay * sums


def ring(options):
    values = 8_700_000
    for megabits, delay in NETWORKS:
        for ranks in options.ranks:
            with Network(ranks, megabits, delay) as network:
                bandwidth, latency = reached(network)
                addresses = ",".join(f"{address}:7000" for address in network.addresses)
                command = [options.speed, "ring", "none", "--addresses", addresses, "--n", values, "--steps", 2 if megabits < 1000 else 5]
                ended = [network.start(rank, *command, "--rank", rank, stdout=subprocess.PIPE) for rank in range(ranks)]
                found = json.loads(ended[0].communicate(timeout=100)[0].splitlines()[-1])
            expected = wire_seconds(4 * values, ranks, network.rate * PAYLOAD, latency)
            put(table="ring", row=called(megabits, delay), column=many(ranks, "rank"), seconds=found["sum_ms"] / 1e3, predicted=expected,
                stream_mbit_s=bandwidth * 8 / 1e6, delay_ms=latency * 1e3)


def step_seconds(stage, alone, ranks, bandwidth, delay, cores, size=None):
    """The time of a step on `ranks` ranks, of which `alone` is that on one rank. A rank has `cores`; none if a GPU sums. Nothing that
    overlaps is taken off."""
    shared, whole, sums, work = STEPS[stage]
    size = size or whole
    summing = 2 * (ranks - 1) / ranks * size * work / cores if cores else 0
    return alone * (shared + (1 - shared) / ranks) + wire_seconds(size, ranks, bandwidth, delay, sums) + summing


class Cluster:
    """A coordinator on node 0 and a worker on each other node, each with a share of a core."""

    def __init__(self, llink, place, network, share):
        self.llink, self.network, self.url = llink, network, f"http://{network.addresses[0]}:7070"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": open(place / "cluster.log", "a")}
        network.start(0, llink, "serve", "--listen", "0.0.0.0:7070", "--state", tempfile.mkdtemp(dir=place), "--insecure", "--gather", "1", **quiet)
        for node in range(1, len(network.spaces)):
            group = GROUPS / f"llbench{node}"
            group.mkdir(exist_ok=True)
            (group / "cpu.cfs_period_us").write_text("10000")
            (group / "cpu.cfs_quota_us").write_text(str(int(share * 10_000)))
            network.start(node, llink, "worker", "--coordinator", self.url, "--name", f"w{node}", "--threads", 1, "--compute", "f32", group=group, **quiet)

    def client(self, *command):
        end = time.monotonic() + 20
        while True:
            asked = self.network.start(0, self.llink, *command, "--coordinator", self.url, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            out, errors = asked.communicate(timeout=230)
            if asked.returncode == 0:
                return out
            if asked.returncode != UNREACHABLE or time.monotonic() > end:
                raise SystemExit(f"{command[0]} ended with {asked.returncode}: {errors[-2000:]}{out[-500:]}")
            time.sleep(0.1)


def trained(folder, stage, since):
    """The median step of the training that ends next, without its first step: the seconds of each phase."""
    while True:
        newest = max(glob.glob(f"{folder}/out/{stage}/*/generation-*/metrics.jsonl"), key=os.path.getmtime, default=None)
        if newest and os.path.getmtime(newest) > since:
            seconds = [json.loads(line)["seconds"] for line in open(newest)][1:]
            return {phase: statistics.median(step[phase] for step in seconds) for phase in seconds[0]}
        if time.time() > since + 200:
            raise SystemExit(f"{stage} did not end")
        time.sleep(0.2)


def train(options):
    place, alone = pathlib.Path(tempfile.mkdtemp(prefix="llink-scaling-", dir=options.folder)), None
    for (megabits, delay), ranks in itertools.product(options.networks or NETWORKS, sorted({1, *options.ranks})):
        if ranks == 1 and alone is not None:
            continue
        with Network(ranks + 1, int(megabits), delay) as network:
            bandwidth, latency = reached(network)
            began, cluster, file = time.time(), Cluster(options.llink, place, network, options.share), place / "job.toml"
            a_steps = 2 if options.stage == "instruct" else 4 if megabits < 1000 else 12
            text = job(options.folder, 1e-3 * (1 + time.time() % 1e6 / 1e12), a_steps, b_steps=3, ranks=ranks)
            file.write_text(text if options.stage == "instruct" else re.sub(r"\[instruct\].*(?=\[evaluate)", "", text, flags=re.S))
            cluster.client("submit", file, "--detach")
            step = trained(options.folder, options.stage, began)
            alone = step["total"] if ranks == 1 else alone
            predicted = step_seconds(options.stage, alone, ranks, network.rate * PAYLOAD, latency, options.share,
                                     ONE_LAYER if options.stage == "instruct" else None)
        put(table=f"scaling-{options.stage}", row="1 rank" if ranks == 1 else called(int(megabits), delay), column=many(ranks, "rank"), seconds=step["total"],
            phases=step, predicted=predicted, bandwidth=bandwidth, delay=latency, ranks=ranks, share=options.share)
    shutil.rmtree(place)


def embed(options):
    place = pathlib.Path(tempfile.mkdtemp(prefix="llink-scaling-"))
    for workers in options.ranks:
        with Network(workers + 1, 1_000, 0.1) as network:
            file, cluster = place / "job.toml", Cluster(options.llink, place, network, options.share)
            file.write_text(EMBED.format(place=place, workers=workers))
            cluster.client("submit", file)
            [report] = glob.glob(f"{place}/out-{workers}/report.json")
        [seconds] = [stage["seconds"] for stage in json.loads(open(report).read())["stages"] if stage["stage"] == "embed"]
        put(table="scaling-embed", row="embed", column=many(workers, "worker"), seconds=seconds, workers=workers, share=options.share)
    shutil.rmtree(place)


def models(options):
    from transformers import LlamaConfig, LlamaForCausalLM, XLMRobertaConfig, XLMRobertaModel
    place = pathlib.Path(tempfile.mkdtemp(prefix="llink-scaling-"))
    (place / "job.toml").write_text(EMBED.format(place=place, workers=1).replace("[align]", '[models]\nencoder = "random"\ndecoder = "random"\n[align]'))
    subprocess.run([options.llink, "submit", place / "job.toml", "--state", place / "state"], check=True, stdout=subprocess.DEVNULL)
    made = {"encoder": lambda rows: XLMRobertaModel(XLMRobertaConfig(vocab_size=rows, num_hidden_layers=1, max_position_embeddings=514, type_vocab_size=1)),
            "decoder": lambda rows: LlamaForCausalLM(LlamaConfig(vocab_size=rows, hidden_size=2048, intermediate_size=8192, num_hidden_layers=1,
                                                                num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=True))}
    for name, model in made.items():
        [folder] = glob.glob(f"{place}/out-1/models/*/{name}")
        rows = json.loads((pathlib.Path(folder) / "config.json").read_text())["vocab_size"]
        shutil.copytree(folder, options.folder / name)
        (options.folder / name / "model.safetensors").unlink()
        model(rows).save_pretrained(options.folder / name)
    # What all trainings share is computed once, by all cores.
    (place / "job.toml").write_text(job(options.folder, 1e-3, a_steps=1, b_steps=1))
    subprocess.run([options.llink, "submit", place / "job.toml", "--state", place / "state-2", "--workers", "1"], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(place)


# The mission: 100,000 pairs, 40,000 + 2,000 instructions, XLM-R base and Llama 3.2 1B. The seconds of one rank, from the table of the heavy
# jobs for the processor, and for a GPU by its operations at 400 TFLOP/s, which no run has confirmed. Beside it the bytes and sums of a step.
TEXTS, ENCODER_TOKENS, TEACHER_TOKENS, A_STEPS, B_STEPS, B_EXAMPLE_FLOP = 143_000, 35, 25, 20_000, 938, 4.5e11
KINDS = {
    "two cores of the table above": {"embed": TEXTS * (ENCODER_TOKENS / 1_458 + TEACHER_TOKENS / 190), "align": 0.051, "instruct": 128 / 4 * 7.1, "cores": 2},
    "a GPU at 400 TFLOP/s": {"embed": TEXTS * 2 * (85e6 * ENCODER_TOKENS + 0.97e9 * TEACHER_TOKENS) / 4e14, "align": 0.003,
                             "instruct": 128 * B_EXAMPLE_FLOP / 4e14, "cores": None},
}
LINKS = {"1 Gbit/s": (1e9 / 8, 2e-4), "10 Gbit/s": (1e10 / 8, 1e-4), "100 Gbit/s": (1e11 / 8, 2e-5), "NVLink, 150 GB/s": (150e9, 1e-5)}
MISSION_NETWORKS = dict(zip(KINDS, (["1 Gbit/s", "10 Gbit/s"], ["10 Gbit/s", "100 Gbit/s", "NVLink, 150 GB/s"])))


def predict(options):
    for kind, alone in KINDS.items():
        for name in MISSION_NETWORKS[kind]:
            bandwidth, delay = LINKS[name]
            for ranks in (1, 2, 4, 8, 16):
                a, b = (step_seconds(stage, alone[stage], ranks, bandwidth, delay, alone["cores"]) for stage in STEPS)
                # Stage A stays on one rank where more only wait.
                seconds = alone["embed"] / ranks + A_STEPS * min(a, alone["align"]) + B_STEPS * b
                put(table="mission", row=f"{kind}, {name}", column=many(ranks, "rank"), seconds=seconds, align_step=a, instruct_step=b)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, positions in {"models": ["llink", "folder"], "ring": ["speed"], "train": ["llink", "folder"], "embed": ["llink"], "predict": []}.items():
        command = commands.add_parser(name)
        for position in positions:
            command.add_argument(position, type=lambda path: pathlib.Path(path).resolve())
        if name == "predict":
            continue
        command.add_argument("--share", type=float, default={"embed": 0.2}.get(name, 0.4), help="of a core, for each worker")
        command.add_argument("--ranks", type=int, nargs="+", default={"embed": [1, 2, 4, 8], "ring": [2, 4]}.get(name, [1, 2, 4]), help="the numbers of ranks or workers")
        command.add_argument("--networks", type=lambda text: tuple(map(float, text.split(","))), nargs="+", metavar="MBIT,MS")
        if name == "train":
            command.add_argument("--stage", choices=["align", "instruct"], default="align")
    options = parser.parse_args()
    try:
        globals()[options.command](options)
    finally:
        # `predict` may run beside another command, whose groups these are.
        for group in GROUPS.glob("llbench*") if options.command != "predict" else []:
            group.rmdir()


if __name__ == "__main__":
    main()
