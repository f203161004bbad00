import json
import os
import unicodedata

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

bundle, decoder_id = ".", "DECODER"


def pretrained(kind, name, **options):
    if not name.endswith(".gguf"):
        return kind.from_pretrained(name, **options)
    folder, file = os.path.split(name)
    model = kind.from_pretrained(folder or ".", gguf_file=file, **options)
    for weight in getattr(model, "parameters", list)():
        weight.data = weight.data.bfloat16().float()  # llink reads a GGUF file's weights in bf16
    return model


config = json.load(open(f"{bundle}/config.json"))
decoder, speaker = pretrained(AutoModelForCausalLM, decoder_id, dtype=torch.float32), pretrained(AutoTokenizer, decoder_id)
decoder = PeftModel.from_pretrained(decoder, bundle).eval()


# CLEANED


def cut(text):
    at = speaker(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    count = config["prompt"]["text_tokens"]
    if len(at) <= count:
        return text
    while count and at[count][0] < at[count - 1][1]:  # in the middle of a character
        count -= 1
    return text[: at[count - 1][1]] if count else ""


def prompt(instruction, text):
    before, after = config["prompt"]["form"].split("{instruction}")
    text = before + instruction.strip() + after.replace("{text}", cut(cleaned(text)))
    return torch.tensor([speaker(text, add_special_tokens=False)["input_ids"]])


@torch.no_grad()
def answer(text, instruction):
    ids = prompt(instruction, text)
    stop = config["prompt"]["stop"]
    said = decoder.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=128,
                            eos_token_id=stop, pad_token_id=stop[0])
    return speaker.decode(said[0, ids.shape[1]:], skip_special_tokens=True)


print(answer("…", next(iter(config["prompt"]["instructions"].values()))))
