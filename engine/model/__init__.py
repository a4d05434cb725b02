"""Compute a batch's final hidden states, and vectors from them."""
