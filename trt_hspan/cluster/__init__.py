"""Many pictures on many machines: Ray Data schedules, `trt_hspan.runtime` does the pictures."""
