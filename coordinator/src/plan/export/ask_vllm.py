import base64
import io
from urllib.request import Request, urlopen


def ask(text, instruction, server="http://localhost:8000", model="merged"):
    content, stop = io.BytesIO(), config["prompt"]["stop"]
    with torch.no_grad():
        torch.save(prompt(instruction, slots(vector(text)), BESIDE)[0].bfloat16(), content)
    request = {"model": model, "prompt_embeds": base64.b64encode(content.getvalue()).decode(), "max_tokens": 128,
               "temperature": 0, "stop_token_ids": stop}
    request = Request(f"{server}/v1/completions", json.dumps(request).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=600) as answer:
        return json.load(answer)["choices"][0]["text"]
