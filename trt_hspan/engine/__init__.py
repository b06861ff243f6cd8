"""Engine building: specs, the TensorRT binding, manifests, the plugin library. Never imports torch."""
