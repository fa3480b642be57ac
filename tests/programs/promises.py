"""
Keep the promises of CloudStore's Python documentation, as a program beside nothing but ``CloudStore.py``.

``CLOUDSTORE_SERVER`` names a service with the account `KEY`, whose owner has locked two data files and a media file.
The output is a line of JSON: for each function what went wrong, or null. The table of the promises is in
``tests/test_documented_promises.py``.
"""
# ruff: noqa: D103 - the table in that file describes the functions

import base64
import http.server
import importlib.util
import io
import json
import os
import queue
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import requests

from CloudStore import CloudStore

KEY = "ZFA5mAkxjVznvSsXOUxE"
SERVER = os.environ["CLOUDSTORE_SERVER"]
JPEG = b"\xff\xd8\xff\xe0 jazz \x00\xff"

cloud = CloudStore("ZFA5mAkxjVznvSsXOUxE")

Reply = dict[str, Any]
ABSENT = object()


def answer(call: Callable[[Callable[[Reply], object]], object]) -> Reply:
    """Make a call with a callback, and return the reply that the callback gets."""
    replies: queue.SimpleQueue[Reply] = queue.SimpleQueue()
    call(replies.put)
    return replies.get(timeout=30)


def reply_to(future: "Future[Reply]") -> Reply:
    """Return the reply to a call without a callback."""
    return future.result(30)


def stored(key: str) -> Any:
    """Return the value under a key."""
    return reply_to(cloud.load(key)).get("data", ABSENT)


def shown(example: str, lines: int) -> list[str]:
    """Run an example of the documentation, and return the lines that its callbacks print."""
    printed: queue.SimpleQueue[str] = queue.SimpleQueue()
    names: dict[str, Any] = {"cloud": cloud, "print": lambda text: printed.put(str(text)), "file_data": FILE_DATA}
    exec(example.expandtabs(8), names)
    return [printed.get(timeout=30) for _ in range(lines)]


FILE_DATA = base64.b64encode(JPEG).decode()


def including() -> None:
    assert [path.name for path in Path().iterdir() if path.name != "__pycache__"] == ["CloudStore.py"]
    assert Path(sys.modules["CloudStore"].__file__ or "").parent.samefile(".")
    for absent in ("cloudstore_mapping", "msgspec", "cachetools", "pytest"):
        assert importlib.util.find_spec(absent) is None


def initializing() -> None:
    assert isinstance(cloud, CloudStore)
    assert KEY not in repr(cloud)
    assert reply_to(cloud.list(""))["error"] is None


def parallel_requests() -> None:
    with CloudStore.lock:
        futures = [cloud.list("", lambda _: None) for _ in range(5)]
        for future in futures:  # while no callback can run
            assert reply_to(future)["error"] is None


def parallel_callbacks() -> None:
    threads: queue.SimpleQueue[threading.Thread] = queue.SimpleQueue()
    for _ in range(2):
        cloud.list("", lambda _: threads.put(threading.current_thread()))
    found = {threads.get(timeout=30) for _ in range(2)} | {threading.main_thread()}
    assert len(found) == 3


def lock() -> None:
    called = threading.Event()
    with CloudStore.lock:
        reply_to(cloud.list("", lambda _: called.set()))
        assert not called.is_set()
    assert called.wait(30)


def critical_section_of_the_program() -> None:
    counter = {"value": 0}
    ended: queue.SimpleQueue[None] = queue.SimpleQueue()

    def count() -> None:
        cloud.lock.acquire()
        value = counter["value"]
        for _ in range(1000):
            pass
        counter["value"] = value + 1
        cloud.lock.release()

    def callback(_: Reply) -> None:
        count()
        ended.put(None)

    for _ in range(20):
        cloud.list("", callback)
        count()
    for _ in range(20):
        ended.get(timeout=30)
    assert counter["value"] == 40


def critical_section_of_a_callback() -> None:
    replies: queue.SimpleQueue[Reply] = queue.SimpleQueue()

    def callback(reply: Reply) -> None:
        cloud.lock.acquire()
        replies.put(reply)
        cloud.lock.release()

    for _ in range(2):
        cloud.list("", callback)
    for _ in range(2):
        assert replies.get(timeout=30)["error"] is None
    assert CloudStore.lock.acquire(timeout=30)
    CloudStore.lock.release()


def reply_is_a_dictionary() -> None:
    for reply in (answer(lambda put: cloud.save("reply", 1, put)), answer(lambda put: cloud.load("absent", put))):
        assert type(reply) is dict
        assert {"error", "message", "response"} <= {*reply}
        assert {*reply} <= {"error", "message", "data", "response", "exception"}


def reply_has_an_error() -> None:
    assert answer(lambda put: cloud.save("reply", 1, put))["error"] is None
    assert answer(lambda put: cloud.delete("absent", put))["error"] == "NoFile"


def reply_has_a_message() -> None:
    assert answer(lambda put: cloud.save("reply", 1, put))["message"] == "Entry saved"
    message = answer(lambda put: cloud.delete("absent", put))["message"]
    assert isinstance(message, str)
    assert message


def reply_has_data() -> None:
    assert reply_to(cloud.save("reply", {"a": 1}))["error"] is None
    assert answer(lambda put: cloud.load("reply", put))["data"] == {"a": 1}
    assert answer(lambda put: cloud.upload(b"x", "reply.bin", None, put))["data"]["size"] == 1
    assert "data" not in answer(lambda put: cloud.save("reply", 1, put))
    assert "data" not in answer(lambda put: cloud.load("absent", put))


def reply_has_the_response() -> None:
    response = answer(lambda put: cloud.list("", put))["response"]
    assert isinstance(response, requests.Response)
    assert response.status_code == 200
    assert response.json()["error"] is None


def exception_while_sending() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), _Page) as server:
        nowhere = f"http://127.0.0.1:{server.server_port}"
    with CloudStore(KEY, nowhere, retries=0) as lost:
        reply = answer(lambda put: lost.save("a", 1, put))
    assert isinstance(reply["exception"], Exception)
    assert (reply["error"], reply["response"]) == ("Error sending data", None)
    assert "exception" not in reply_to(cloud.save("a", 1))


class _Page(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, *_: object) -> None:
        pass


def exception_while_parsing() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), _Page) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with CloudStore(KEY, f"http://127.0.0.1:{server.server_port}") as other:
            reply = answer(lambda put: other.load("a", put))
        thread.join()
    assert isinstance(reply["exception"], Exception)
    assert reply["error"] == "Error parsing data"
    assert reply["response"].text == "<html>"
    assert "exception" not in reply_to(cloud.load("absent"))


def save_arguments() -> None:
    assert answer(lambda put: cloud.save("locked", {"a": 1}, put, "edit"))["error"] is None
    assert reply_to(cloud.save(key="saved", value=1, callback=None, password=None))["error"] is None


def save_minds_case() -> None:
    reply_to(cloud.save("Case", 1))
    reply_to(cloud.save("case", 2))
    assert (stored("Case"), stored("case")) == (1, 2)


def save_text() -> None:
    for text in ("text", "", "h\u00e9 \u65e5\u672c \U0001f600\n\t\"'\\"):
        reply_to(cloud.save("value", text))
        assert stored("value") == text


def save_integer() -> None:
    for number in (0, -1, 8, 10**40):
        reply_to(cloud.save("value", number))
        assert stored("value") == number
        assert type(stored("value")) is int


def save_object() -> None:
    value = {"Apples": 8, "list": [1, 2.5, None, True, {"a": []}], "": {"b": "c"}}
    reply_to(cloud.save("value", value))
    assert stored("value") == value


def save_callback() -> None:
    assert reply_to(cloud.save("value", "without"))["error"] is None
    assert stored("value") == "without"
    assert answer(lambda put: cloud.save("value", "with", put))["message"] == "Entry saved"


def save_password() -> None:
    for value in (1, 2):
        assert reply_to(cloud.save("locked", value, None, "edit"))["error"] is None
    assert reply_to(cloud.load("locked", None, "view"))["data"] == 2


def save_wrong_password() -> None:
    reply_to(cloud.save("locked", "kept", None, "edit"))
    for password in (None, "", "wrong"):
        reply = answer(lambda put, given=password: cloud.save("locked", "lost", put, given))  # type: ignore[misc]
        assert reply["error"] == "Locked"
    assert reply_to(cloud.load("locked", None, "view"))["data"] == "kept"


SAVE = """
# Handle the response.
def onSave( res ):
    if res.get("error"):
        print("Error: %s, %s" % (res["error"], res["message"]))
    else: print(res["message"])

# Save some data.
cloud.save( "Shopping_List", {"Apples":8,"Oranges":6}, onSave )
"""


def save_example() -> None:
    assert shown(SAVE, 1) == ["Entry saved"]
    assert stored("Shopping_List") == {"Apples": 8, "Oranges": 6}


def load_arguments() -> None:
    reply_to(cloud.save("locked", "value", None, "edit"))
    assert answer(lambda put: cloud.load("locked", put, "view"))["data"] == "value"
    assert reply_to(cloud.load(key="locked", callback=None, password="view"))["data"] == "value"


def load_minds_case() -> None:
    reply_to(cloud.save("Loaded", 1))
    assert reply_to(cloud.load("loaded"))["error"] == "NoFile"


def load_callback() -> None:
    reply_to(cloud.save("loaded", 1))
    assert reply_to(cloud.load("loaded"))["data"] == 1
    assert answer(lambda put: cloud.load("loaded", put))["data"] == 1


def load_password() -> None:
    reply_to(cloud.save("locked", [1], None, "edit"))
    assert reply_to(cloud.load("locked", None, "view"))["data"] == [1]


def load_wrong_password() -> None:
    for password in (None, "", "wrong"):
        reply = answer(lambda put, given=password: cloud.load("locked", put, given))  # type: ignore[misc]
        assert reply["error"] == "Locked"
        assert "data" not in reply


LOAD = """
# Handle the response.
def OnLoad( res ):
    if res.get("error"):
        print("Error: %s, %s" % (res["error"], res["message"]))
    else:
        print(res["message"])

# Load some data.
cloud.load( "Shopping_List", OnLoad )
"""


def load_example() -> None:
    reply_to(cloud.save("Shopping_List", {"Apples": 8, "Oranges": 6}))
    assert shown(LOAD, 1) == ["{'Apples': 8, 'Oranges': 6}"]


def merge_arguments() -> None:
    reply_to(cloud.save("locked", {"a": 1}, None, "edit"))
    assert answer(lambda put: cloud.merge("locked", {"b": 2}, put, "edit"))["error"] is None
    assert reply_to(cloud.merge(key="merged", value={}, callback=None, password=None))["error"] is None


def merge_into_an_object() -> None:
    reply_to(cloud.save("merged", {"Apples": 8, "Oranges": 6}))
    assert reply_to(cloud.merge("merged", {"Oranges": 10}))["error"] is None
    assert stored("merged") == {"Apples": 8, "Oranges": 10}


def merge_into_nothing() -> None:
    assert reply_to(cloud.merge("new", {"Apples": 8}))["error"] is None
    assert stored("new") == {"Apples": 8}


def merge_is_recursive() -> None:
    reply_to(cloud.save("merged", {"fruit": {"Apples": {"red": 1, "green": 2}}, "kept": 1}))
    reply_to(cloud.merge("merged", {"fruit": {"Apples": {"green": 3}, "Pears": 4}, "added": {}}))
    assert stored("merged") == {"fruit": {"Apples": {"red": 1, "green": 3}, "Pears": 4}, "kept": 1, "added": {}}


def merge_of_arrays() -> None:
    reply_to(cloud.save("merged", {"list": [{"a": 1}, 2, 3]}))
    reply_to(cloud.merge("merged", {"list": [{"b": 4}, 5]}))
    assert stored("merged") == {"list": [{"a": 1, "b": 4}, 5, 3]}


def merge_password() -> None:
    reply_to(cloud.save("locked", {"a": 1}, None, "edit"))
    for password in (None, "", "wrong"):
        assert reply_to(cloud.merge("locked", {"a": 2}, None, password))["error"] == "Locked"
    assert reply_to(cloud.merge("locked", {"b": 2}, None, "edit"))["error"] is None
    assert reply_to(cloud.load("locked", None, "view"))["data"] == {"a": 1, "b": 2}


APP_1 = """
def OnSave( res ):
    if res.get("error"):
\t\tprint( "Error: %s, %s" % (res["error"], res["message"] ))
    else: print( res["message"] )

#  Save some data.
cloud.save( "Shopping_List", {"Apples":8,"Oranges":6}, OnSave )
"""

APP_2 = """
#  Handle the response.
def onLoad( res ):
    # You should now see your new Shopping_List with 10 Oranges and 8 Bananas
    if res.get("error"):
        print( "Error: %s, %s" % (res["error"], res["message"]) )
    else: print( "%s: %s" % (res["message"], res["data"]) )

#  Handle the response.
def onMerge( res ):
    if res.get("error"):
        print( "Error: %s, %s" % (res["error"], res["message"] ))
    else:
        # Data merged successfully
        print( res["message"] )

        # Lets now reload the data to see if our object has changed
        cloud.load( "Shopping_List", onLoad )

#  Update our Shopping List by adding a new item and changing existing items.
cloud.merge( "Shopping_List", {"Apples":8,"Oranges":10,"Bananas":8}, onMerge )
"""


def merge_example() -> None:
    assert shown(APP_1, 1) == ["Entry saved"]
    merged, loaded = shown(APP_2, 2)
    assert merged == "Entry saved"
    assert loaded == ": ".join(["{'Apples': 8, 'Oranges': 10, 'Bananas': 8}"] * 2)


def list_names() -> None:
    for key in ("steve1", "steve2"):
        reply_to(cloud.save(key, 1))
    assert answer(lambda put: cloud.list("steve", put))["message"] == "steve1,steve2"


def list_minds_case() -> None:
    reply_to(cloud.save("STEVE", 1))
    assert answer(lambda put: cloud.list("STEVE", put))["message"] == "STEVE"
    assert answer(lambda put: cloud.list("Steve", put))["message"] == ""


def list_of_all() -> None:
    reply_to(cloud.save("one", 1))
    reply_to(cloud.save("two", 2))
    assert {"one", "two", "locked"} <= {*answer(lambda put: cloud.list("", put))["message"].split(",")}


LIST = """
# Handle the response.
def OnList( res ):
    if res.get("error"):
\t\tprint( "Error: %s, %s" % (res["error"], res["message"] ))
    else: print( res["message"] )
    # This will show a comma separated list of all files matching your filter

cloud.list( "Shopping", OnList )
"""


def list_example() -> None:
    reply_to(cloud.save("Shopping_List", 1))
    assert shown(LIST, 1) == ["Shopping_List"]


def delete_arguments() -> None:
    reply_to(cloud.save("deleted", 1))
    reply_to(cloud.save("Deleted", 2))
    assert answer(lambda put: cloud.delete("deleted", put, None))["error"] is None
    assert (stored("deleted"), stored("Deleted")) == (ABSENT, 2)
    assert reply_to(cloud.delete(key="Deleted", callback=None, password=None))["error"] is None


def delete_of_nothing() -> None:
    assert answer(lambda put: cloud.delete("absent", put))["error"] == "NoFile"


def delete_password() -> None:
    for password in (None, "", "wrong"):
        assert reply_to(cloud.delete("locked to delete", None, password))["error"] == "Locked"
    assert reply_to(cloud.delete("locked to delete", None, "edit"))["error"] is None
    assert "locked to delete" not in reply_to(cloud.list(""))["message"].split(",")


DELETE = """

# Handle the response.
def OnDelete( res ):
    if res.get("error"):
\t\tprint( "Error: %s, %s" % (res["error"], res["message"] ))
    else: print( res["message"] )

cloud.delete( "Shopping_List", OnDelete )
"""


def delete_example() -> None:
    reply_to(cloud.save("Shopping_List", 1))
    assert shown(DELETE, 1) == ["Entry deleted"]
    (line,) = shown(DELETE, 1)
    assert line.startswith("Error: NoFile, ")


def read_and_write_access() -> None:
    reply_to(cloud.save("locked", 1, None, "edit"))
    assert reply_to(cloud.load("locked", None, "view"))["data"] == 1
    assert reply_to(cloud.save("locked", 2, None, "view"))["error"] == "Locked"
    assert reply_to(cloud.save("unlocked", 2))["error"] is None


def linked(facts: dict[str, Any], suffix: str) -> bytes:
    """Return the content of an uploaded file, as anybody with its link gets it."""
    got = requests.get(f"{SERVER}/files/{facts['folder']}/{facts['id']}.{suffix}", timeout=30)
    assert got.status_code == 200
    return got.content


def media_of_many_apps() -> None:
    with CloudStore(KEY) as first:
        text = reply_to(first.upload("h\u00e9llo", "shared.txt", "text"))["data"]
        image = reply_to(first.upload(JPEG, "shared.jpg", "image/jpg"))["data"]
    with CloudStore(KEY) as second:
        assert linked(text, "txt") == "h\u00e9llo".encode()
        assert linked(image, "jpg") == JPEG
        assert reply_to(second.upload(b"new", "shared.txt", "text"))["data"]["folder"] == text["folder"]


def upload_arguments() -> None:
    reply = answer(lambda put: cloud.upload(JPEG, "locked.png", "image/jpg", put, "media"))
    assert reply["error"] is None
    facts = reply["data"]
    assert {*facts} >= {"name", "folder", "id", "mimetype", "size"}
    assert (facts["name"], facts["size"]) == ("locked.png", len(JPEG))
    assert facts["mimetype"] in ("image/jpg", "image/jpeg")
    for password in (None, "wrong"):
        assert reply_to(cloud.upload(b"", "locked.png", None, None, password))["error"] == "Locked"


def upload_data() -> None:
    assert linked(reply_to(cloud.upload("line", "line.txt", "text"))["data"], "txt") == b"line"
    assert linked(reply_to(cloud.upload(JPEG, "a.bin"))["data"], "bin") == JPEG
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.bin"
        path.write_bytes(JPEG)
        with path.open("rb") as file:
            future = cloud.upload(file, "b.bin")
        assert linked(reply_to(future)["data"], "bin") == JPEG
        path.write_text("line", "utf-8")
        with path.open() as text:
            assert linked(reply_to(cloud.upload(text, "c.bin"))["data"], "bin") == b"line"
    assert reply_to(cloud.upload(io.BytesIO(b"x"), "d.bin"))["data"]["size"] == 1


def upload_filename_and_type() -> None:
    facts = [reply_to(cloud.upload(b"x", name))["data"] for name in ("Jazz.JPG", "jazz.JPG", "p.log")]
    assert [fact["name"] for fact in facts] == ["Jazz.JPG", "jazz.JPG", "p.log"]
    assert facts[0]["id"] != facts[1]["id"]
    assert reply_to(cloud.upload("x", "a", "text"))["data"]["mimetype"].startswith("text")


UPLOAD = """
def OnUpload( res ):
    if res.get("error"):
\t\tprint( "Error: %s, %s" % (res["error"], res["message"] ))
    else: print( res["message"] )

#  Let's assume you want to upload an image to the CloudStore
#  You must upload images as a string in a format such as base64
cloud.upload( file_data, "jazz3.jpg", "image/jpg", OnUpload )
"""


def upload_example() -> None:
    assert shown(UPLOAD, 1) == ["File Uploaded"]
    assert linked(reply_to(cloud.upload(FILE_DATA, "jazz4.jpg", "image/jpg"))["data"], "jpg") == JPEG


#: In the order of the documentation.
PROMISES = [
    including,
    initializing,
    parallel_requests,
    parallel_callbacks,
    lock,
    critical_section_of_the_program,
    critical_section_of_a_callback,
    reply_is_a_dictionary,
    reply_has_an_error,
    reply_has_a_message,
    reply_has_data,
    reply_has_the_response,
    exception_while_sending,
    exception_while_parsing,
    save_arguments,
    save_minds_case,
    save_text,
    save_integer,
    save_object,
    save_callback,
    save_password,
    save_wrong_password,
    save_example,
    load_arguments,
    load_minds_case,
    load_callback,
    load_password,
    load_wrong_password,
    load_example,
    merge_arguments,
    merge_into_an_object,
    merge_into_nothing,
    merge_is_recursive,
    merge_of_arrays,
    merge_password,
    merge_example,
    list_names,
    list_minds_case,
    list_of_all,
    list_example,
    delete_arguments,
    delete_of_nothing,
    delete_password,
    delete_example,
    read_and_write_access,
    media_of_many_apps,
    upload_arguments,
    upload_data,
    upload_filename_and_type,
    upload_example,
]


def main() -> None:
    """Keep each promise once."""
    faults: dict[str, str | None] = {}
    for keep in PROMISES:
        faults[keep.__name__] = None
        try:
            keep()
        except Exception:  # noqa: BLE001 - the fault of this promise; the others are tried, too
            faults[keep.__name__] = traceback.format_exc()
    print(json.dumps(faults))


if __name__ == "__main__":
    main()
