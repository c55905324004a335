"""The small class-conditional DDPM: network, diffusion process, data and training."""
