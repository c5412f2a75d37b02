"""Version control for machine learning. `replicate.init()` and `experiment.checkpoint()` keep every
run; `replicate.experiments` and the `replicate` command get it back."""

__version__ = "0.1.0"
