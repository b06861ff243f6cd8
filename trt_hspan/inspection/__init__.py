"""What files and machines are: behind `trt-hspan inspect` and `trt-hspan doctor`."""
