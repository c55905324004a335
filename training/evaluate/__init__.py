"""What a bundle draws, judged: drawn by the torch-free runtime, as people will draw it, and read by a classifier."""
