"""`python -m trt_hspan` and the `trt-hspan` command."""

from trt_hspan.cli import main

if __name__ == "__main__":
    main()
