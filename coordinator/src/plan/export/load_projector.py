import json
import unicodedata

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

bundle, encoder_id = ".", "ENCODER"

config = json.load(open(f"{bundle}/config.json"))
projector = load_file(f"{bundle}/projector.safetensors")
statistics = load_file(f"{bundle}/{config['statistics']['file']}") if "statistics" in config else {}
encoder, reader = AutoModel.from_pretrained(encoder_id).float().eval(), AutoTokenizer.from_pretrained(encoder_id)


def linear(x, name):
    return F.linear(x, projector[f"{name}.weight"], projector[f"{name}.bias"])


# VECTOR


@torch.no_grad()
def project(text):
    x = linear(F.gelu(linear(vector(text), "up")), "down")
    return F.layer_norm(x, x.shape[-1:], projector["norm.weight"], projector["norm.bias"])


def seen(vectors):
    """Unit vectors whose products are the similarity that training compared projected and teacher vectors in."""
    if "metric.mean" in statistics:
        vectors = vectors - statistics["metric.mean"]
    if "metric.matrix" in statistics:
        vectors = vectors @ statistics["metric.matrix"]
    return F.normalize(vectors, dim=-1)


print(project("…").shape, seen(project("…")).shape)
