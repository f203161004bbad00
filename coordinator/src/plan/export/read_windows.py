    count = config["slots"]["windows"]
    at = [len(states) * i // count for i in range(count + 1)]
    x = torch.stack([x] + [states[a : max(b, a + 1)].mean(0) for a, b in zip(at, at[1:])])  # the text, then its windows
