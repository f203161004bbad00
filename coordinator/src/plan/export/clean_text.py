def cleaned(text):
    return " ".join(unicodedata.normalize("NFC", text).split()).strip("\u200b\u200c\u200d ")
