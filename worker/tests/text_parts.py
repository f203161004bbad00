"""What the windows and the sentences of a text must give, in PyTorch: vectors, slots, losses, gradients and optimizer steps.

    python text_parts.py fixtures/golden/seed8 fixtures/golden

reads the models and the batch of the first folder and writes `windows` and `sentences` into the second, with which golden_models.rs
and golden_instruct.rs compare. Symbols: B batch, G sentences of the whole batch, T tokens, d_e encoder width, d decoder width, W
windows, K slots. Without sentences, G is B.
"""
import json
import os
import sys

import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

W, K, STEPS = 2, 4, 4
SENTENCES = [1, 2, 3, 1, 1, 1, 1, 1]  # of each text of the batch
WEIGHTS = {"usage": 0.5, "cosine": 0.05, "info_nce": 1e-3}
RATES = {"lora": 1e-3, "expander": 3e-4, "scale": 5e-3, "projector": 1e-3}
TAU, USAGE_EVERY, DECAY, CLIP = 0.07, 3, 0.01, 1.0


def vectors(states, windows):
    """A text's vector and those of its windows: states [T, d_e] -> [1 + W, d_e].

    Window w is the mean of the positions from T*w//W up to T*(w + 1)//W, and of at least one position.
    """
    at = [len(states) * w // windows for w in range(windows + 1)] if windows else []
    return torch.stack([states.mean(0)] + [states[a : max(b, a + 1)].mean(0) for a, b in zip(at, at[1:])])


class Projector(nn.Module):
    """[..., d_e] -> [..., d], the same for a text and its windows."""

    def __init__(self, d_e, hidden, d):
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(d_e, hidden), nn.Linear(hidden, d), nn.LayerNorm(d)

    def forward(self, e):
        return self.norm(self.down(F.gelu(self.up(e))))


class SlotExpander(nn.Module):
    """Projected vectors [G, 1 + W, d] -> slots [G, K, d]. Slot k gets the residual x_k of the text and u of window k*W//K."""

    def __init__(self, d, hidden, median_norm):
        super().__init__()
        self.d, self.median_norm = d, median_norm
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.up, self.down, self.norm = nn.Linear(d, hidden), nn.Linear(hidden, K * d), nn.LayerNorm(d)

    def forward(self, v):
        u = self.scale * F.layer_norm(v, (self.d,))
        x = self.norm(self.down(F.gelu(self.up(u[:, 0]))).view(-1, K, self.d))
        windows = v.size(1) - 1
        of_windows = u[:, 1:].repeat_interleave(K // windows, 1) if windows else 0
        return self.median_norm * F.normalize(x + of_windows, dim=-1)


def losses(decoder, slots, batch, sentences, step):
    """Stage B's losses. `sentences` has the number of each text's sentences; the mean is over all slots of a text."""
    embed = decoder.get_input_embeddings()(batch["ids"])
    place = torch.zeros(batch["ids"].shape, dtype=torch.bool)
    for row, positions in enumerate(batch["positions"]):
        place[row, positions[positions >= 0]] = True

    def sft_with(values):
        filled = embed.masked_scatter(place.unsqueeze(-1).expand_as(embed), values)
        logits = decoder(inputs_embeds=filled, attention_mask=batch["mask"]).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100)

    sft, usage = sft_with(slots), torch.zeros(())
    if step % USAGE_EVERY == 0:
        with torch.no_grad():
            zero = sft_with(torch.zeros_like(slots))
        usage = torch.relu(sft - zero)
    means = torch.stack([of_text.flatten(0, 1).mean(0) for of_text in slots.split(sentences)])
    students, teachers = F.normalize(means, dim=-1), F.normalize(batch["teacher"], dim=-1)
    found = {
        "sft": sft,
        "usage": usage,
        "cosine": (1 - (students * teachers).sum(-1)).mean(),
        "info_nce": F.cross_entropy(students @ teachers.T / TAU, torch.arange(len(students))),
    }
    return {"loss": sft + sum(weight * found[name] for name, weight in WEIGHTS.items()), **found}


def longer(batch, sentences):
    """The batch with K slots for each sentence of a text, in the place of its K slots. Unused places at the end are padding."""
    columns = {name: [] for name in batch}
    for row, count in enumerate(sentences):
        first, after = int(batch["positions"][row, 0]), int(batch["positions"][row, -1]) + 1
        for name in ("ids", "labels", "mask"):
            values = batch[name][row]
            columns[name].append(torch.cat([values[:first], values[first:after].repeat(count), values[after:]]))
        columns["positions"].append(torch.arange(first, first + count * K))
    padding = {"ids": 0, "labels": -100, "mask": 0, "positions": -1}
    pad = nn.utils.rnn.pad_sequence
    return {name: pad(rows, batch_first=True, padding_value=padding[name]) for name, rows in columns.items()}


def main(source, target):
    write(source, f"{target}/windows", W, None)
    write(source, f"{target}/sentences", 0, SENTENCES)


def write(source, target, windows, sentences):
    torch.manual_seed(19)
    known = load_file(f"{source}/tensors.safetensors")
    cases = json.load(open(f"{source}/cases.json", encoding="utf-8"))
    encoder = AutoModel.from_pretrained(f"{source}/encoder").eval()
    decoder = AutoModelForCausalLM.from_pretrained(f"{source}/decoder")
    decoder = PeftModel.from_pretrained(decoder, f"{source}/lora_init", is_trainable=True).eval()
    with torch.no_grad():
        states = [encoder(torch.tensor([ids])).last_hidden_state[0] for ids in cases["encoder"]["ids"]]
    batch = {name: known[f"instruct.{name}"] for name in ("ids", "labels", "mask", "positions")}
    if sentences:
        batch, out = longer(batch, sentences), {}
    else:
        sentences = [1] * len(batch["ids"])
        out = {f"vectors.{windows}": torch.stack([vectors(s, windows) for s in states]) for windows in (windows, 8)}
    out |= {f"instruct.{name}": value for name, value in batch.items()} | {"teacher": known["teacher"]}
    batch["teacher"] = known["teacher"]
    out["instruct.vectors"] = torch.stack([vectors(s, windows) for s in states[: sum(sentences)]])
    d_e, d = out["instruct.vectors"].size(-1), batch["teacher"].size(-1)
    median_norm = float(decoder.get_input_embeddings().weight.norm(dim=-1).median())
    projector, expander = Projector(d_e, 16, d), SlotExpander(d, 12, median_norm)
    with torch.no_grad():  # a projector after Stage A has no fresh LayerNorm
        projector.norm.weight.uniform_(0.5, 2.0)
        projector.norm.bias.normal_(0, 0.3)
        expander.scale.fill_(0.8)
    trained = [(f"projector.{k}", p) for k, p in projector.named_parameters()] + list(expander.named_parameters())
    keep = lambda when, of: out.update({f"instruct.{when}.{name}": of(p).detach().clone() for name, p in trained})
    keep("init", lambda p: p)

    lora = [p for p in decoder.parameters() if p.requires_grad]
    rest = [p for name, p in expander.named_parameters() if name != "scale"]
    optimizer = torch.optim.AdamW(
        [{"params": lora, "lr": RATES["lora"]}, {"params": rest, "lr": RATES["expander"]},
         {"params": projector.parameters(), "lr": RATES["projector"]},
         {"params": [expander.scale], "lr": RATES["scale"], "weight_decay": 0.0}],
        betas=(0.9, 0.999), eps=1e-8, weight_decay=DECAY)
    trace = []
    for step in range(STEPS):
        optimizer.zero_grad()
        found = losses(decoder, expander(projector(out["instruct.vectors"])), batch, sentences, step)
        found["loss"].backward()
        if step == 0:
            keep("grad0", lambda p: p.grad)
        norm = torch.nn.utils.clip_grad_norm_(lora + [p for _, p in trained], CLIP)
        optimizer.step()
        trace.append({"grad_norm": float(norm), **{name: float(value.detach()) for name, value in found.items()}})
    keep("final", lambda p: p)

    os.makedirs(target, exist_ok=True)
    save_file({name: value.contiguous() for name, value in out.items()}, f"{target}/tensors.safetensors")
    case = {"trace": trace, "median_norm": median_norm, "w_usage": WEIGHTS["usage"], "lr": RATES,
            "weight_decay": {"lora": DECAY}, "clip": CLIP}
    with open(f"{target}/cases.json", "w", encoding="utf-8") as file:
        json.dump({"instruct": case}, file, indent=1)
    print(f"wrote {target}: {trace[0]}")


main(*sys.argv[1:])
