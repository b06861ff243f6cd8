"""`make gpu`: what this project can prove on the GPU at hand, in steps. docs/gpu.md describes them."""
