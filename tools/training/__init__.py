"""Training of the demo networks on a CPU. Needs the `training` extra; no other package imports this one."""
