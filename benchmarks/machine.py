"""What benchmarks share: --help, and where their figures come from."""

import argparse
import importlib.metadata
import pathlib
import platform


class _Form(argparse.ArgumentDefaultsHelpFormatter,
            argparse.RawDescriptionHelpFormatter):
  """The docstring's own lines, and each option's default, if it has one."""

  def _get_help_string(self, action):
    if any(action.default is nothing for nothing in (None, False, "")):
      return action.help
    return super()._get_help_string(action)


def arguments(doc: str) -> argparse.ArgumentParser:
  """Of a benchmark whose docstring begins "python -m benchmarks.NAME"."""
  usage, _, description = doc.partition("\n\n")
  return argparse.ArgumentParser(
      prog=" ".join(usage.split()[:3]), description=description,
      formatter_class=_Form)


def describe(cores: int, packages) -> str:
  """The processor, `cores` of it, and the versions that matter."""
  known = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  cpu = next((line.split(":")[1].strip() for line in known
              if "model name" in line), platform.machine())
  versions = ", ".join(f"{name} {importlib.metadata.version(name)}"
                       for name in packages)
  return (f"{cpu}, {cores} cores; Python {platform.python_version()}, "
          f"{versions}")
