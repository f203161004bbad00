import json

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

bundle, encoder_id = ".", "ENCODER"

config = json.load(open(f"{bundle}/config.json"))
projector = load_file(f"{bundle}/projector.safetensors")
encoder, reader = AutoModel.from_pretrained(encoder_id).float().eval(), AutoTokenizer.from_pretrained(encoder_id)


def linear(x, name):
    return F.linear(x, projector[f"{name}.weight"], projector[f"{name}.bias"])


# VECTOR


@torch.no_grad()
def project(text):
    x = linear(F.gelu(linear(vector(text), "up")), "down")
    return F.layer_norm(x, x.shape[-1:], projector["norm.weight"], projector["norm.bias"])


print(project("…").shape)
