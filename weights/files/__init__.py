"""Files: safetensors headers, shards, tensors read and written, files that appear whole."""
