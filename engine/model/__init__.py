"""A batch to final hidden states, and those to vectors."""
