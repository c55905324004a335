"""What a bundle draws for sentences, judged: drawn by the torch-free runtime and read back into scenes."""
