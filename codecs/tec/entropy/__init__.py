"""Integers to bytes and back: probability tables, the coder, rounding that two machines share."""
