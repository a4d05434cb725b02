"""Turn texts into token ids, one bounded group of texts at a time."""
