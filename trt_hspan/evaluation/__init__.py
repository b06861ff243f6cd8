"""How good a result is: metrics, data sets, comparing runners. Never imports torch or TensorRT itself."""
