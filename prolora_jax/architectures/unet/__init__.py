"""UNets of the Stable Diffusion kind."""
