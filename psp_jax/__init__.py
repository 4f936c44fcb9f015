"""PSPNet in JAX: train and score scene parsing models on TPU, GPU or CPU."""

__version__ = "0.1.0"
