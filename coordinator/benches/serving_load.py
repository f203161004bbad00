"""Measures how many tokens a second an OpenAI-style server answers with, and prints one JSON line.

    python coordinator/benches/serving_load.py http://127.0.0.1:8080/v1 [--clients 16] [--requests 64] [--tokens 64]
    python coordinator/benches/serving_load.py --llama MODEL.gguf       llama.cpp's server (PyPI's `xllamacpp`) with that model

The requests are English questions, so that servers with the same decoder do the same work. Answers are greedy.
"""
import argparse, concurrent.futures, json, os, statistics, time, urllib.request

QUESTIONS = [
    "Explain in a few sentences why the sky is blue.", "Write a short story about a fisherman and his boat.",
    "List reasons to learn a second language, with an example for each.", "Describe how rice is grown, step by step.",
    "What should a traveler know before a visit to Cambodia?", "Explain how a bicycle stays upright.",
    "Write a letter to a friend about a rainy day.", "Describe the work of a teacher in a village.",
]


def ask(url, question, tokens):
    body = {"model": "llink", "messages": [{"role": "user", "content": question}], "max_tokens": tokens, "temperature": 0}
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    start = time.perf_counter()
    with urllib.request.urlopen(request, timeout=600) as answer:
        usage = json.load(answer)["usage"]
    return time.perf_counter() - start, usage["completion_tokens"]


def llama(path, clients):
    import xllamacpp
    params = xllamacpp.CommonParams()
    params.model.path, params.n_parallel, params.n_ctx = path, clients, 512 * clients
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count()
    server = xllamacpp.Server(params)
    return server, f"{server.listening_address}/v1"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?")
    parser.add_argument("--llama", metavar="MODEL.gguf")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    server, url = llama(options.llama, options.clients) if options.llama else (None, options.url)
    ask(url, QUESTIONS[0], 4)
    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(options.clients) as pool:
        # Each question is asked with a number before it, because a server may keep the answers of equal requests.
        texts = [f"Question {at}. {QUESTIONS[at % len(QUESTIONS)]}" for at in range(options.requests)]
        answers = list(pool.map(lambda text: ask(url, text, options.tokens), texts))
    seconds = time.perf_counter() - start
    tokens = sum(count for _, count in answers)
    print(json.dumps({"server": "llama.cpp" if server else url, "clients": options.clients, "requests": options.requests, "tokens": tokens,
                      "seconds": round(seconds, 2), "tokens_per_s": round(tokens / seconds, 1),
                      "request_s": round(statistics.median(took for took, _ in answers), 2)}), flush=True)
    if server:
        os._exit(0)


main()
