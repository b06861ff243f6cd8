"""The network in PyTorch: sizes, modules, checkpoints. What is shipped, `presets`, needs no torch."""
