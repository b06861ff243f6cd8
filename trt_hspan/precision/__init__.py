"""INT8 and FP8: calibration, Q/DQ, sensitivity, recipes. Works on ONNX graphs; only checkpoints need torch."""
