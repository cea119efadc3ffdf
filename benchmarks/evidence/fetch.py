"""Lays out the peaks and motifs that the rows are of, from two packages of the Python index, in $FEATHERWEIGHT_DATA/tfbs.

    python -m benchmarks.evidence.fetch

janggu 0.10.2 (GPL-3) holds peaks of Oct4 and Mafk, gimmemotifs 0.18.4 (MIT) those of p73 and CTCF and the motifs of JASPAR 2022
(CC BY 4.0). They are downloaded as archives, nothing of them is installed or run, and none of it is to be committed.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from featherweight.zoo.datasets import data_root

WHEEL, SOURCE = "janggu==0.10.2", "gimmemotifs==0.18.4"


JANGGU = {"oct4": ("sample", "sample_test"), "mafk": ("sample2", "sample2_test")}
GIMME = {"p73.fa": "examples/TAp73alpha.fa", "ctcf.fa": "examples/Gm12878.CTCF.top500.w200.fa"}
MOTIFS = {"jaspar2022_vertebrates.pfm": "motif_databases/JASPAR2022_vertebrates.pfm"}


def archive(package: str, kind: str, folder: Path) -> Path:
    """A package's wheel ("only-binary") or source ("no-binary"), as the index has it."""
    there = set(folder.iterdir())
    words = ("-m", "pip", "download", "--quiet", "--no-deps", f"--{kind}", ":all:", package)
    subprocess.run([sys.executable, *words], cwd=folder, check=True)
    (found,) = set(folder.iterdir()) - there
    return found


def fasta(*texts: str) -> str:
    """Each sequence on one line, in capitals."""
    found = []
    for record in "\n".join(texts).split(">")[1:]:
        header, _, letters = record.partition("\n")
        found.append(f">{header.strip()}\n{''.join(letters.split()).upper()}\n")
    return "".join(found)


def main() -> None:
    place = data_root() / "tfbs"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as given:
        folder = Path(given)
        with zipfile.ZipFile(archive(WHEEL, "only-binary", folder)) as wheel:
            for name, parts in JANGGU.items():
                texts = [wheel.read(f"janggu/resources/{part}.fa").decode() for part in parts]
                (place / f"{name}.fa").write_text(fasta(*texts))
        with tarfile.open(archive(SOURCE, "no-binary", folder)) as source:
            for name, path in {**GIMME, **MOTIFS}.items():
                member = source.extractfile(f"{SOURCE.replace('==', '-')}/data/{path}")
                assert member is not None
                text = member.read().decode()
                (place / name).write_text(text if name in MOTIFS else fasta(text))
    print(f"wrote {place}")


if __name__ == "__main__":
    main()
