"""Make src/mira/data/builtin/fashion.npz from the published IDX files of Fashion-MNIST.

    python scripts/make_builtin_fashion.py FOLDER

FOLDER holds the four `*-ubyte.gz` files (Debian: apt install dataset-fashion-mnist puts them into
usr/share/datasets/fashion-mnist). The first 10,000 training and 2,000 test pictures are kept, unchanged and in
their order. The archive is the same byte for byte whenever it is made (with the same zlib).
"""

import argparse
import gzip
import io
import struct
import zipfile
from pathlib import Path

import numpy as np

TARGET = Path(__file__).resolve().parents[1] / "src" / "mira" / "data" / "builtin" / "fashion.npz"
TRAIN, TEST = 10_000, 2_000


def read_idx(path: Path) -> np.ndarray:
    """The array of bytes in a gzipped IDX file, whose header gives the type, the dimensions and the shape."""
    data = gzip.decompress(path.read_bytes())
    zero, kind, dimensions = struct.unpack_from(">HBB", data)
    if (zero, kind) != (0, 8):
        raise SystemExit(f"{path} is not an IDX file of unsigned bytes")
    shape = struct.unpack_from(f">{dimensions}I", data, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """`numpy.savez_compressed` with fixed time stamps and the strongest deflate."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, buffer.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)


def main() -> None:
    """Read the four files, write the archive and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with train-images-idx3-ubyte.gz and the other three")
    parser.add_argument("--out", type=Path, default=TARGET, help="the archive to write (default: %(default)s)")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    write_npz(
        arguments.out,
        {
            "train_pictures": read_idx(folder / "train-images-idx3-ubyte.gz")[:TRAIN],
            "train_labels": read_idx(folder / "train-labels-idx1-ubyte.gz")[:TRAIN],
            "test_pictures": read_idx(folder / "t10k-images-idx3-ubyte.gz")[:TEST],
            "test_labels": read_idx(folder / "t10k-labels-idx1-ubyte.gz")[:TEST],
        },
    )
    print(f"{arguments.out}: {TRAIN} + {TEST} pictures, {arguments.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
