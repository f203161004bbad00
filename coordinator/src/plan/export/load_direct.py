import json

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

bundle, decoder_id = ".", "DECODER"

config = json.load(open(f"{bundle}/config.json"))
decoder, speaker = AutoModelForCausalLM.from_pretrained(decoder_id).float(), AutoTokenizer.from_pretrained(decoder_id)
decoder = PeftModel.from_pretrained(decoder, bundle).eval()


def prompt(instruction, text):
    def tokens(text):
        return speaker(text, add_special_tokens=False)["input_ids"]

    before, after = config["prompt"]["form"].format(instruction=instruction, text="\0").split("\0")
    return torch.tensor([tokens(before) + tokens(text)[: config["prompt"]["text_tokens"]] + tokens(after)])


@torch.no_grad()
def answer(text, instruction):
    ids = prompt(instruction, text)
    stop = speaker.convert_tokens_to_ids(config["prompt"]["stop"])
    said = decoder.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=128,
                            eos_token_id=stop, pad_token_id=stop)
    return speaker.decode(said[0, ids.shape[1]:], skip_special_tokens=True)


print(answer("…", next(iter(config["prompt"]["instructions"].values()))))
