"""Times a worker's four heavy jobs beside PyTorch in one run, and writes the tables of docs/benchmarks.md.

    python worker/benches/table.py run REFERENCE DIR > lines.jsonl
    python worker/benches/table.py write lines.jsonl    also takes the lines of other benches, which name their `table`

REFERENCE is a folder with the PyTorch baseline, `bench_reference.py`, and DIR is for random models of real size. `run`
needs torch, transformers and peft. With oneDNN's library in LLINK_ONEDNN, llink also computes in bf16, and the floor
has oneDNN's own products.
"""
import argparse, ctypes, json, os, pathlib, platform, re, statistics, subprocess, sys, time

ROOT = pathlib.Path(__file__).parents[2]
BEGIN, END = "<!-- Made by worker/benches/table.py. -->", "<!-- The end of the table. -->"
# The tables of other benches: what a row is, and the text of a cell. Of several runs the one with the median time is shown.
TABLES = {
    "readers": ("file", lambda it: f"{it['rows_per_s'] / 1e3:,.0f}k rows/s, {it['mb_per_s']:.0f} MB/s, {it['peak_rss_mib']} MiB"),
    "submit": ("", lambda it: f"{it['seconds']:.1f} s" + (f", {it['share']:.2f} of the cores" if "share" in it else "")),
    "waits": ("stage", lambda it: f"{it['share']:.3f}"),
    "memory": ("process", lambda it: f"{it['peak_rss_mib']} MiB"),
    "checkpoints": ("stage", lambda it: f"{it['seconds']:.2f} s for {it['steps']} steps, {it['made']} checkpoints"),
    "ring": ("bandwidth, delay of one way", lambda it: f"{it['seconds'] * 1e3:,.0f} ms, {it['predicted'] * 1e3:,.0f} ms predicted"),
    "scaling-align": ("bandwidth, delay of one way", lambda it: f"{it['seconds'] * 1e3:,.0f} ms, {it['predicted'] * 1e3:,.0f} ms predicted"),
    "scaling-instruct": ("bandwidth, delay of one way", lambda it: f"{it['seconds']:.1f} s, {it['predicted']:.1f} s predicted"),
    "scaling-embed": ("stage", lambda it: f"{it['seconds']:.1f} s"),
    "mission": ("a rank is, network", lambda it: f"{it['seconds'] / 3600:.1f} h" if it["seconds"] >= 3600 else f"{it['seconds']:.0f} s"),
    "tokenize": ("threads", lambda it: f"{it['tokens_per_s'] / 1e3:,.0f}k tokens/s, {it['mb_per_s']:.1f} MB/s"),
}
JOBS = {
    "embed": ("tokens_per_s", ["--n", "256"], ["f32", "bf16"]),
    "teacher": ("tokens_per_s", ["--n", "48"], ["f32", "bf16"]),
    "align 128": ("step_ms", ["--batch", "128", "--steps", "8"], ["f32"]),
    "align 1024": ("step_ms", ["--batch", "1024", "--steps", "4"], ["f32"]),
    "instruct": ("step_s", ["--steps", "2"], ["f32", "bf16"]),
}
SHAPES = [(1024, 768, 3072), (1024, 2048, 8192), (64, 2048, 8192)]
# The most operations of one core in a cycle, by the flag of the processor. Some models reach half of it.
PER_CYCLE = {"bf16": [("amx_bf16", 2048), ("avx512_bf16", 128)], "f32": [("avx512f", 64), ("fma", 32)]}


def last_line(command, **options):
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout.splitlines()[-1])


def bench():
    built = subprocess.run(["cargo", "bench", "--workspace", "--bench", "speed", "--no-run", "--message-format", "json"],
                           check=True, capture_output=True, text=True, cwd=ROOT).stdout
    found = [json.loads(line) for line in built.splitlines()]
    return next(it["executable"] for it in found if it.get("target", {}).get("name") == "speed" and it.get("executable"))


def best_rate(work, operations):
    times = []
    for _ in range(10):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return operations / min(times) / 1e9


def floor():
    """The rates of products by the libraries at hand, in GFLOP/s, on the shapes of the jobs."""
    import numpy, torch
    for m, k, n in SHAPES:
        x, w = numpy.ones((m, k), numpy.float32), numpy.ones((n, k), numpy.float32)
        yield "numpy's BLAS", "f32", (m, k, n), best_rate(lambda: x @ w.T, 2 * m * k * n)
        for name, dtype in [("f32", torch.float32), ("bf16", torch.bfloat16)]:
            x2, w2 = torch.ones(m, k, dtype=dtype), torch.ones(n, k, dtype=dtype)
            yield "PyTorch", name, (m, k, n), best_rate(lambda: torch.nn.functional.linear(x2, w2), 2 * m * k * n)
            if os.environ.get("LLINK_ONEDNN"):
                yield "oneDNN", name, (m, k, n), onednn(os.environ["LLINK_ONEDNN"], name, m, k, n)


def onednn(library, dtype, m, k, n):
    import numpy
    dnnl = ctypes.CDLL(library)

    def made(call, *arguments):
        handle = ctypes.c_void_p()
        if status := getattr(dnnl, call)(ctypes.byref(handle), *arguments):
            raise SystemExit(f"{call} of {library} fails with status {status}")
        return handle

    class Argument(ctypes.Structure):
        _fields_ = [("index", ctypes.c_int), ("memory", ctypes.c_void_p)]

    code, size = {"bf16": (2, 2), "f32": (3, 4)}[dtype]
    engine = made("dnnl_engine_create", 1, ctypes.c_size_t(0))
    stream = made("dnnl_stream_create", engine, 1)
    lengths = ctypes.c_int64 * 12
    parts = [(1, (m, k), code, (k, 1), size), (33, (k, n), code, (1, k), size), (17, (m, n), 3, (n, 1), 4)]
    described = [made("dnnl_memory_desc_create_with_strides", 2, lengths(*dims), kind, lengths(*strides)) for _, dims, kind, strides, _ in parts]
    arrays = [numpy.zeros(dims[0] * dims[1] * size, numpy.uint8) for _, dims, _, _, size in parts]
    memory = [made("dnnl_memory_create", it, engine, array.ctypes.data_as(ctypes.c_void_p)) for it, array in zip(described, arrays)]
    matmul = made("dnnl_primitive_create", made("dnnl_matmul_primitive_desc_create", engine, described[0], described[1], None, described[2], None))
    arguments = (Argument * 3)(*(Argument(part[0], it) for part, it in zip(parts, memory)))

    def product():
        dnnl.dnnl_primitive_execute(matmul, stream, 3, arguments)
        dnnl.dnnl_stream_wait(stream)

    return best_rate(product, 2 * m * k * n)


def peaks():
    """The most that the processor's instructions allow, in GFLOP/s, at the clock that the system names."""
    text = pathlib.Path("/proc/cpuinfo").read_text()
    flags = set(re.search(r"^flags\s*:(.*)$", text, re.M)[1].split())
    clock = max(float(it) for it in re.findall(r"^cpu MHz\s*:\s*(\S+)$", text, re.M)) / 1e3
    for dtype, known in PER_CYCLE.items():
        for flag, operations in known:
            if flag in flags:
                yield dtype, flag, operations * clock * os.cpu_count()
                break


def run(reference, folder, rounds):
    speed, peer = bench(), [sys.executable, reference / "bench_reference.py"]
    if not (folder / "decoder_ids.json").exists():
        subprocess.run([*peer, "prepare", folder], check=True, stdout=sys.stderr)
    import torch
    model = re.search(r"^model name\s*:\s*(.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.M)[1]
    put(kind="machine", processor=model, cores=os.cpu_count(), date=time.strftime("%Y-%m-%d"), torch=torch.__version__, python=platform.python_version())
    for dtype, flag, rate in peaks():
        put(kind="peak", dtype=dtype, flag=flag, gflops=rate)
    for library, dtype, shape, rate in floor():
        put(kind="floor", library=library, dtype=dtype, shape=shape, gflops=rate)
    for job, (_, options, dtypes) in JOBS.items():
        for _ in range(rounds):
            for dtype in dtypes:
                for engine, command in [("llink", [speed]), ("PyTorch", peer)]:
                    if engine == "llink" and dtype == "bf16" and not os.environ.get("LLINK_ONEDNN"):
                        continue
                    line = last_line([*command, job.split()[0], folder, "--dtype", dtype, *options])
                    put(**{**line, "kind": "job", "job": job, "engine": engine})


def put(**line):
    print(json.dumps(line), flush=True)


def table(lines):
    machine = next(it for it in lines if it["kind"] == "machine")
    runs = sum(1 for it in lines if it["kind"] == "job" and (it["job"], it["engine"], it["dtype"]) == ("embed", "llink", "f32"))
    yield f"{machine['processor']}, {machine['cores']} cores, {machine['date']}, PyTorch {machine['torch']}. Runs of each job: {runs}, of which the median is shown.\n"
    yield "| job | PyTorch f32 | PyTorch bf16 | llink f32 | llink bf16 | best llink against best PyTorch |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for job, (key, _, _) in JOBS.items():
        cells, best = [], {}
        for engine in ["PyTorch", "llink"]:
            for dtype in ["f32", "bf16"]:
                runs = [it for it in lines if it["kind"] == "job" and (it["job"], it["engine"], it["dtype"]) == (job, engine, dtype)]
                if not runs:
                    cells.append("")
                    continue
                value = statistics.median(it[key] for it in runs)
                memory = max(it["peak_rss_mib"] for it in runs) / 1024
                cells.append(shown(key, value) + f", {memory:.1f} GiB")
                faster = max if key == "tokens_per_s" else min
                best[engine] = faster(best.get(engine, value), value)
        share = best["llink"] / best["PyTorch"]
        yield f"| `{job}` | {' | '.join(cells)} | {share:.2f} × of the {'speed' if key == 'tokens_per_s' else 'time'} |"
    yield "\nThe floor is the rate of products by the libraries at hand, in GFLOP/s:\n"
    libraries = list(dict.fromkeys((it["library"], it["dtype"]) for it in lines if it["kind"] == "floor"))
    yield "| rows × depth · columns | " + " | ".join(f"{library} {dtype}" for library, dtype in libraries) + " |"
    yield "| --- |" + " --- |" * len(libraries)
    for shape in SHAPES:
        rates = [next((f"{it['gflops']:.0f}" for it in lines if it["kind"] == "floor" and tuple(it["shape"]) == shape
                       and (it["library"], it["dtype"]) == named), "") for named in libraries]
        yield f"| {shape[0]} × {shape[1]} · {shape[2]} | {' | '.join(rates)} |"
    peak = [f"{it['gflops']:.0f} in {it['dtype']} ({it['flag']})" for it in lines if it["kind"] == "peak"]
    yield f"\nThe instructions of the processor allow at most {' and '.join(peak)}, at the clock that the system names."


def shown(key, value):
    return {"tokens_per_s": f"{value:,.0f} tokens/s", "step_ms": f"{value:.0f} ms", "step_s": f"{value:.1f} s"}[key]


def pivot(lines, name):
    """The table of a bench whose lines name their row and column."""
    (title, cell), found = TABLES[name], {}
    for line in lines:
        if line.get("table") == name:
            found.setdefault((line["row"], line["column"]), []).append(line)
    rows, columns = (list(dict.fromkeys(place[axis] for place in found)) for axis in (0, 1))
    yield f"| {title} | {' | '.join(columns)} |"
    yield "| --- |" + " --- |" * len(columns)
    for row in rows:
        runs = [sorted(found.get((row, column), []), key=lambda it: it["seconds"]) for column in columns]
        yield f"| {row} | " + " | ".join(cell(them[len(them) // 2]) if them else "" for them in runs) + " |"


def write(lines):
    page = ROOT / "docs/benchmarks.md"
    text = page.read_text()
    jobs = [line for line in lines if "kind" in line]
    made = {BEGIN: table(jobs)} if jobs else {}
    made |= {BEGIN.replace(". -->", f": {name}. -->"): pivot(lines, name) for name in {line["table"] for line in lines if "table" in line}}
    for begin, rows in made.items():
        before, mark, rest = text.partition(begin)
        if not mark:
            raise SystemExit(f"{page} has no place for the table: {begin}")
        _, _, after = rest.partition(END)
        text = before + begin + "\n" + "\n".join(rows) + "\n" + END + after
    page.write_text(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run")
    command.add_argument("reference", type=pathlib.Path)
    command.add_argument("folder", type=pathlib.Path)
    command.add_argument("--rounds", type=int, default=3)
    commands.add_parser("write").add_argument("lines", type=pathlib.Path)
    options = parser.parse_args()
    if options.command == "run":
        return run(options.reference, options.folder, options.rounds)
    write([json.loads(line) for line in options.lines.read_text().splitlines()])


if __name__ == "__main__":
    main()
