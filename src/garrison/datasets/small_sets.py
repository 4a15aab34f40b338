"""scikit-learn's small sets: its data files are read, the package is not imported."""

from __future__ import annotations

from collections.abc import Mapping

from garrison.datasets.content import Read, fifths
from garrison.datasets.entry import Entry
from garrison.datasets.roads import InstalledModule, Members, PythonPackage, SourceFile
from garrison.datasets.tables import TableReader, comma_rows, headed_rows, read_diabetes

BREAST_MEASURES = (
    *("radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity", "concave points"),
    *("symmetry", "fractal dimension"),
)


def _small(
    summary: str, source: str, count: int, files: tuple[SourceFile, ...], read: Read, *, packed: bool = False
) -> Entry:
    suffix = ".gz" if packed else ""
    inside = {file.name: f"datasets/data/{file.name}{suffix}" for file in files}
    return Entry(
        kind="table",
        summary=summary,
        licence="BSD-3-Clause (scikit-learn)",
        source=source,
        files=files,
        roads=(
            InstalledModule("sklearn", Members({name: (path,) for name, path in inside.items()})),
            PythonPackage(
                "scikit-learn==1.9.1",
                "scikit_learn-1.9.1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
                "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
                Members({name: (f"sklearn/{path}",) for name, path in inside.items()}),
            ),
        ),
        splits=fifths(count),
        read=read,
    )


def _numbered(*labels: str) -> Mapping[str, str]:
    return {str(number): label for number, label in enumerate(labels)}


SMALL_SETS = {
    "breast-cancer": _small(
        "30 measures of 569 breast tumours: malignant or benign?",
        "Wolberg, Mangasarian, Street and Street, Breast Cancer Wisconsin (Diagnostic), 1995",
        569,
        (SourceFile("breast_cancer.csv", "fed3eb72d0575ef6192293f5093c6e801b1476b577d0386bf4455504522172ed", 119_913),),
        TableReader(
            files={"": "breast_cancer.csv"},
            rows=headed_rows,
            columns=(
                *(f"mean {measure}" for measure in BREAST_MEASURES),
                *(f"{measure} error" for measure in BREAST_MEASURES),
                *(f"worst {measure}" for measure in BREAST_MEASURES),
                "diagnosis",
            ),
            target="diagnosis",
            classes=_numbered("malignant", "benign"),
        ),
    ),
    "diabetes": _small(
        "10 measures of 442 diabetics, in their own units: progression after a year (a number, 25 to 346)",
        "Efron, Hastie, Johnstone and Tibshirani, Least angle regression, 2004",
        442,
        (
            SourceFile(
                "diabetes_data_raw.csv", "86badf50b4f9436ddd1e497dc0ae1b93166f8120221ee7dca4634fe849f3be7c", 19_596
            ),
            SourceFile(
                "diabetes_target.csv", "244713a551f62a291a354212d8a048adec6cb1244b2bc44e66a0698f5006d26d", 11_050
            ),
        ),
        read_diabetes,
        packed=True,
    ),
    "digits": _small(
        "1,797 handwritten digits, 8 x 8 pixels of 0 to 16 as 64 columns",
        "Alpaydin and Kaynak, Optical recognition of handwritten digits (test part), 1998",
        1_797,
        (SourceFile("digits.csv", "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8", 264_712),),
        TableReader(
            files={"": "digits.csv"},
            rows=comma_rows,
            columns=(*(f"pixel_{row}_{column}" for row in range(8) for column in range(8)), "digit"),
            target="digit",
            classes=_numbered(*"0123456789"),
        ),
        packed=True,
    ),
    "iris": _small(
        "4 measures of 150 irises: which of 3 species?",
        "Fisher, The use of multiple measurements in taxonomic problems, 1936",
        150,
        (SourceFile("iris.csv", "f13ffa8fdd56fd8e6c8d16d4081a3fbd3114bcd0aae4256c43205169cd9d1449", 2_734),),
        TableReader(
            files={"": "iris.csv"},
            rows=headed_rows,
            columns=("sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)", "species"),
            target="species",
            classes=_numbered("setosa", "versicolor", "virginica"),
        ),
    ),
    "wine": _small(
        "13 measures of 178 wines: which of 3 growers?",
        "Aeberhard and Forina, Wine, 1991",
        178,
        (SourceFile("wine_data.csv", "10e8a802908b34f86e5da8ce962f3c806694bc98450a18f61851af59f324bede", 11_157),),
        TableReader(
            files={"": "wine_data.csv"},
            rows=headed_rows,
            columns=(
                *("alcohol", "malic_acid", "ash", "alcalinity_of_ash", "magnesium", "total_phenols", "flavanoids"),
                *("nonflavanoid_phenols", "proanthocyanins", "color_intensity", "hue"),
                *("od280/od315_of_diluted_wines", "proline", "grower"),
            ),
            target="grower",
            classes=_numbered("class_0", "class_1", "class_2"),
        ),
    ),
}
