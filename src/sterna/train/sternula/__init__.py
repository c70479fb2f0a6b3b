"""Sternula, the small checkpoint in the box: its training data, tokenizer, chat template and training."""
