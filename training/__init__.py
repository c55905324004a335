"""What is learned: models, losses and training loops in PyTorch."""
