    u, windows = u[:, 0], u[0, 1:].repeat_interleave(config["slots"]["count"] // config["slots"]["windows"], 0)
