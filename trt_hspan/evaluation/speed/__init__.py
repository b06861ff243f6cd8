"""Timing networks on this machine: behind `trt-hspan bench`."""
