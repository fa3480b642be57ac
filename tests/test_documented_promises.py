"""
The promises of CloudStore's Python documentation, kept by ``CloudStore.py`` alone.

A program (`tests/programs/promises.py`) runs in a folder with ``CloudStore.py`` and nothing else, by a Python with
`requests` and nothing else, against our service and against a service with only the vendor's protocol.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import pytest

from cloudstore_mapping.callback_client import CloudStore
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from tests.programs import __file__ as programs
from tests.storages import new_storage
from tests.vendor import Vendor, serve_vendor

ROOT = Path(__file__).parent.parent
PROGRAM = Path(programs).parent / "promises.py"
#: `requests` and its dependencies.
REQUESTS = ("requests", "urllib3", "certifi", "idna", "charset-normalizer")

#: For each function of the program the promise that it keeps, in the documentation's order.
PROMISES = {
    "including": "1. CloudStore.py in the project's folder is enough for `from CloudStore import CloudStore`",
    "initializing": '2. CloudStore("ZFA5mAkxjVznvSsXOUxE") initializes it',
    "parallel_requests": "3. every request runs on a parallel thread",
    "parallel_callbacks": "4. so does its callback",
    "lock": "5. CloudStore.lock is the main thread lock, which prevents access collisions",
    "critical_section_of_the_program": "6. lock.acquire() and lock.release() guard a critical section of the main code",
    "critical_section_of_a_callback": "7. they do so in a callback",
    "reply_is_a_dictionary": "8. a response is a dictionary with the documented keys, error, message, response always",
    "reply_has_an_error": "9. error is the error's name, otherwise None",
    "reply_has_a_message": "10. message tells what happened, in the operation or error",
    "reply_has_data": "11. data is what functions such as upload or load retrieved",
    "reply_has_the_response": "12. response is the requests.Response, with its status code",
    "exception_while_sending": "13. exception is defined if an error occurred while sending",
    "exception_while_parsing": "14. and while parsing the response",
    "save_arguments": "15. save( key, value, callback, password )",
    "save_minds_case": "16. its key is case sensitive",
    "save_text": "17. its value may be a string",
    "save_integer": "18. an integer",
    "save_object": "19. an object",
    "save_callback": "20. its callback is optional, and gets the response object",
    "save_password": "21. its password allows to write over a file that exists already",
    "save_wrong_password": "22. without the correct one it gives an error",
    "save_example": "23. the example of save",
    "load_arguments": "24. load( key, callback, password )",
    "load_minds_case": "25. its key is case sensitive",
    "load_callback": "26. its callback is optional, and gets the response object",
    "load_password": "27. its password gives access to the file",
    "load_wrong_password": "28. without the correct one it gives an error",
    "load_example": "29. the example of load",
    "merge_arguments": "30. merge( key, value, callback, password )",
    "merge_into_an_object": "31. it merges and updates an existing object",
    "merge_into_nothing": "32. it creates an object that does not exist",
    "merge_is_recursive": "33. it merges recursively, replacing existing and adding new data",
    "merge_of_arrays": "34. it merges arrays recursively",
    "merge_password": "35. its password gives access to the file",
    "merge_example": "36. the example of two apps, which loads in the callback of a merge",
    "list_names": "37. list( filter, callback ) gives a comma separated string",
    "list_minds_case": "38. its filter is case sensitive",
    "list_of_all": "39. an empty filter returns all files",
    "list_example": "40. the example of list",
    "delete_arguments": "41. delete( key, callback, password ), with a case-sensitive key",
    "delete_of_nothing": "42. an object that does not exist is the error NoFile",
    "delete_password": "43. its password is the edit password",
    "delete_example": "44. the example of delete",
    "read_and_write_access": "45. passwords control read and write access to each file",
    "media_of_many_apps": "46. media files, text and images, are stored for all apps with the same key",
    "upload_arguments": "47. upload( data, filename, type, callback, password ), and what its callback gets in data",
    "upload_data": "48. its data is a string, bytes or a file handle",
    "upload_filename_and_type": "49. its filename is case sensitive, its type optional",
    "upload_example": "50. the example of upload, an image in base64",
}
Faults = dict[str, str | None]


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Python that has `requests` and its dependencies, and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder / "venv", symlinks=os.name == "posix", with_pip=False)
    (packages,) = [path for path in (folder / "venv").rglob("site-packages") if path.is_dir()]
    for name in REQUESTS:
        installed = metadata.distribution(name)
        for part in {file.parts[0] for file in installed.files or () if file.parts[0] != ".."}:
            (packages / part).symlink_to(Path(str(installed.locate_file(part))))
    return folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"


@contextmanager
def vendors_service() -> Iterator[str]:
    """Run a service with only the vendor's protocol, some of whose files are locked."""
    with serve_vendor() as vendor:
        for name in ("locked", "locked to delete"):
            vendor.files[name] = 0
            vendor.edit_passwords[name] = "edit"
        vendor.view_passwords["locked"] = "view"
        vendor.edit_passwords["locked.png"] = "media"
        yield vendor.address


@contextmanager
def our_service() -> Iterator[str]:
    """Run a service of ours, some of whose files are locked."""
    with Service(new_storage()) as service, background(service) as address:
        key = service.accounts.create("owner", Vendor.api_key)
        with CloudStore(key, address) as cloud:
            for name in ("locked", "locked to delete"):
                assert cloud.save(name, 0).result(30)["error"] is None
            media = cloud.upload(b"", "locked.png").result(30)["data"]
        service.set_passwords("owner", "locked", edit="edit", view="view")
        service.set_passwords("owner", "locked to delete", edit="edit")
        service.media.set_password(service.accounts.named("owner"), media["id"], "media")
        yield address


SERVICES = {"ours": our_service, "vendor": vendors_service}


@pytest.fixture(scope="session", params=SERVICES)
def faults(request: pytest.FixtureRequest, bare_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Faults:
    """Return what went wrong with each promise of the program."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "CloudStore.py", folder)
    with SERVICES[request.param]() as address:
        ran = subprocess.run(
            [bare_python, "-E", "-s", "-X", "dev", "-W", "error", "-"],
            input=PROGRAM.read_text("utf-8"),
            cwd=folder,
            env={**os.environ, "CLOUDSTORE_SERVER": address},
            capture_output=True,
            encoding="utf-8",
            timeout=300,
            check=False,
        )
    assert ran.stderr == ""
    assert ran.returncode == 0
    found: Faults = json.loads(ran.stdout)
    return found


def test_every_promise_is_tried(faults: Faults) -> None:
    """The program keeps the fifty promises of the table, in its order."""
    assert [*faults] == [*PROMISES]
    assert [int(promise.partition(".")[0]) for promise in PROMISES.values()] == [*range(1, 51)]


@pytest.mark.parametrize("name", PROMISES)
def test_promise(faults: Faults, name: str) -> None:
    """A promise of the documentation is kept by CloudStore.py alone."""
    assert faults[name] is None, f"{PROMISES[name]}\n{faults[name]}"
