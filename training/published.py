"""The data sets that are known by name: where their official files are, and what must be inside them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class IdxFile:
    """One official file: name without ``.gz``, shape, published MD5 of the gzip, and SHA-256 of the array inside."""

    name: str
    shape: tuple[int, ...]
    gzip_md5: str
    array_sha256: str


@dataclass(frozen=True)
class IdxDataset:
    """Four IDX files: images and labels of the training and of the test set.

    Attributes:
        name: as commands take it, and the name of its folder.
        title: as its authors write it.
        url: where the files lie.
        megabytes: what fetching them costs.
        files: by the names that their arrays have in an ``.npz``.
        class_names: in the order of the labels; none where they are but numbers.
    """

    name: str
    title: str
    url: str
    megabytes: int
    files: dict[str, IdxFile]
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class CifarDataset:
    """One archive; see ``training/cifar.py``.

    Attributes:
        name, title, url, megabytes, class_names: as above.
        archive_md5: as published.
        sha256: of the arrays inside, images as (N, 3, 32, 32), by the names that MNIST's have in an ``.npz``.
    """

    name: str
    title: str
    url: str
    megabytes: int
    archive_md5: str
    sha256: dict[str, str]
    class_names: tuple[str, ...]


def idx_files(train: tuple[str, str, str, str], test: tuple[str, str, str, str]) -> dict[str, IdxFile]:
    """The four files of a data set like MNIST; of each split MD5 and SHA-256 of the images, then of the labels."""
    return {
        f"{axis}_{split}": IdxFile(f"{prefix}-{kind}-ubyte", (count, *shape), *digests[2 * i : 2 * i + 2])
        for split, prefix, count, digests in (("train", "train", 60000, train), ("test", "t10k", 10000, test))
        for i, (axis, kind, shape) in enumerate((("x", "images-idx3", (28, 28)), ("y", "labels-idx1", ())))
    }


MNIST = IdxDataset(
    name="mnist",  # LeCun, Cortes and Burges
    title="MNIST",
    url="https://ossci-datasets.s3.amazonaws.com/mnist/",
    megabytes=11,
    files=idx_files(
        train=(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
        ),
        test=(
            "9fb629c4189551a2d022fa330f9573f3",
            "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
            "ec29112dd5afa0611ce80d1b7f02629c",
            "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
        ),
    ),
)
FASHION_MNIST = IdxDataset(
    name="fashion-mnist",  # Xiao, Rasul and Vollgraf 2017
    title="Fashion-MNIST",
    url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",  # it has no https; the MD5s vouch for it
    megabytes=30,
    files=idx_files(
        train=(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
            "25c81989df183df01b3e8a0aad5dffbe",
            "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
        ),
        test=(
            "bef4ecab320f06d8554ea6380940ec79",
            "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
            "bb300cfdad3c16e7a12a480ee83cd310",
            "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
        ),
    ),
    class_names=(
        *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ),
)
CIFAR10 = CifarDataset(
    name="cifar10",  # Krizhevsky, Nair and Hinton 2009
    title="CIFAR-10",
    url="https://www.cs.toronto.edu/~kriz/",
    megabytes=170,
    archive_md5="c32a1d4ab5d03f1284b67883e8d87530",
    sha256={
        "x_train": "9d5c2eddadb0deff02c14c350c0385aab7b1d5ff1edfeb4997c8dc8644960111",
        "y_train": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
        "x_test": "177777c33ba79825320efa646ad04a94bdc3c80e4ebe3bd21724f8cdfd4b9d56",
        "y_test": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
    },
    class_names=(
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
)
PUBLISHED: dict[str, IdxDataset | CifarDataset] = {dataset.name: dataset for dataset in (MNIST, FASHION_MNIST, CIFAR10)}
