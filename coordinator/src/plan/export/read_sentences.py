def sentences(text):
    """The sentences of the text, which are read one by one. The last one has the rest."""
    rules, text = config["slots"]["sentences"], cleaned(text)
    ends = [found.end() for found in re.finditer(rules["end"], text)][: max(rules["most"] - 1, 0)]
    pieces = [text[start:end].strip(" \u200b\u200c\u200d") for start, end in zip([0, *ends], [*ends, None])]
    return [piece for piece in pieces if piece] or [text]
