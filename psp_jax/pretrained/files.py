"""Weight files as {name: numpy array}; no code in a file is ever run."""

import pathlib
import pickle

import numpy as np

from psp_jax.errors import CheckpointError

# Where training programs keep the weights inside their files.
_WRAPPERS = ("state_dict", "model_state_dict", "model")


def read(path: str) -> dict[str, np.ndarray]:
  """The arrays of a .pth, .pt, .safetensors, .npz or .h5 file.

  DataParallel's "module." prefix is taken off.

  Raises:
    CheckpointError: there is no such file, it is of no such kind, or what is
      needed to read it is not installed.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise CheckpointError(f"{path}: no such file")
  reader = _READERS.get(file.suffix.lower())
  if reader is None:
    raise CheckpointError(f"{path}: weights are read from "
                          f"{', '.join(_READERS)} files")
  tensors = reader(file)
  if not tensors:
    raise CheckpointError(f"{path}: holds no arrays")
  return {name.removeprefix("module."): value
          for name, value in tensors.items()}


def _read_torch(path):
  try:
    import torch
  except ImportError as error:
    raise CheckpointError(
        f"{path}: reading {path.suffix} needs PyTorch: pip install -e "
        "'.[torch]' (a .safetensors file does not)") from error
  try:
    found = torch.load(path, map_location="cpu", weights_only=True)
  except pickle.UnpicklingError as error:
    raise CheckpointError(
        f"{path}: not a PyTorch file of tensors alone. Objects of other kinds "
        "would have to run code to be loaded; where you trust the file, write "
        "its tensors anew: torch.save(torch.load(path, weights_only=False)"
        f"['state_dict'], 'clean.pth') ({str(error).splitlines()[0]})"
    ) from error
  except Exception as error:  # Whatever the bytes make the library raise.
    raise CheckpointError(
        f"{path}: not a readable PyTorch file ({error})") from error
  for wrapper in _WRAPPERS:
    if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
      found = found[wrapper]
  if not isinstance(found, dict):
    raise CheckpointError(f"{path}: holds a {type(found).__name__}, not a "
                          "state_dict")
  try:
    return {str(name): _to_numpy(value) for name, value in found.items()
            if isinstance(value, torch.Tensor)}
  except Exception as error:  # Likewise, of sparse and quantised ones too.
    raise CheckpointError(
        f"{path}: not plain tensors ({str(error).splitlines()[0]})"
    ) from error


def _to_numpy(tensor):
  tensor = tensor.detach()
  return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _read_safetensors(path):
  from safetensors.numpy import load_file
  try:
    return load_file(path)
  except Exception as error:  # Likewise.
    raise CheckpointError(
        f"{path}: not a readable .safetensors file ({error})") from error


def _read_npz(path):
  try:
    archive = np.load(path, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
      raise ValueError("a single array")
    with archive:
      return dict(archive)
  except Exception as error:  # Likewise.
    raise CheckpointError(f"{path}: not a readable "
                          f".npz of arrays ({error})") from error


def _read_h5(path):
  """Keras's groups: "conv1/conv1/kernel:0" is "conv1/kernel"."""
  import h5py
  found = {}

  def visit(name, item):
    if isinstance(item, h5py.Dataset):
      parts = name.removeprefix("model_weights/").split("/")
      found[f"{parts[0]}/{parts[-1].removesuffix(':0')}"] = item[()]

  try:
    with h5py.File(path, "r") as file:
      file.visititems(visit)
  except Exception as error:  # Likewise.
    raise CheckpointError(
        f"{path}: not a readable HDF5 file ({error})") from error
  return found


_READERS = {".pth": _read_torch, ".pt": _read_torch,
            ".safetensors": _read_safetensors, ".npz": _read_npz,
            ".h5": _read_h5}
