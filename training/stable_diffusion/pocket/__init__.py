"""A pocket Stable Diffusion: the modules of SD 1.5 at a size that two cores train, and a world for it to learn."""
