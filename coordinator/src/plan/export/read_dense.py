    import os
    from huggingface_hub import snapshot_download
    for name in DENSE:
        folder = encoder_id if os.path.isdir(encoder_id) else snapshot_download(encoder_id, allow_patterns=f"{name}/*")
        layer, options = load_file(f"{folder}/{name}/model.safetensors"), json.load(open(f"{folder}/{name}/config.json"))
        x = F.linear(x, layer["linear.weight"], layer.get("linear.bias"))
        x = x if options["activation_function"].endswith("Identity") else torch.tanh(x)
