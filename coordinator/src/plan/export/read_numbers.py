SIGNS = dict(zip("٫．٬，：／＋٪％＄’\u00a0\u2007\u2009\u202f\u3000‐‑‒–−－µμ", "..,,:/+%%$'     ------uu"))


def numbers(text):
    """The line beside the slots: the numbers of the text in ASCII, found by the rules of the training."""
    rules = config["prompt"]["numbers"]
    text = cleaned(text)[: config["encoder"]["max_chars"]]
    text = "".join(SIGNS.get(c, str(unicodedata.decimal(c, c))) for c in text)

    def joined(found):
        groups = found[0].split(" ")
        thousands = len(groups[0]) < 4 and groups[0][0] in "123456789" and all(len(group) == 3 for group in groups[1:])
        return "_".join(groups) if thousands else found[0]

    def decimal(numeral):
        parts, marks = re.split("[^0-9]", numeral), re.sub("[0-9]", "", numeral)
        if not marks:
            return numeral

        def grouped(parts):
            if len(parts) < 2 or len(parts[-1]) != 3 or parts[0][0] == "0":
                return False
            return any(len(parts[0]) <= n and all(len(part) == n for part in parts[1:-1]) for n in (2, 3))

        whole, last = "".join(parts[:-1]), marks[-1]
        if len(set(marks)) == 1:
            if grouped(parts) and (last in "_'" or len(marks) > 1):
                return "".join(parts)
            return f"{whole}.{parts[-1]}" if len(marks) == 1 and last in ".," and not grouped(parts) else numeral
        fits = set(marks[:-1]) == {marks[0]} and last in ".," and marks[0] != last and grouped(parts[:-1])
        return f"{whole}.{parts[-1]}" if fits else numeral

    def name(spelling):
        lower = spelling.lower()
        for known in (spelling, lower, lower.removesuffix("s")):
            if known in rules["names"]:
                return rules["names"][known]
        return "".join(c if c.isascii() else rules["names"].get(c, c) for c in spelling)

    written = []
    text = re.sub("[.,:/'-]?[0-9]+(?: [0-9]+)+", joined, text)
    for found in re.finditer(rules["pattern"], text):
        sign, money, *parts = found.group("sign", "money", "body", "scale", "alone", "symbol", "unit", "nth")
        body, scale, alone, *unit = (part or "" for part in parts)
        before, unit, scale = text[: found.start()][-1:], "".join(unit), scale + alone
        if not sign and not money and (before.islower() or before.isupper()):
            continue  # a part of a name, such as H1N1
        if money and unit == "m":
            scale, unit = "mn", ""
        last = name(unit)
        minus = "-" if sign == "-" and (not before or before in " ([") else ""
        body = minus + "".join(decimal(part) if part[:1].isdigit() else part for part in re.split("([-/:])", body))
        first = name((money or "").strip()) if not last else ""
        space = "" if last in ("", "%", "st", "nd", "rd", "th") else " "
        written.append(" ".join(part for part in (first, body, name(scale)) if part) + space + last)
    return "\n" + ", ".join(written) if written else ""
