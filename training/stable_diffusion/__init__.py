"""Stable Diffusion 1.5 from scratch: text encoder, UNet, VAE, and readers for the checkpoints that people have."""
