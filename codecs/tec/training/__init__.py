"""How the built-in checkpoints are made (extra ``train``): ``python -m tec.training --help``."""
