"""The classifier that judges samples: a small convolutional network, trained here on the real images."""
