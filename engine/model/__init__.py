"""Compute a batch's final hidden states, and vectors or scores from them."""
