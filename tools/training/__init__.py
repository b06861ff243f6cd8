"""Training of the demo networks on a CPU. Needs the extra `training`."""
