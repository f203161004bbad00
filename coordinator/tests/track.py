"""Serves MLflow and Trackio from a folder, prints their URLs, and after a line on stdin what they hold of the run."""

import json
import os
import socket
import sys
import threading

folder = sys.argv[1]
os.environ.update(
    _MLFLOW_SERVER_FILE_STORE=f"sqlite:///{folder}/mlflow.db", _MLFLOW_SERVER_ARTIFACT_ROOT=f"{folder}/artifacts",
    MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", TRACKIO_DIR=f"{folder}/trackio", TRACKIO_WRITE_TOKEN="write me",
)

from mlflow import MlflowClient
from mlflow.server import app
from trackio import Api
from trackio.launch import start_server
from trackio.server import build_starlette_app_only
from trackio.sqlite_storage import SQLiteStorage
from werkzeug.serving import make_server

import logging

logging.getLogger("werkzeug").setLevel(logging.ERROR)
mlflow = make_server("127.0.0.1", 0, app, threaded=True)
threading.Thread(target=mlflow.serve_forever, daemon=True).start()
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
start_server(build_starlette_app_only()[0], "127.0.0.1", port)
urls = {"mlflow": f"http://127.0.0.1:{mlflow.server_port}", "trackio": f"http://127.0.0.1:{port}"}
print(json.dumps(urls), flush=True)
sys.stdin.readline()

client = MlflowClient(urls["mlflow"])
experiment = client.get_experiment_by_name("tracked")
runs = client.search_runs([experiment.experiment_id])
assert len(runs) == 1, "a job that continues stays one run"
run = runs[0]
loss = client.get_metric_history(run.info.run_id, "align/loss")
[trackio] = Api().runs("tracked")
rows = SQLiteStorage.get_logs("tracked", trackio.name, run_id=trackio.id)
print(json.dumps({
    "mlflow": {"name": run.info.run_name, "status": run.info.status, "metrics": run.data.metrics, "params": run.data.params,
               "tags": run.data.tags, "steps": [point.step for point in loss]},
    "trackio": {"name": trackio.name, "config": trackio.config, "rows": rows},
}, default=str))
