"""INT8 and FP8: calibration, Q/DQ, sensitivity, recipes. Works on ONNX graphs; never imports torch of its own accord."""
