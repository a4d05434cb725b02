"""Read and write model files: safetensors headers, shards and tensors, hashes, atomic writes."""
