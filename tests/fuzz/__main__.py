"""`python -m tests.fuzz TARGET SECONDS FOLDER`: try inputs that atheris makes of the kept ones, and keep new ones."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Final

import atheris

#: Where the inputs of each target are kept, in a folder of its name.
CORPUS: Final = Path(__file__).parent / "corpus"
#: Seconds that one input may take, megabytes that the process may, and bytes of the longest input.
MAX_SECONDS: Final = 10
MAX_MEGABYTES: Final = 1024
MAX_BYTES: Final = 4096


def main(target: str, seconds: str, folder: str) -> None:
    """Fuzz one target; what is found beside the kept inputs, and what fails, goes into the folder."""
    with atheris.instrument_imports(include=["cloudstore_mapping", "python_multipart", "tests.fuzz"]):
        check = import_module(f"tests.fuzz.{target}").check
    options = (
        f"-max_total_time={seconds}",
        f"-timeout={MAX_SECONDS}",
        f"-rss_limit_mb={MAX_MEGABYTES}",
        f"-max_len={MAX_BYTES}",
        f"-artifact_prefix={folder}/failed-",
        "-print_final_stats=1",
    )
    new = Path(folder) / "new"
    new.mkdir(exist_ok=True)
    atheris.Setup([sys.argv[0], *options, str(new), str(CORPUS / target)], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
