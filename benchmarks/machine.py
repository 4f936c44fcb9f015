"""What every benchmark says of where its figures come from."""

import importlib.metadata
import platform


def describe(cores: int, packages) -> str:
  """The processor, `cores` of it, and the versions that matter."""
  cpu = next((line.split(":")[1].strip()
              for line in open("/proc/cpuinfo") if "model name" in line),
             platform.machine())
  versions = ", ".join(f"{name} {importlib.metadata.version(name)}"
                       for name in packages)
  return (f"{cpu}, {cores} cores; Python {platform.python_version()}, "
          f"{versions}")
