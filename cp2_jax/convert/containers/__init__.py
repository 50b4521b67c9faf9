"""From the bytes of a checkpoint file to named arrays: pickle, zip, TensorFlow, NumPy, safetensors. Nothing is executed."""
