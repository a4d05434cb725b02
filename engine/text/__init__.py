"""Texts to token ids, a bounded group of texts at a time."""
