import json
import os
import unicodedata

import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

bundle, encoder_id, decoder_id = ".", "ENCODER", "DECODER"


def pretrained(kind, name, **options):
    if not name.endswith(".gguf"):
        return kind.from_pretrained(name, **options)
    folder, file = os.path.split(name)
    model = kind.from_pretrained(folder or ".", gguf_file=file, **options)
    for weight in getattr(model, "parameters", list)():
        weight.data = weight.data.bfloat16().float()  # llink reads a GGUF file's weights in bf16
    return model


config = json.load(open(f"{bundle}/config.json"))
projector, expander = load_file(f"{bundle}/projector.safetensors"), load_file(f"{bundle}/slots.safetensors")
encoder, reader = AutoModel.from_pretrained(encoder_id).float().eval(), AutoTokenizer.from_pretrained(encoder_id)
decoder, speaker = pretrained(AutoModelForCausalLM, decoder_id, dtype=torch.float32), pretrained(AutoTokenizer, decoder_id)
decoder = PeftModel.from_pretrained(decoder, bundle).eval()


def linear(x, weights, name):
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def norm(x, weights):
    return F.layer_norm(x, x.shape[-1:], weights["norm.weight"], weights["norm.bias"])


# VECTOR


def slots(vector):
    v = norm(linear(F.gelu(linear(vector, projector, "up")), projector, "down"), projector)
    u = expander["scale"] * F.layer_norm(v, v.shape[-1:])
    # WINDOWS
    x = linear(F.gelu(linear(u, expander, "up")), expander, "down").view(config["slots"]["count"], -1)
    return config["slots"]["median_norm"] * F.normalize(norm(x, expander) + WINDOWS, dim=-1)


def prompt(instruction, slots, beside=""):
    # A slot's embedding takes the place of its token's: any token that no text holds parts the text where the slots stand.
    speaker.add_tokens(["<|llink slot|>"], special_tokens=True)
    place = "<|llink slot|>" * len(slots) + beside
    text = config["prompt"]["form"].replace("{slots}", place).replace("{instruction}", instruction.strip())
    ids = torch.tensor([speaker(text, add_special_tokens=False)["input_ids"]])
    place = ids == speaker.convert_tokens_to_ids("<|llink slot|>")
    embeddings = decoder.get_input_embeddings()(ids.masked_fill(place, 0))
    embeddings[place] = slots
    return embeddings


@torch.no_grad()
def answer(text, instruction):
    embeddings = prompt(instruction, slots(vector(text)), BESIDE)
    stop = config["prompt"]["stop"]
    mask = torch.ones(embeddings.shape[:2], dtype=torch.long)
    ids = decoder.generate(inputs_embeds=embeddings, attention_mask=mask, do_sample=False, max_new_tokens=128,
                           eos_token_id=stop, pad_token_id=stop[0])
    return speaker.decode(ids[0], skip_special_tokens=True)


print(answer("…", next(iter(config["prompt"]["instructions"].values()))))
