"""An upload that is confused, hostile, too large, too slow or cut off gets a clear answer, and leaves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
import requests

from cloudstore_mapping.errors import ProtocolError
from cloudstore_mapping.service.media import CHUNK_BYTES, UploadStream
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.web.forms import UploadForm
from cloudstore_mapping.web.http import BoundedWorkers, Message, RefusedError
from cloudstore_mapping.web.server import background
from cloudstore_mapping.web.uploads import AROUND, AT_ONCE, WAITING, Sender, SpoolSpace, take_upload
from cloudstore_mapping.wire import decode_value
from tests.media_fakes import BOUNDARY, UPLOAD, Posted, Uploader, comes_to, field, file_part, form, rows
from tests.raw_http import Connection, chunk
from tests.service_fakes import PATIENCE
from tests.storages import new_storage

#: What a file may take, and a request with JSON.
MAX_MEDIA = 4 * 2**20
MAX_BODY = 2**20


@pytest.fixture(scope="module")
def posted() -> Iterator[Posted]:
    """Return somebody with an account who uploads over HTTP."""
    settings = Settings(max_media_bytes=MAX_MEDIA, max_body_bytes=MAX_BODY)
    with Service(new_storage(), settings) as service:
        uploader = Uploader(service)
        with background(service) as address:
            yield Posted(uploader, address)


def whole(posted: Posted, *more: bytes) -> tuple[bytes, str]:
    """Return the body and the header of an upload to which nothing but `more` is wrong."""
    return form(field("key", posted.uploader.api_key), file_part(b"data"), *more)


def key(posted: Posted) -> bytes:
    """Return the field with the API key."""
    return field("key", posted.uploader.api_key)


MULTIPART = f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
START = f"--{BOUNDARY}\r\n".encode()

FORMS: dict[str, tuple[Callable[[Posted], tuple[bytes, str]], int, str]] = {
    "no key": (lambda _: form(file_part(b"data")), 400, "BadRequest"),
    "no file": (lambda p: form(key(p)), 400, "BadRequest"),
    "a file without a filename": (lambda p: form(key(p), field("file", "data")), 400, "BadRequest"),
    "no parts": (lambda _: form(), 400, "BadRequest"),
    "an unknown key": (lambda _: form(field("key", "k" * 32), file_part(b"data")), 401, "BadKey"),
    "an empty key": (lambda _: form(field("key", ""), file_part(b"data")), 401, "BadKey"),
    "two files": (lambda p: whole(p, file_part(b"data")), 400, "BadRequest"),
    "two keys": (lambda p: whole(p, field("key", "k" * 32)), 400, "BadRequest"),
    "two names of a file": (
        lambda p: whole(p, b"Content-Disposition: form-data; name=a\r\n" + field("b", "")),
        400,
        "BadRequest",
    ),
    "1,000 parts": (lambda p: whole(p, *[field("a", "b")] * 1000), 400, "BadRequest"),
    "a long field": (lambda p: whole(p, field("a", "b" * 5000)), 400, "BadRequest"),
    "a long name of a field": (lambda p: whole(p, field("a" * 9000, "b")), 400, "BadRequest"),
    "many headers": (lambda p: whole(p, b"X: y\r\n" * 50 + field("a", "b")), 400, "BadRequest"),
    "a header without an end": (lambda _: (START + b"X: " + b"y" * MAX_BODY, MULTIPART), 400, "BadRequest"),
    "no disposition": (lambda p: whole(p, b"Content-Type: text/plain\r\n\r\ndata"), 400, "BadRequest"),
    "another disposition": (lambda p: whole(p, b"Content-Disposition: attachment\r\n\r\ndata"), 400, "BadRequest"),
    "a field that is no UTF-8": (lambda p: whole(p, field("a", "") + b"\xff"), 400, "BadRequest"),
    "a name that is no UTF-8": (
        lambda p: form(key(p), file_part(b"data").replace(b"photo", b"\xff\xfe")),
        400,
        "BadRequest",
    ),
    "an empty name": (lambda p: form(key(p), file_part(b"data", name="")), 200, "BadName"),
    "NUL in a name": (lambda p: form(key(p), file_part(b"data", name="a\0b")), 200, "BadName"),
    "a name of 2,000 bytes": (lambda p: form(key(p), file_part(b"data", name="n" * 2000)), 200, "BadName"),
    "a type that is none": (lambda p: form(key(p), file_part(b"data", content_type="é")), 200, "BadValue"),
    "garbage": (lambda _: (b"garbage", MULTIPART), 400, "BadRequest"),
    "nothing": (lambda _: (b"", MULTIPART), 400, "BadRequest"),
    "the end cut off": (lambda p: (whole(p)[0][:-20], MULTIPART), 400, "BadRequest"),
    "another boundary": (lambda p: (whole(p)[0], f"{MULTIPART.strip()}x\r\n"), 400, "BadRequest"),
    "no boundary": (lambda p: (whole(p)[0], "Content-Type: multipart/form-data\r\n"), 415, "BadType"),
    "a boundary of 300": (lambda p: (whole(p)[0], f"{MULTIPART.strip()}{'x' * 300}\r\n"), 400, "BadRequest"),
    "JSON": (lambda p: (whole(p)[0], "Content-Type: application/json\r\n"), 415, "BadType"),
    "no type": (lambda p: (whole(p)[0], ""), 415, "BadType"),
    "a plain form": (lambda _: (b"key=x", "Content-Type: application/x-www-form-urlencoded\r\n"), 415, "BadType"),
    "compressed": (lambda p: (whole(p)[0], f"{MULTIPART}Content-Encoding: gzip\r\n"), 415, "BadType"),
    "a file over the limit": (lambda p: form(key(p), file_part(b"x" * (MAX_MEDIA + 1))), 200, "TooBig"),
    "a body over the limit": (lambda p: (bytes(MAX_MEDIA + AROUND + 1), whole(p)[1]), 413, "BodyTooBig"),
    "a file over the limit before its key": (lambda p: form(file_part(b"x" * (MAX_MEDIA + 1)), key(p)), 200, "TooBig"),
    "an unknown key after its file": (
        lambda _: form(file_part(b"x" * MAX_MEDIA), field("key", "k" * 32)),
        401,
        "BadKey",
    ),
    "no key behind a large file": (lambda _: form(file_part(b"x" * MAX_MEDIA)), 400, "BadRequest"),
}


@pytest.mark.parametrize("case", FORMS)
def test_each_try_has_its_answer(posted: Posted, case: str, caplog: pytest.LogCaptureFixture) -> None:
    """A status, a name and one sentence; neither it nor the log holds the key; and nothing is stored."""
    make, status, error = FORMS[case]
    answer = posted.answer(*make(posted))
    assert (answer.status, answer.json["error"]) == (status, error)
    assert answer.json["message"].endswith(".")
    assert posted.uploader.api_key.encode() not in answer.body
    assert posted.uploader.api_key not in caplog.text
    assert comes_to(posted.uploader.storage, 0, 0, 0)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD"])
def test_another_method(posted: Posted, method: str) -> None:
    """Only a POST uploads, and the answer says so."""
    answer = requests.request(method, posted.address + UPLOAD, timeout=PATIENCE)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST, OPTIONS")


def test_another_path(posted: Posted) -> None:
    """What only begins like the path is none."""
    for path in (f"{UPLOAD}/", f"{UPLOAD}x", f"{UPLOAD}/a.png"):
        assert posted.answer(*whole(posted), path).status == 404
    assert rows(posted.uploader.storage) == (0, 0, 0)


def test_an_announced_size_is_refused_unread(posted: Posted) -> None:
    """Who says beforehand that the body is too large needn't send it, and sees why; so with a wrong type."""
    for header, status in ((MULTIPART, 413), ("Content-Type: text/plain\r\n", 415)):
        with Connection(posted.address) as connection:
            connection.start(UPLOAD, f"{header}Content-Length: {10 * 2**30}\r\n")
            assert connection.answer().status == status


def test_a_body_without_an_end(posted: Posted) -> None:
    """One whose length isn't told, and which goes on behind the form, ends at the limit as well."""
    with Connection(posted.address) as connection:
        connection.start(UPLOAD, f"{MULTIPART}Transfer-Encoding: chunked\r\n", chunk(whole(posted)[0]))
        for _ in range(MAX_MEDIA // 2**17 + 2):
            connection.send(chunk(bytes(2**17)))
        answer = connection.answer()
    assert (answer.status, answer.json["error"]) == (413, "BodyTooBig")
    assert comes_to(posted.uploader.storage, 0, 0, 0)


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("key_first", [True, False])
def test_a_cut_connection(posted: Posted, how: str, key_first: bool) -> None:
    """An upload that breaks off in the middle leaves nothing, however it was stored till then."""
    parts = [key(posted), file_part(b"x" * (MAX_BODY * 3 // 4))]
    body, header = form(*(parts if key_first else parts[::-1]))
    with Connection(posted.address) as connection:
        connection.start(UPLOAD, f"{header}Content-Length: {len(body)}\r\n", body[: CHUNK_BYTES + 2000])
        if key_first:
            while rows(posted.uploader.storage).chunks == 0:
                pass
        if how == "reset":
            connection.reset()
    assert comes_to(posted.uploader.storage, 0, 0, 0)


def test_one_that_drips() -> None:
    """An upload slower than the lowest rate is ended with a sentence, and leaves nothing."""
    with Service(new_storage(), Settings(body_timeout=0.2, min_upload_rate=1e9)) as service:
        uploader = Uploader(service)
        body, header = form(field("key", uploader.api_key), file_part(b"x" * 2 * CHUNK_BYTES))
        with background(service) as address, Connection(address) as connection:
            connection.start(UPLOAD, f"{header}Content-Length: {len(body)}\r\n", body[:-1000])
            answer = connection.answer()
            assert (answer.status, answer.json["error"]) == (400, "BadRequest")
            assert "slowly (the service's body_timeout and min_upload_rate)" in answer.json["message"]
            assert connection.rest() == b""
            assert comes_to(uploader.storage, 0, 0, 0)


class Leaping(asyncio.SelectorEventLoop):
    """A loop whose time can leap forward."""

    leapt = 0.0

    def time(self) -> float:
        """Return the time, with all leaps."""
        return super().time() + self.leapt


@pytest.mark.parametrize(("piece", "arrives"), [(2**17, True), (2**16, False)])
def test_the_lowest_rate(posted: Posted, piece: int, arrives: bool) -> None:
    """Past the time that a body may take, each byte buys more at that rate, so a long upload may last."""
    body, _ = form(key(posted), file_part(b"x" * MAX_BODY))
    pieces = [body[at : at + piece] for at in range(0, len(body), piece)]
    loop = Leaping()

    async def receive() -> Message:
        data = pieces.pop(0)
        if pieces:
            loop.leapt += 100
        for _ in range(3):
            await asyncio.sleep(0)
        return {"type": "http.request", "body": data, "more_body": bool(pieces)}

    media = posted.uploader.service.media

    def begin(form: UploadForm, address: str) -> UploadStream:
        return media.begin(api_key=form.fields["key"], name=form.filename, content_type="image/png", address=address)

    async def nobody(_form: UploadForm, _address: str) -> None: ...

    # The first piece has a body's own time; those after it 100 seconds each, which 102,400 bytes buy.
    settings = Settings(body_timeout=101, min_upload_rate=1024)
    scope = {"client": None, "headers": [(b"content-type", MULTIPART[14:].strip().encode())]}
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        space = SpoolSpace(settings)
        taking = take_upload(
            scope,
            receive,
            settings,
            Sender(nobody, begin),
            BoundedWorkers(AT_ONCE, WAITING, "test"),
            space,
            needs="key",
        )
        if arrives:
            facts = decode_value(runner.run(taking).data)  # type: ignore[arg-type]  # there always is some
            media.delete(posted.uploader.account, facts["id"])
            return
        with pytest.raises(RefusedError) as caught:
            runner.run(taking)
    assert "slow" in str(caught.value.error)
    assert comes_to(posted.uploader.storage, 0, 0, 0)


@pytest.mark.parametrize("piece", [1, 6, 1000])
def test_text_before_the_form(posted: Posted, piece: int) -> None:
    """What stands before a form's first boundary, but for line ends, is refused in whatever pieces it comes."""
    body, header = form(key(posted), file_part(b"data"))
    for before, status in ((b"\r\n\n", 200), (b"\r\ntext-\r\n", 400), (b"text\r\n", 400)):
        whole = before + body
        with Connection(posted.address) as connection:
            connection.start(UPLOAD, f"{header}Transfer-Encoding: chunked\r\n")
            connection.send(b"".join(chunk(whole[at : at + piece]) for at in range(0, len(whole), piece)) + chunk(b""))
            assert connection.answer().status == status


@pytest.mark.parametrize(
    "line",
    [
        f"\r\n--{BOUNDARY}".encode()[:-1] + b"x",
        f"\r\n--{BOUNDARY}x".encode(),
        f"\r\n--{BOUNDARY}-x".encode(),
        f"\r\n--{BOUNDARY}\rx".encode(),
        b"\r\n--",
        b"\r\n",
        b"\r",
    ],
)
@pytest.mark.parametrize("piece", [2**18, 4099])
def test_lines_like_the_boundary(line: bytes, piece: int) -> None:
    """A file whose lines look like the boundary is read byte for byte, in few pieces, however many lines it has."""
    data = line * (2**18 // len(line))
    body, header = form(file_part(data))
    reading = UploadForm(header.partition(": ")[2].strip())
    pieces = []
    for at in range(0, len(body), piece):
        reading.feed(body[at : at + piece])
        pieces.append(reading.take())
        assert len(pieces[-1]) <= 4
    assert b"".join(b"".join(each) for each in pieces) == data
    assert reading.has_ended


@pytest.mark.parametrize(
    "part",
    [
        b"X: x\r\n" * 1000,
        b"X-%b: x\r\n" % (b"x" * 100_000),
        b"X: %b\r\n" % (b"x" * 100_000),
        b"Content-Disposition: form-data; name=a%b\r\n" % (b"; a=b" * 5000),
    ],
    ids=["many headers", "a long name", "a long value", "many parameters"],
)
def test_many_headers(posted: Posted, part: bytes) -> None:
    """A part has few headers, and short ones; what has more is refused as soon as that is seen."""
    answer = posted.answer(*form(key(posted), part + b"\r\ndata", file_part(b"data")))
    assert (answer.status, answer.json["error"]) == (400, "BadRequest")


def test_thousands_of_parts(posted: Posted) -> None:
    """A form of tiny parts is refused at the seventeenth, before the others are read."""
    taken = UploadForm(MULTIPART.partition(": ")[2].strip())
    with pytest.raises(ProtocolError, match="more than 16 parts"):
        taken.feed(form(*[field("a", "")] * 5000)[0])
    assert taken._parts == 17
    assert posted.post(*[field("a", "")] * 5000)["error"] == "BadRequest"
