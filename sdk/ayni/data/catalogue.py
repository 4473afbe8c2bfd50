"""The public data sets that `ayni data fetch` gets: where from, how large, under which licence, whom to cite."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from ayni.errors import UserError

MEDMNIST = (
    "Yang J, Shi R, Wei D, et al. MedMNIST v2: a large-scale lightweight benchmark for 2D and 3D biomedical image "
    "classification. Scientific Data 10, 41 (2023). doi:10.1038/s41597-022-01721-8"
)
ZENODO = "https://zenodo.org/records/10519652"


class DataSet(msgspec.Struct, frozen=True, kw_only=True):
    """One data set as it must arrive, to the byte.

    `target` is its file, or its folder, below the folder of all data. `sha256` is that of the file, or of a folder's
    list of files (`list_digest`). Without a `url` there is no one file to download: the folder was made from what
    stands at `page`, and comes from a mirror.
    """

    name: str
    title: str
    target: str
    sha256: str
    num_bytes: int
    num_files: int = 1
    licence: str
    citation: str
    page: str
    url: str = ""

    @property
    def is_folder(self) -> bool:
        return self.target == self.name


def list_digest(files: Iterable[tuple[str, str]]) -> str:
    """One SHA-256 for a folder: of the lines "sha256  path", sorted by path, as `sha256sum` writes them.

    >>> lines = chr(10).join(("11  a", "22  b", ""))
    >>> list_digest([("b", "22"), ("a", "11")]) == hashlib.sha256(lines.encode()).hexdigest()
    True
    """
    lines = [f"{sha256}  {path}\n" for path, sha256 in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _medmnist(name: str, title: str, sha256: str, num_bytes: int, source: str = "") -> DataSet:
    return DataSet(
        name=name, title=title, target=f"{name}.npz", sha256=sha256, num_bytes=num_bytes, licence="CC BY 4.0",
        citation=f"{MEDMNIST}{source}", page=ZENODO, url=f"{ZENODO}/files/{name}.npz?download=1",
    )  # fmt: skip


CATALOGUE = {
    data_set.name: data_set
    for data_set in (
        _medmnist(
            "pneumoniamnist",
            "chest X-rays 28 x 28, normal or pneumonia: 4708 to train on, 524 to validate, 624 to test",
            "e1792d3f03751cb101e99f19a63b3c1941436c988665f47853417b05be250cd8",
            4_170_669,
            ". Images: Kermany DS, et al. Cell 172, 1122-1131 (2018). doi:10.1016/j.cell.2018.02.010",
        ),
        _medmnist(
            "breastmnist",
            "breast ultrasound 28 x 28, malignant or not: 546 to train on, 78 to validate, 156 to test",
            "3a22d2a4625e7dd8903f0f59030e81a3d0c222bece2e5e10927456cb50efdec1",
            559_580,
            ". Images: Al-Dhabyani W, et al. Data in Brief 28, 104863 (2020). doi:10.1016/j.dib.2019.104863",
        ),
        _medmnist(
            "adrenalmnist3d",
            "shapes of adrenal glands 28 x 28 x 28, normal or not: 1188 to train on, 98 to validate, 298 to test",
            "8ffd78c0f000265deb7cf4ee0b454136fb3170f9839ecaa7bb01adf9f88aa7d1",
            276_833,
        ),
        DataSet(
            name="skin_lesion",
            title="445 pictures of skin lesions, benign or malignant, short side 256; sites.csv: 8 groups by size",
            target="skin_lesion",
            sha256="7596d49298354f9dde045bf15de99e18646eece1cd73eb44f8bad9a177e0e7bf",
            num_bytes=8_849_854,
            num_files=448,
            licence="CC0 1.0 (LICENSE.txt and ATTRIBUTION.txt in the folder)",
            citation="UDA-1 by Anonymous, ISIC Archive",
            page="https://www.isic-archive.com",
        ),
        DataSet(
            name="lung_xray",
            title="164 chest X-rays with masks of the lung fields, long side up to 512; sites.csv: 3 sources",
            target="lung_xray",
            sha256="e98899dca73ff536b5d1a7713573b8f1914896719fa9224955e6e0130b8c83dd",
            num_bytes=19_134_711,
            num_files=329,
            licence="per image, in the column `license` of its sites.csv: CC BY 3.0 and 4.0, CC BY-NC-SA (not for "
            "commercial use). Do not pass it on as one set",
            citation="Cohen JP, et al. COVID-19 Image Data Collection: Prospective Predictions Are the Future. "
            "arXiv:2006.11988 (2020). Lung masks: V7 Labs, https://github.com/v7labs/covid-19-xray-dataset",
            page="https://github.com/ieee8023/covid-chestxray-dataset",
        ),
        DataSet(
            name="nuclei",
            title="346 microscope pictures with masks of the cell nuclei (numbered); sites.csv: 5 groups by modality",
            target="nuclei",
            sha256="90a356a8c8754f9bdec5132c0adb05a1a603ccff10b9aac0f7661c7b9ebae564",
            num_bytes=33_508_043,
            num_files=693,
            licence="CC0 1.0",
            citation="Caicedo JC, et al. Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl. "
            "Nature Methods 16, 1247-1253 (2019). doi:10.1038/s41592-019-0612-7. Image set BBBC038v1, Broad Bioimage "
            "Benchmark Collection, with the community's corrections of its masks",
            page="https://bbbc.broadinstitute.org/BBBC038",
        ),
        DataSet(
            name="hippocampus",
            title="208 MR volumes (NIfTI, 1 mm) with labels: 1 anterior, 2 posterior hippocampus; sites.csv: 3 groups",
            target="hippocampus",
            sha256="ca39338b341ca491202a6fb34e86dca4badf240c3731670c03c4e8a09c7fa242",
            num_bytes=17_082_125,
            num_files=417,
            licence="CC BY-SA 4.0",
            citation="Antonelli M, et al. The Medical Segmentation Decathlon. Nature Communications 13, 4128 (2022). "
            "doi:10.1038/s41467-022-30695-9 (task 04)",
            page="http://medicaldecathlon.com",
        ),
    )
}


def find_data_set(name: str) -> DataSet:
    """Raises UserError, which lists what there is."""
    if name not in CATALOGUE:
        raise UserError(f"there is no data set {name!r} in the catalogue. It has: {', '.join(sorted(CATALOGUE))}.")
    return CATALOGUE[name]
