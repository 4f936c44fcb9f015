"""Published weights into our parameter trees; one module a family."""

from psp_jax.pretrained.keras_resnet import load_backbone

__all__ = ["load_backbone"]
