"""The networks, one file an architecture. They import torch; this file does not."""
