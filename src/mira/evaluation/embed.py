"""Embeddings as files."""

from pathlib import Path

import numpy as np

from mira.escaping import escaped
from mira.evaluation.features import Features
from mira.files import atomic_path


def write_embeddings(features: Features, path: str | Path) -> Path:
    """Write features with their pictures' names, and labels where there are any.

    `.npz` holds the arrays `features` float32 [N, D], `keys` [N], `labels` int64 [N] and `classes` (their names, by
    number), readable by `numpy.load` without pickle. `.parquet` holds the columns `key`, `features` (lists of D
    float32), `label` and `class` (its name). The file appears whole or not at all.

    Returns:
        The path written.

    Raises:
        ValueError: another suffix, or `.parquet` without pyarrow.
    """
    path = Path(path)
    match path.suffix:
        case ".npz":
            _write_npz(features, path)
        case ".parquet":
            _write_parquet(features, path)
        case suffix:
            raise ValueError(f"embeddings are written as .npz or .parquet, not '{suffix}': rename '{path.name}'.")
    return path


def _write_npz(features: Features, path: Path) -> None:
    arrays = {"features": features.features.numpy(), "keys": np.array(features.keys, dtype=np.str_)}
    if features.labels is not None:
        arrays["labels"] = features.labels.numpy()
        if features.classes:
            arrays["classes"] = np.array(features.classes, dtype=np.str_)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _write_parquet(features: Features, path: Path) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ValueError(
            f"writing '{path.name}' needs pyarrow: install it with `pip install pyarrow`, or write .npz."
        ) from error
    values = pa.array(features.features.numpy().ravel())
    columns = {
        # Sources escape already; features may be of somebody's own making, and Parquet refuses lone surrogates.
        "key": pa.array([escaped(key) for key in features.keys], pa.string()),
        "features": pa.FixedSizeListArray.from_arrays(values, features.features.shape[1]),
    }
    if features.labels is not None:
        columns["label"] = pa.array(features.labels.numpy())
        if features.classes:
            names = [escaped(features.classes[label]) for label in features.labels.tolist()]
            columns["class"] = pa.array(names, pa.string())
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary)
