"""What is shipped: trained networks as ONNX graphs, held against PyTorch, in a bundle that says everything."""
