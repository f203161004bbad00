def vector(text):
    text, reads = cleaned(text), config["encoder"]
    text = reads["reading"]["prefix"] + text[: reads["max_chars"]]
    text = text.lower() if reads["reading"]["lowercase"] else text
    ids = reader(text)["input_ids"][: reads["max_tokens"]]
    states = encoder(torch.tensor([ids])).last_hidden_state[0]
    x = states[0] if reads["reading"]["pooling"] == "cls" else states.mean(0)
    # WINDOWS
    # DENSE
    x = F.normalize(x, dim=-1) if reads["reading"]["normalize"] else x
    return x[None].half().float()
