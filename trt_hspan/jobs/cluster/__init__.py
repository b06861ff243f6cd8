"""Many pictures on many machines: Ray Data schedules, `trt_hspan.upscaling` does the pictures."""
