"""The numbers of the paper's seven tables (mIoU in percent), as printed. Rows' names are ours where the paper repeats one.

Each table: a header line with the columns, then one line for each row. `cells` reads them.
"""

import dataclasses

TABLES = {
    "table1": (
        "DeepLab v3 (ASPP) head",
        """
        method            | PASCAL | Cityscapes | ADE20k
        supervised        | 76.0   | 76.3       | 39.5
        MoCo              | 73.2   | 75.8       | 38.6
        SimCLR            | 77.3   | 76.5       | 40.1
        BYOL              | 77.4   | 76.5       | 40.2
        InfoMin           | 77.2   | 76.5       | 39.6
        InsLoc            | 75.6   | 76.3       | 40.3
        DetCon            | 78.1   | 77.1       | 40.6
        PixPro            | 77.5   | 76.6       | 40.3
        MoCo v2 r.200     | 74.9   | 76.2       | 39.2
        CP2               | 77.6   | 77.3       | 40.5
        CP2 QT r.200      | 76.5   | 77.2       | 40.7
        MoCo v2 r.800     | 77.2   | 76.4       | 39.7
        CP2 QT r.800      | 78.6   | 77.4       | 41.3
        MoCo v2 v.300     | 78.8   | 77.2       | 41.3
        CP2 QT v.300      | 79.5   | 77.6       | 42.2
        """,
    ),
    "table2": (
        "FCN head",
        """
        method            | PASCAL | Cityscapes | ADE20k
        supervised        | 73.7   | 75.8       | 37.4
        MoCo v2 r.200     | 74.4   | 75.8       | 37.4
        CP2               | 75.4   | 76.4       | 38.4
        CP2 QT r.200      | 75.2   | 76.4       | 38.0
        MoCo v2 r.800     | 74.8   | 75.9       | 37.9
        CP2 QT r.800      | 75.7   | 76.5       | 39.2
        MoCo v2 v.300     | 77.7   | 76.6       | 40.4
        CP2 QT v.300      | 78.6   | 77.0       | 41.2
        """,
    ),
    "table3": (
        "initialisation of the head, on PASCAL VOC",
        """
        backbone and head         | PASCAL
        r.200 MoCo v2, random     | 74.9
        r.200 CP2, random         | 76.3
        r.200 CP2, CP2            | 77.6
        r.800 MoCo v2, random     | 77.2
        r.800 CP2 QT, random      | 78.2
        r.800 CP2 QT, CP2 QT      | 78.6
        v.300 MoCo v2, random     | 78.8
        v.300 CP2 QT, random      | 79.3
        v.300 CP2 QT, CP2 QT      | 79.5
        """,
    ),
    "table4": (
        "foreground masks, on PASCAL VOC",
        """
        mask                  | ResNet-50 | ViT-S/16
        baseline MoCo v2      | 77.2      | 78.8
        no copy-paste         | 77.6      | 78.9
        DINO self-attention   | 77.9      | 79.3
        rectangle             | 78.6      | 79.5
        polygon               | 78.1      | 79.0
        random blocks         | 77.3      | 78.7
        random patches        | 75.3      | 78.9
        """,
    ),
    "table5a": (
        "weight and temperature of the dense loss, on PASCAL VOC",
        """
        weight | 2    | 1    | 0.5  | 0.2
        10     | 77.4 | 77.0 | 76.9 | 77.2
        1      | 77.3 | 77.9 | 77.3 | 77.4
        0.5    | 77.2 | 78.0 | 77.3 | 77.1
        0.2    | 76.9 | 78.6 | 77.3 | 76.7
        0.1    | 76.0 | 77.7 | 77.5 | 75.8
        """,
    ),
    "table5b": (
        "epochs of Quick Tuning, on PASCAL VOC",
        """
        epochs | PASCAL
        0      | 77.2
        10     | 77.7
        20     | 78.6
        40     | 78.7
        """,
    ),
    "table6": (
        "losses and copy-paste, on PASCAL VOC",
        """
        mode               | PASCAL
        baseline           | 77.2
        no copy-paste      | 77.6
        instance loss only | 78.0
        dense loss only    | 75.6
        entire CP2         | 78.6
        """,
    ),
    "table7": (
        "deviations over three runs",
        """
        method       | PASCAL   | Cityscapes | ADE20k
        CP2 QT r.800 | 78.6±0.2 | 77.4±0.2   | 41.3±0.1
        """,
    ),
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One number of the paper: mIoU in percent and, in Table 7, its standard deviation."""

    table: str
    row: str
    column: str
    value: float
    std: float | None = None


def cells() -> list[Cell]:
    """Return every numeric cell of the paper's tables, in the paper's order."""
    found = []
    for table, (_, text) in TABLES.items():
        header, *rows = ([part.strip() for part in line.split("|")] for line in text.strip().splitlines())
        for row, *values in rows:
            for column, value in zip(header[1:], values, strict=True):
                mean, _, std = value.partition("±")
                found.append(Cell(table, row, column, float(mean), float(std) if std else None))
    return found
