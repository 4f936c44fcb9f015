"""PSPNet in JAX: train and score scene parsing models on TPU, GPU or CPU.

`psp_jax.load("runs/NAME")` gives a trained network as a function.
"""

__version__ = "0.1.0"


def load(workdir, step=None, **options):
  """The network of a run's folder as a `segmenter.Segmenter`.

  Args:
    workdir: the folder.
    step: of the checkpoint; None: the last.
    **options: `scales`, `flip`, `window` and `base_size` of `Segmenter`.

  Raises:
    errors.UserError: there is no such run, or an option cannot be.
  """
  from psp_jax import segmenter  # Late: importing psp_jax costs nothing.
  return segmenter.load(workdir, step, **options)
