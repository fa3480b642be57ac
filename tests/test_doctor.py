"""The doctor finds each difference of a service from the assumptions of the clients, and leaves no file behind."""

from __future__ import annotations

import base64
import http.client
import json
import posixpath
import re
import threading
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, ClassVar
from urllib.parse import quote, unquote

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping import doctor as doctor_module
from cloudstore_mapping.callback_client import Pacer
from cloudstore_mapping.client.transport import Fetched, HTTPTransport, refused
from cloudstore_mapping.doctor import CHECKS, REQUESTS, UNTESTABLE, Doctor, Finding, Outcome, Report
from cloudstore_mapping.errors import TransportError
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from cloudstore_mapping.wire import Reply, Upload, encode_value
from tests.storages import new_storage
from tests.vendor import Fault, Media, Recorded, Vendor

PREFIX = "doctor-0a1b2c3d"
#: Checks that need an option.
OPTIONAL = {"files", "upload", "media-link"}

Ask = dict[str, Any]
Do = Callable[[Ask], Ask]


@pytest.fixture
def vendor(vendor: Vendor) -> Vendor:
    """Return a vendor's service that knows one API key."""
    vendor.checks_keys = True
    return vendor


class Direct(HTTPTransport):
    """Transport that asks a vendor's service in this process; `at` is called with the number of each request."""

    def __init__(self, vendor: Vendor, tweak: Callable[[Ask, Do], Ask] | None = None) -> None:
        super().__init__(vendor.address)
        self.vendor = vendor
        self.tweak = tweak
        self.before: Callable[[int], Any] = lambda _: None
        self.after: Callable[[int], Any] = lambda _: None
        self.headers: dict[str, str] = {"Content-Type": "application/json"}
        self.encode: Callable[[str], bytes] = str.encode
        self.count = 0

    def post(self, path: str, body: bytes, headers: Any = None) -> Any:
        """Return a response such as those of `requests`."""
        number, self.count = self.count, self.count + 1
        if (fault := self.before(number)) is not None:
            return response(fault.status, fault.body, fault.headers)

        def do(asked: Ask) -> Ask:
            asked_for = Recorded("POST", f"/cloudstore{path}", {}, json.dumps(asked).encode())
            return self.vendor.answer(asked_for)

        asked = json.loads(body)
        answer = do(asked) if self.tweak is None else self.tweak({**asked, "path": path}, do)
        self.after(number)
        return response(200, self.encode(json.dumps(answer, ensure_ascii=False)), self.headers)

    def fetch(self, link: str, start: int = 0, tag: str | None = None) -> Fetched:
        """Return a media file of the vendor's, or a refusal."""
        number, self.count = self.count, self.count + 1
        if (fault := self.before(number)) is not None:
            return refused(Reply(error="Http error", status=fault.status))
        media = self.vendor.links.get(f"/cloudstore{link}")
        self.after(number)
        if media is None:
            return refused(Reply(error="NoFile", status=404))
        return Fetched(None, start, 1, tag, "", None, iter([media.data]), lambda: None)

    def send(self, request: Any) -> Reply:
        """Store a media file, and describe it in the way that `media_data` says."""
        assert isinstance(request, Upload)
        facts = {"name": request.name, "folder": "0" * 32, "id": "1" * 32, "mimetype": "text/plain", "size": 1}
        self.vendor.links[f"/cloudstore/files/{'0' * 32}/{'1' * 32}.txt"] = Media("text/plain", b"x", {})
        return Reply(message=encode_value("File Uploaded"), data=encode_value({**facts, **self.media_data}))

    media_data: ClassVar[Ask] = {}


def response(status: int, body: bytes, headers: dict[str, str]) -> Any:
    """Return what the doctor reads of a `requests.Response`."""
    return SimpleNamespace(status_code=status, content=body, headers=headers, reason="")


def doctor(vendor: Vendor, transport: HTTPTransport, **options: Any) -> Doctor:
    """Return a doctor that never waits."""
    options = {"new_prefix": lambda: PREFIX, **options}
    pacer = Pacer(lambda: 0.0, lambda _: None)
    return Doctor(vendor.api_key, vendor.address, transport=transport, pacer=pacer, sleep=lambda _: None, **options)


def with_outcome(report: Report, outcome: Outcome) -> set[str]:
    """Return the checks with an outcome."""
    return {finding.check for finding in report.findings if finding.outcome is outcome}


def different(report: Report) -> set[str]:
    """Return the checks that found a difference."""
    return with_outcome(report, Outcome.DIFFERENT)


# The services: ours, and the vendor's as documented, in variants.


def test_our_service_is_as_expected() -> None:
    """On our service nothing is different, only what can't be tested is left out, and no file is left."""
    with Service(new_storage()) as service, background(service) as address:
        api_key = service.accounts.create("owner")
        report = Doctor(api_key, address, files=2).examine()
        with cm.open(address.replace("://", f"://{api_key}@")) as store:
            assert list(store) == []
    assert different(report) == set()
    assert with_outcome(report, Outcome.NOT_TESTED) == {*UNTESTABLE, "upload", "media-link"}
    assert "once" in report.extensions
    assert (report.left, report.failure) == ((), None)


def test_a_service_with_a_rate_limit() -> None:
    """A service that refuses requests sent too early gets them later, and the refusal is as expected."""
    with Service(new_storage()) as service, background(service) as address:
        api_key = service.accounts.create("owner")
        service.accounts.set_limits("owner", min_interval=0.001)
        assert different(Doctor(api_key, address).examine()) == set()


VARIANTS: list[tuple[str, set[str], set[str]]] = [
    ("", set(), set()),
    ("refuses_commas", {"comma"}, {"filter-comma"}),
    ("slashes_are_folders", {"slash", "slash-beside"}, {"dots"}),
    (
        "merges_whole_values",
        {"merge"},
        {"merge-objects", "merge-arrays", "merge-null", "merge-scalar", "merge-misfit"},
    ),
]


@pytest.mark.parametrize(("variant", "expected", "untested"), VARIANTS)
def test_the_vendors_service(vendor: Vendor, variant: str, expected: set[str], untested: set[str]) -> None:
    """On the vendor's service each difference is found, and no other; no file is left, and theirs stay."""
    if variant:
        setattr(vendor, variant, True)
    vendor.files = {"mine": 1, "doctor-mine": 2}
    report = Doctor(vendor.api_key, vendor.address, media=True).examine()
    assert different(report) == expected
    assert with_outcome(report, Outcome.NOT_TESTED) == {*UNTESTABLE, "files", *untested}
    assert vendor.files == {"mine": 1, "doctor-mine": 2}
    assert [left.name for left in report.left] == [f'media file "{report.prefix}.txt"']
    assert report.extensions == ()


def test_a_service_that_takes_any_key(vendor: Vendor) -> None:
    """A service that doesn't check API keys, as that of other tests, is different in this alone."""
    vendor.checks_keys = False
    assert different(Doctor(vendor.api_key, vendor.address).examine()) == {"wrong-key"}


@pytest.mark.parametrize("options", [{}, {"media": True}, {"files": 5}])
def test_the_number_of_requests(vendor: Vendor, options: dict[str, Any]) -> None:
    """The number of requests told before is the number sent, but for a few."""
    examination = doctor(vendor, Direct(vendor), **options)
    told = examination.expected_requests
    assert examination.examine().requests == pytest.approx(told, abs=3)
    assert told >= REQUESTS


# Each check alone, by a service that is wrong in this way.


def on_load(change: Callable[[Any], Any]) -> Callable[[Ask, Do], Ask]:
    """Change what a load returns."""

    def tweak(asked: Ask, do: Do) -> Ask:
        answer = do(asked)
        if asked["path"] == "/store/load" and asked["options"] is None and answer["error"] is None:
            answer["message"] = change(answer["message"])
        return answer

    return tweak


def part(name: str, change: Callable[[Any], Any]) -> Callable[[Ask, Do], Ask]:
    """Change a part of the value that holds them all."""
    return on_load(lambda value: {**value, name: change(value[name])} if is_whole(value, name) else value)


def is_whole(value: Any, name: str) -> bool:
    """Tell if a value has a part."""
    return isinstance(value, dict) and name in value


def on_name(change: Callable[[str], str]) -> Callable[[Ask, Do], Ask]:
    """Change the name of a file."""
    return lambda asked, do: do(asked if asked["options"] == "list" else {**asked, "file": change(asked["file"])})


def no_name(pattern: str) -> Callable[[Ask, Do], Ask]:
    """Refuse to save under names with this."""
    return when(lambda asked: is_save(asked) and re.search(pattern, asked["file"]), "Invalid")


def when(is_asked: Callable[[Ask], Any], error: str | None, *, does: bool = False) -> Callable[[Ask, Do], Ask]:
    """Answer some requests by an error or a success, with nothing done unless it `does`."""

    def tweak(asked: Ask, do: Do) -> Ask:
        if not is_asked(asked):
            return do(asked)
        if does:
            do(asked)
        return {"error": error, "message": None}

    return tweak


def is_save(asked: Ask) -> bool:
    """Tell if it is a save or a merge."""
    return asked["path"] == "/store/save" and asked["options"] in (None, "merge")


def instead(error: str, options: str | None, new: Ask) -> Callable[[Ask, Do], Ask]:
    """Replace the reply with an error, to requests with these options."""
    return lambda asked, do: new if (answer := do(asked))["error"] == error and asked["options"] == options else answer


def lists(vendor: Vendor, has: Callable[[str, str], Any]) -> Callable[[Ask, Do], Ask]:
    """Filter lists in another way."""

    def tweak(asked: Ask, do: Do) -> Ask:
        if asked["options"] != "list":
            return do(asked)
        return {"error": None, "message": ",".join(name for name in vendor.files if has(asked["file"], name))}

    return tweak


def merging(
    vendor: Vendor, change: Callable[[Any, Any, Any], Any], is_asked: Callable[[Any, Any], Any]
) -> Callable[[Ask, Do], Ask]:
    """Merge in another way where `is_asked`: a function of the stored, the given and the merged value."""

    def tweak(asked: Ask, do: Do) -> Ask:
        name, value = asked["file"], asked.get("value")
        stored = vendor.files.get(name)
        answer = do(asked)
        if asked["options"] == "merge" and is_asked(stored, value):
            vendor.files[name] = change(stored, value, vendor.files.get(name))
            return {"error": None, "message": "Entry saved"}
        return answer

    return tweak


def locking(vendor: Vendor) -> Callable[[Ask, Do], Ask]:
    """Lock a file with the password that a save has."""

    def tweak(asked: Ask, do: Do) -> Ask:
        answer = do(asked)
        if is_save(asked) and answer["error"] is None and asked.get("password") not in (None, "", "undefined"):
            vendor.edit_passwords[asked["file"]] = vendor.view_passwords[asked["file"]] = asked["password"]
        return answer

    return tweak


def stale() -> Callable[[Ask, Do], Ask]:
    """Find a file once more after its delete."""
    deleted: list[str] = []

    def tweak(asked: Ask, do: Do) -> Ask:
        answer = do(asked)
        if asked["options"] == "delete" and answer["error"] is None:
            deleted.append(asked["file"])
        elif asked["options"] is None and answer["error"] == "NoFile" and asked["file"] in deleted:
            return {"error": None, "message": 1}
        return answer

    return tweak


def twice() -> Callable[[Ask, Do], Ask]:
    """Refuse a request that is the same as the one before it."""
    last: list[Ask] = [{}]

    def tweak(asked: Ask, do: Do) -> Ask:
        before, last[0] = last[0], asked
        return {"error": "SlowDown", "message": ""} if asked == before else do(asked)

    return tweak


def both(stored: Any, value: Any) -> bool:
    """Tell if both are objects."""
    return isinstance(stored, dict) and isinstance(value, dict)


def size(asked: Ask) -> int:
    """Return the size of the value of a save."""
    return len(json.dumps(asked["value"])) if is_save(asked) and "value" in asked else 0


MakeTweak = Callable[[Vendor], Callable[[Ask, Do], Ask]]
#: For each check a service that is wrong in its way, and the other checks that notice it.
WRONG: dict[str, tuple[MakeTweak, set[str]]] = {
    "reply": (
        lambda _: lambda asked, do: {"error": do(asked)["error"]} if asked["options"] == "delete" else do(asked),
        set(),
    ),
    "wrong-key": (lambda _: instead("BadKey", None, {"error": "NoFile", "message": ""}), set()),
    "empty-list": (
        lambda _: (
            lambda asked, do: (
                {"error": "NoFile", "message": ""}
                if not (answer := do(asked))["message"] and asked["options"]
                else answer
            )
        ),
        set(),
    ),
    "load-missing": (lambda _: instead("NoFile", None, {"error": None, "message": None}), {"load-deleted", "null"}),
    "delete-missing": (lambda _: instead("NoFile", "delete", {"error": None, "message": ""}), set()),
    "save": (lambda _: when(is_save, "Full"), set()),
    "load": (
        lambda _: (
            lambda asked, do: (
                {"error": None, "message": "Entry loaded", "data": answer["message"]}
                if (answer := do(asked))["error"] is None
                and asked["options"] is None
                and asked["path"] == "/store/load"
                else answer
            )
        ),
        set(),
    ),
    "delete": (lambda _: when(lambda asked: asked["options"] == "delete", "Deleted", does=True), {"delete-missing"}),
    "load-deleted": (lambda _: stale(), set()),
    "unknown-fields": (lambda _: when(lambda asked: "dataPass" in asked, "Unknown"), set()),
    "null": (lambda _: on_load(lambda value: "" if value is None else value), {"no-value"}),
    "zero": (lambda _: on_load(lambda value: None if value == 0 else value), set()),
    "empty-text": (lambda _: on_load(lambda value: None if value == "" else value), set()),
    "text": (lambda _: on_load(lambda value: {"a": 1} if value == '{"a": 1}' else value), set()),
    "integers": (lambda _: part("integers", lambda numbers: [*map(float, numbers)]), set()),
    "floats": (lambda _: part("floats", lambda numbers: [int(x) if x == int(x) else x for x in numbers]), set()),
    "unicode": (lambda _: part("unicode", lambda text: text.replace("\0", "")), set()),
    "empty": (lambda _: part("empty", lambda values: [value for value in values if value]), set()),
    "names": (lambda _: part("names", lambda names: {k: v for k, v in names.items() if k != "__proto__"}), set()),
    "deep": (lambda _: part("deep", lambda value: value[0]), set()),
    "order": (lambda _: part("order", lambda names: dict(sorted(names.items()))), set()),
    "duplicates": (lambda _: part("duplicates", lambda _: {"a": 1}), set()),
    "no-value": (lambda _: when(lambda asked: is_save(asked) and "value" not in asked, None), set()),
    "list": (
        lambda _: (
            lambda asked, do: (
                {"error": None, "message": do(asked)["message"].replace(",", ", ")}
                if asked["options"] == "list"
                else do(asked)
            )
        ),
        set(),
    ),
    "filter": (lambda vendor: lists(vendor, lambda text, name: name.startswith(text)), set()),
    "filter-case": (lambda vendor: lists(vendor, lambda text, name: text.lower() in name.lower()), set()),
    "filter-wildcards": (
        lambda vendor: lists(vendor, lambda text, name: re.search(text.replace("*", "."), name)),
        set(),
    ),
    "filter-comma": (
        lambda _: (
            lambda asked, do: do(
                {**asked, "file": f"{asked['file']}!"} if "," in asked["file"] and asked["options"] == "list" else asked
            )
        ),
        set(),
    ),
    "comma": (lambda _: no_name(","), set()),
    "slash": (lambda _: no_name("/"), set()),
    "slash-beside": (lambda _: no_name("folder$"), set()),
    "space": (lambda _: no_name(" "), {"space-end"}),
    "space-end": (lambda _: on_name(str.rstrip), set()),
    "case": (lambda _: on_name(lambda name: name[:-1] + name[-1:].lower()), set()),
    "letters": (lambda _: no_name("[^ -~\t]"), {"normal-form"}),
    "normal-form": (lambda _: on_name(lambda name: unicodedata.normalize("NFC", name)), set()),
    "percent": (lambda _: on_name(unquote), set()),
    "marks": (lambda _: on_name(lambda name: name.partition("?")[0]), set()),
    "quotes": (lambda _: no_name('"'), set()),
    "tab": (lambda _: no_name("\t"), set()),
    "dots": (lambda _: on_name(lambda name: posixpath.normpath(name) if "/" in name else name), set()),
    "long-name": (lambda _: on_name(lambda name: name[:255]), set()),
    "merge": (lambda vendor: merging(vendor, lambda stored, value, _: {"_data": stored, **value}, both), set()),
    "merge-objects": (
        lambda vendor: merging(vendor, lambda stored, value, _: {**stored, **value}, both),
        {"merge-arrays"},
    ),
    "merge-arrays": (
        lambda vendor: merging(
            vendor, lambda _, value, both: {**both, **{k: v for k, v in value.items() if k == "arrays"}}, both
        ),
        set(),
    ),
    "merge-null": (
        lambda vendor: merging(
            vendor, lambda _, value, both: {k: v for k, v in both.items() if value.get(k, 1) is not None}, both
        ),
        set(),
    ),
    "merge-scalar": (
        lambda vendor: merging(
            vendor, lambda _, __, both: {**both, "scalar": [1, 2]} if "scalar" in both else both, both
        ),
        set(),
    ),
    "merge-top": (lambda vendor: merging(vendor, lambda stored, *_: stored, lambda _, value: value == 7), set()),
    "merge-missing": (
        lambda vendor: when(lambda asked: asked["options"] == "merge" and asked["file"] not in vendor.files, "NoFile"),
        set(),
    ),
    "merge-misfit": (lambda _: instead("BadMerge", "merge", {"error": None, "message": "Entry saved"}), set()),
    "password-none": (lambda _: when(lambda asked: is_save(asked) and "password" not in asked, "Locked"), set()),
    "password-undefined": (lambda _: when(lambda asked: asked.get("password") == "undefined", "Locked"), set()),
    "password-needless": (lambda vendor: locking(vendor), set()),
    "size": (lambda _: when(lambda asked: size(asked) > 3000, "TooBig"), set()),
    "size-over": (lambda _: when(lambda asked: size(asked) > 3072, "FileTooBig"), set()),
    "rate": (lambda _: twice(), set()),
    "files": (lambda _: when(lambda asked: "-file-" in asked["file"] and is_save(asked), "Full"), set()),
}


@pytest.mark.parametrize("check", WRONG)
def test_each_check_finds_its_difference(vendor: Vendor, check: str) -> None:
    """A service that is wrong in one way is different in this check, with its consequence; no file is left."""
    make_tweak, others = WRONG[check]
    report = doctor(vendor, Direct(vendor, make_tweak(vendor)), files=1).examine()
    assert different(report) == {check, *others}
    assert all((finding.consequence is None) != (finding.check in {check, *others}) for finding in report.findings)
    assert all((finding.requests == ()) != (finding.check in {check, *others}) for finding in report.findings)
    assert vendor.files == {}
    assert f"{check}: DIFFERENT" in report.as_text()


def test_the_extensions_differ(vendor: Vendor) -> None:
    """A header that only some replies have is a difference."""
    transport = Direct(vendor)
    transport.after = lambda number: number == 5 and transport.headers.update({"CloudStore-Extensions": "once, page"})
    report = doctor(vendor, transport).examine()
    assert (different(report), report.extensions) == ({"extensions"}, ("once", "page"))


@pytest.mark.parametrize("hours", [1, -1])
def test_the_clocks_differ(vendor: Vendor, hours: int) -> None:
    """A service's clock that is wrong by an hour is a difference."""
    now = datetime.now(UTC) + timedelta(hours=hours)
    report = doctor(vendor, HTTPTransport(vendor.address), now=lambda: now).examine()
    assert different(report) == {"clock"}
    (finding,) = [finding for finding in report.findings if finding.check == "clock"]
    assert re.search(r"3,(600|601|599) seconds " + ("behind" if hours > 0 else "ahead"), finding.observed)


@pytest.mark.parametrize(
    "date", ["Tue, 01 Dec 2026 22:00:00 +99999999999999", "Tue, 01 Dec 99999999999 22:00:00 GMT", "soon"]
)
def test_a_date_that_cannot_be_read(vendor: Vendor, date: str) -> None:
    """A header Date that is no date, or one beyond all bounds, leaves the clock untested."""
    transport = Direct(vendor)
    transport.headers["Date"] = date
    report = doctor(vendor, transport).examine()
    assert different(report) == set()
    assert finding_of(report, "clock").observed == f"the header Date can't be read: a text of {len(date):,} characters"


def test_a_reply_that_never_ends(vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply that trickles in ends at the deadline of its request, twice; the file that may be there is named."""
    monkeypatch.setattr(doctor_module, "_LONGEST_REQUEST", 0.2)
    answer = vendor.answer
    done = threading.Event()

    def answer_slowly(request: Recorded) -> Any:
        if len(vendor.requests) > 5:
            vendor.lock.release()
            done.wait(30)
            vendor.lock.acquire()
        return answer(request)

    monkeypatch.setattr(vendor, "answer", answer_slowly)
    try:
        report = doctor(vendor, HTTPTransport(vendor.address)).examine()
    finally:
        done.set()
    assert isinstance(report.failure, cm.TimedOutError)
    assert report.requests == 5 + 2 * 3  # two groups of checks, and the deletes
    assert [left.name for left in report.left] != []


def test_get_is_answered(vendor: Vendor) -> None:
    """A path of the protocol that answers GET is a difference."""
    vendor.links["/cloudstore/store/load"] = Media("text/html", b"x", {})
    assert different(doctor(vendor, Direct(vendor)).examine()) == {"get"}


@pytest.mark.parametrize(("check", "data"), [("upload", {"id": 5}), ("media-link", {"id": "2" * 32})])
def test_uploads_differ(vendor: Vendor, check: str, data: Ask) -> None:
    """An upload's reply without a field, or with a link that leads nowhere, is a difference."""
    transport = Direct(vendor)
    transport.media_data = data  # type: ignore[misc]  # of this transport alone
    assert different(doctor(vendor, transport, media=True).examine()) == {check}


def test_every_check_can_find_a_difference() -> None:
    """Each check that can be tested has a test above that sees its difference."""
    alone = {"extensions", "clock", "get", "upload", "media-link"}
    assert WRONG.keys() | alone == CHECKS.keys() - UNTESTABLE.keys()


@pytest.mark.parametrize("check", ["merge-misfit", "size-over", "list", "unknown-fields"])
def test_the_requests_at_a_difference(vendor: Vendor, check: str) -> None:
    """A difference has the requests that show it, with path, headers and body; the API key is masked."""
    asked: list[str] = []
    tweak = WRONG[check][0](vendor)
    transport = Direct(vendor, tweak)
    post = transport.post

    def note(path: str, body: bytes, headers: Any = None) -> Any:
        asked.append(f"POST {path} {body.decode()}".replace(vendor.api_key, "…"))
        return post(path, body, headers)

    transport.post = note  # type: ignore[method-assign]
    report = doctor(vendor, transport).examine()
    requests = finding_of(report, check).requests
    assert all(f"\n  request:     {request}\n" in report.as_text() for request in requests)
    if check == "size-over":
        assert re.fullmatch(r'POST /store/save {.*"value": "xxx… \(3,071 times\)"}', requests[0])
    elif check == "unknown-fields":
        assert re.fullmatch(r'POST /store/save Idempotency-Key: "\w{32}", {"key": "…".* "dataPass": "…"}', requests[0])
    else:
        assert set(requests) <= set(asked)
        assert len(requests) == len(set(requests)) == (3 if check == "merge-misfit" else 2)


def finding_of(report: Report, check: str) -> Finding:
    """Return the finding of a check."""
    return {finding.check: finding for finding in report.findings}[check]


def test_the_quoted_list(vendor: Vendor) -> None:
    """A list that the clients can't read is quoted, with no word that is no name of the doctor's."""
    vendor.files = {"private file": 1}
    tweak = WRONG["list"][0](vendor)
    report = doctor(
        vendor,
        Direct(vendor, lambda asked, do: tweak({**asked, "file": ""}, do) if asked["options"] == "list" else do(asked)),
    ).examine()
    observed = finding_of(report, "list").observed
    assert f'message "… …, {PREFIX}-value, {PREFIX}-a, ' in observed
    assert "private" not in report.as_text()


def test_null_for_a_missing_name(vendor: Vendor) -> None:
    """A null that a missing name has, too, shows no saved null."""
    report = doctor(vendor, Direct(vendor, WRONG["load-missing"][0](vendor))).examine()
    assert "null comes for a missing name, too" in finding_of(report, "null").observed


@pytest.mark.parametrize(
    ("check", "reply", "effect"),
    [
        ("load-missing", {"error": None, "message": 1}, "setdefault() take it for a saved value."),
        ("load-missing", {"error": "Absent", "message": ""}, "setdefault() raise another error."),
        ("load-deleted", {"error": None, "message": 1}, "A deleted key is still found."),
        ("load-deleted", {"error": "Absent", "message": ""}, "A load of a deleted key raises another error."),
    ],
)
def test_the_consequence(vendor: Vendor, check: str, reply: Ask, effect: str) -> None:
    """A consequence is that of the observed reply, not a choice between several."""
    report = doctor(vendor, Direct(vendor, instead("NoFile", None, reply))).examine()
    assert (finding_of(report, check).consequence or "").endswith(effect)


def test_a_delete_without_a_success(vendor: Vendor) -> None:
    """A delete that is done but reported as an error has this consequence; one that isn't done has another."""
    done, refused_one = (
        doctor(vendor, Direct(vendor, when(lambda asked: asked["options"] == "delete", "No", does=does))).examine()
        for does in (True, False)
    )
    assert "though it was" in (finding_of(done, "delete").consequence or "")
    assert finding_of(refused_one, "delete").consequence == "Keys can't be deleted."
    assert (done.left, done.is_clean) == ((), True)
    assert names_left(refused_one) == set(vendor.files)


def test_a_refused_value_is_found_by_its_part(vendor: Vendor) -> None:
    """If the value of all parts is refused, each part is tried alone."""
    tweak = when(lambda asked: 10**40 in json_numbers(asked.get("value")), "BadValue")
    report = doctor(vendor, Direct(vendor, tweak)).examine()
    assert different(report) == {"integers"}


def json_numbers(value: Any) -> list[Any]:
    """Return the numbers in a value of the check."""
    if isinstance(value, dict):
        value = value.get("integers")
    return value if isinstance(value, list) else []


# Files: only its own, and none is left.


def test_names_of_the_user(vendor: Vendor) -> None:
    """A prefix that a name of the user's has is not used, and no such name is touched."""
    vendor.files = {f"{PREFIX}-a": "mine", PREFIX: "mine", "x": "mine"}
    theirs = dict(vendor.files)
    prefixes = iter([PREFIX, "doctor-11111111"])
    report = doctor(vendor, Direct(vendor), new_prefix=lambda: next(prefixes)).examine()
    assert (report.prefix, vendor.files) == ("doctor-11111111", theirs)
    with pytest.raises(cm.BadNameError):
        doctor(vendor, Direct(vendor)).examine()
    assert vendor.files == theirs


def test_each_name_begins_with_the_prefix(vendor: Vendor) -> None:
    """Each request is about a name that begins with the prefix, also in each part of it that a service may split."""
    transport = Direct(vendor)
    touched: list[Ask] = []
    transport.tweak = lambda asked, do: touched.append(asked) or do(asked)  # type: ignore[func-returns-value]
    doctor(vendor, transport, files=2).examine()
    for asked in touched:
        if asked["options"] != "list":
            parts = re.split(r"[,/ ?#&\t\\]", asked["file"].replace("/../", "/").replace("-e\u0301", "-é").rstrip())
            assert all(part.startswith(PREFIX) for part in parts if part != ""), asked["file"]


def test_a_file_under_another_name(vendor: Vendor) -> None:
    """A file that the service keeps under another name than it was saved by is found in the list, and deleted."""

    def tweak(asked: Ask, do: Do) -> Ask:
        return do({**asked, "file": asked["file"].replace(" ", "_")} if is_save_alone(asked) else asked)

    report = doctor(vendor, Direct(vendor, tweak)).examine()
    assert (different(report), report.left, vendor.files) == ({"space", "space-end"}, (), {})


def is_save_alone(asked: Ask) -> bool:
    """Tell if it is a save, and no merge or delete."""
    return is_save(asked) and asked["options"] is None


def number_of_requests(vendor: Vendor) -> int:
    """Return the number of requests of an examination."""
    return doctor(vendor, Direct(vendor)).examine().requests


def names_left(report: Report) -> set[str]:
    """Return the names of the files that the report calls left."""
    return {json.loads(left.name) for left in report.left}


def keeping(vendor: Vendor, reply: Ask) -> Callable[[Ask, Do], Ask]:
    """Answer the deletes of files that are there, after the first, in this way, and keep the files."""
    deletes: list[str] = []

    def tweak(asked: Ask, do: Do) -> Ask:
        if asked["options"] != "delete" or asked["file"] not in vendor.files:
            return do(asked)
        deletes.append(asked["file"])
        return do(asked) if len(deletes) == 1 else reply

    return tweak


KEPT: dict[str, Ask] = {
    "success": {"error": None, "message": "Entry deleted"},
    "NoFile": {"error": "NoFile", "message": "File does not exist"},
    "refused": {"error": "Forbidden", "message": "No"},
}


@pytest.mark.parametrize("reply", KEPT)
@pytest.mark.parametrize("are_listed", [True, False])
def test_files_that_stay_whatever_the_deletes_answer(vendor: Vendor, reply: str, are_listed: bool) -> None:
    """Each file that a list, or a load if lists are wrong, finds after the deletes is left; no other is."""
    keep = keeping(vendor, KEPT[reply])

    def tweak(asked: Ask, do: Do) -> Ask:
        if asked["options"] == "list" and not are_listed:
            return {"error": None, "message": ""}
        return keep(asked, do)

    report = doctor(vendor, Direct(vendor, tweak)).examine()
    assert names_left(report) == set(vendor.files) != set()
    assert not report.is_clean
    assert f"{PREFIX}…, not all deleted" in report.as_text()


def test_deleted_files_that_no_list_shows(vendor: Vendor) -> None:
    """If lists are wrong, loads show that the files are deleted."""
    tweak = lists(vendor, lambda *_: False)
    report = doctor(vendor, Direct(vendor, tweak)).examine()
    assert (vendor.files, report.left, report.is_clean) == ({}, (), True)
    assert f"{PREFIX}…, all deleted" in report.as_text()


def test_deletes_that_nothing_shows(vendor: Vendor) -> None:
    """If the last list can't be read, the report doesn't say that all is deleted."""
    transport = Direct(vendor)
    deletes: list[str] = []

    def tweak(asked: Ask, do: Do) -> Ask:
        deletes.extend([asked["file"]] if asked["options"] == "delete" else [])
        is_last = asked["options"] == "list" and len(deletes) > 3
        return {"error": None, "message": 5} if is_last else do(asked)

    transport.tweak = tweak
    report = doctor(vendor, transport).examine()
    assert (vendor.files, report.left, report.is_clean) == ({}, (), False)
    assert f"{PREFIX}…, deleted as the service says, but nothing shows it" in report.as_text()


#: An examination for each request takes long, so by default it is one of some.
each_request = pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])


@each_request
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_at_any_request(vendor: Vendor, moment: str, kind: type[BaseException], step: int) -> None:
    """However early or late Ctrl-C or a signal comes, all files are deleted, and it is raised then."""

    def interrupt(number: int) -> None:
        if number == at:
            raise kind

    for at in range(0, number_of_requests(vendor), step):
        transport = Direct(vendor)
        setattr(transport, moment, interrupt)
        with pytest.raises(kind):
            doctor(vendor, transport).examine()
        assert vendor.files == {}, at


def test_the_report_of_an_interrupted_examination(vendor: Vendor) -> None:
    """After Ctrl-C the findings so far are there, and what was not tested says why; before any there is no report."""

    def interrupt(number: int) -> None:
        if number == at:
            raise KeyboardInterrupt

    for at in (0, 40):
        transport = Direct(vendor)
        transport.before = interrupt
        examination = doctor(vendor, transport)
        with pytest.raises(KeyboardInterrupt):
            examination.examine()
        report = examination.partial_report()
        assert (report is None) == (at == 0)
    assert report is not None
    assert different(report) == set()
    assert {"save", "load", "null"} <= with_outcome(report, Outcome.EXPECTED)
    assert finding_of(report, "merge").observed == "it was interrupted before"
    assert (report.left, report.is_clean, report.as_json()["interrupted"]) == ((), True, True)
    assert "\nNot all was tested: it was interrupted.\n" in report.as_text()


def test_a_second_interrupt(vendor: Vendor) -> None:
    """A second Ctrl-C ends the deleting, and the exception has a note with the names that may be there."""

    def interrupt(number: int) -> None:
        if number >= 30:
            raise KeyboardInterrupt

    transport = Direct(vendor)
    transport.before = interrupt
    with pytest.raises(KeyboardInterrupt) as raised:
        doctor(vendor, transport).examine()
    (note,) = raised.value.__notes__
    assert vendor.files
    assert all(json.dumps(name) in note for name in vendor.files)


FAULTS = {
    "429": Fault(429, b"", {"Retry-After": "2"}),
    "503": Fault(503, b"<h1>Busy</h1>", {"Content-Type": "text/html"}),
}


@each_request
@pytest.mark.parametrize("fault", ["lost before", "lost after", *FAULTS])
def test_a_fault_at_any_request(vendor: Vendor, fault: str, step: int) -> None:
    """A lost request or reply, or a service that is busy, changes no finding and leaves no file."""

    def fail(number: int) -> Fault | None:
        if number != at:
            return None
        if fault in FAULTS:
            return FAULTS[fault]
        raise TransportError("lost", sent=True)

    for at in range(0, number_of_requests(vendor), step):
        transport = Direct(vendor)
        setattr(transport, "after" if fault == "lost after" else "before", fail)
        report = doctor(vendor, transport).examine()
        assert (different(report), report.left, report.failure, vendor.files) == (set(), (), None, {}), at


@pytest.mark.parametrize("drop", ["before", "after"])
def test_a_dropped_connection(vendor: Vendor, drop: Any) -> None:
    """Over a real connection the same holds."""
    vendor.faults.extend([Fault(drop=drop), Fault(503, b"<h1>Busy</h1>", {"Retry-After": "0"})])
    report = doctor(vendor, HTTPTransport(vendor.address)).examine()
    assert (different(report), report.left, vendor.files) == (set(), (), {})


def test_a_service_that_goes_away(vendor: Vendor) -> None:
    """If the service is gone, the checks after it are not tested, and the files that may be there are named."""

    def fail(number: int) -> None:
        if number >= 40:
            raise TransportError("The service is gone.", sent=False)

    transport = Direct(vendor)
    transport.before = fail
    report = doctor(vendor, transport).examine()
    assert isinstance(report.failure, TransportError)
    assert different(report) == set()
    assert {"merge", "size", "rate"} <= with_outcome(report, Outcome.NOT_TESTED)
    assert {json.dumps(name, ensure_ascii=False) for name in vendor.files} <= {left.name for left in report.left}
    assert "Left behind: " in report.as_text()
    assert (report.failed_request or "").startswith("POST /store/")
    assert "\nNot all was tested: The service is gone.\n  request:     POST /store/" in report.as_text()


def test_a_full_account(vendor: Vendor) -> None:
    """An account without room for more files is no difference: the checks after it are not tested."""
    tweak = when(lambda asked: is_save(asked) and len(vendor.files) > 3, "TooManyFiles")
    report = doctor(vendor, Direct(vendor, tweak)).examine()
    assert (different(report), vendor.files) == (set(), {})
    assert isinstance(report.failure, cm.TooManyFilesError)
    assert {"space", "merge-missing"} <= with_outcome(report, Outcome.NOT_TESTED)


def test_the_limit_of_files(vendor: Vendor) -> None:
    """The error TooManyFiles at the account's limit is as expected."""
    tweak = when(lambda asked: asked["file"].endswith("-file-3"), "TooManyFiles")
    report = doctor(vendor, Direct(vendor, tweak), files=10).examine()
    assert (different(report), vendor.files) == (set(), {})
    (finding,) = [finding for finding in report.findings if finding.check == "files"]
    assert "TooManyFiles" in finding.observed


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(200, b"<h1>Sign in</h1>"), cm.ProtocolError),
        (Fault(404, b"<h1>Not Found</h1>"), cm.ProtocolError),
        (Fault(200, b'{"error": "BadKey", "message": "No"}'), cm.BadKeyError),
        (Fault(200, b'{"error": false, "message": ""}'), cm.ProtocolError),
        (Fault(200, b'{"error": null, "message": {"' + PREFIX.encode() + b'": 1}}'), cm.ProtocolError),
    ],
)
def test_no_service(vendor: Vendor, fault: Fault, error: type[Exception]) -> None:
    """If the first reply is no CloudStore's or a refusal, its error is raised, and nothing is saved."""
    transport = Direct(vendor)
    transport.before = lambda number: fault if number == 0 else None
    with pytest.raises(error):
        doctor(vendor, transport).examine()
    assert transport.count == 1


def test_a_page_in_place_of_a_reply(vendor: Vendor) -> None:
    """A page in place of a later reply is a difference, and is not shown."""
    transport = Direct(vendor)
    page = Fault(200, b"<h1>Hello</h1>", {"Content-Type": "text/html"})
    transport.before = lambda number: page if number == 4 else None
    report = doctor(vendor, transport).examine()
    assert different(report) == {"reply", "save"}
    assert "no JSON object (text/html)" in report.as_text()
    assert "Hello" not in report.as_text()
    assert vendor.files == {}


UNREADABLE: dict[str, tuple[Callable[[str], bytes], str]] = {
    "byte order mark": (lambda text: text.encode("utf-8-sig"), "byte order mark"),
    "UTF-16": (lambda text: text.encode("utf-16"), "not UTF-8"),
    "NaN": (lambda text: text.replace("{", '{"x": NaN, ', 1).encode(), "NaN"),
    "lone surrogate": (lambda text: text.replace("{", '{"x": "\\ud800", ', 1).encode(), "surrogate"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_replies_that_the_clients_refuse(vendor: Vendor, name: str) -> None:
    """Replies that any client refuses are different, though another reader takes them; nothing is saved."""
    transport = Direct(vendor)
    transport.encode, fault = UNREADABLE[name]
    report = doctor(vendor, transport).examine()
    assert (different(report), transport.count, vendor.files) == ({"reply"}, 1, {})
    assert fault in finding_of(report, "reply").observed
    assert f"{PREFIX}…, none saved\n" in report.as_text()
    assert with_outcome(report, Outcome.EXPECTED) == set()


def test_replies_in_latin_1(vendor: Vendor) -> None:
    """Replies in another encoding are different where they hold another character than ASCII; no file is left."""
    transport = Direct(vendor)
    transport.encode = lambda text: text.encode("latin-1", "replace")
    report = doctor(vendor, transport).examine()
    assert {"reply", "load", "list"} <= different(report)
    assert "it is not UTF-8" in finding_of(report, "load").observed
    assert (vendor.files, report.left, report.is_clean) == ({}, (), True)


def test_the_replies_are_counted(vendor: Vendor) -> None:
    """The check of the replies counts all requests but the GET."""
    report = doctor(vendor, Direct(vendor)).examine()
    assert f"of the replies to JSON {report.requests - 1} with status 200;" in finding_of(report, "reply").observed


# The report: without secrets.


def test_no_secret_in_the_report(vendor: Vendor) -> None:
    """A service that repeats the API key and passwords in its replies brings neither into the report."""
    secrets: set[str] = {vendor.api_key}

    def tweak(asked: Ask, do: Do) -> Ask:
        secrets.update(filter(None, [asked["key"], asked.get("dataPass"), asked.get("password")]))
        return {"error": f"Bad{vendor.api_key}", "message": json.dumps(asked)} if is_save(asked) else do(asked)

    transport = Direct(vendor, tweak)
    transport.headers["CloudStore-Extensions"] = f"{vendor.api_key}\x1b[31m"
    transport.headers["Content-Type"] = f"text/{vendor.api_key}\x1b[31m"
    report = doctor(vendor, transport).examine()
    texts = report.as_text() + json.dumps(report.as_json(), ensure_ascii=False) + repr(report)
    assert not [secret for secret in secrets - {"undefined"} if secret.lower() in texts.lower()]
    assert "\x1b" not in texts


def test_no_secret_in_an_error(vendor: Vendor) -> None:
    """The error of a service that is busy for good holds no API key, even if the service repeats it."""
    transport = Direct(vendor)
    busy = json.dumps({"error": "Unavailable", "message": f"Not now, {vendor.api_key}\x1b"}).encode()
    transport.before = lambda number: Fault(503, busy) if number >= at else None
    at = 0
    with pytest.raises(cm.UnavailableError, match="a text of 30 characters") as raised:
        doctor(vendor, transport).examine()
    assert vendor.api_key not in str(raised.value)
    at = transport.count + 20
    report = doctor(vendor, transport).examine()
    assert 'Not all was tested: The service answered "Unavailable" and a text of 30 characters.' in report.as_text()
    assert vendor.api_key not in report.as_text() + json.dumps(report.as_json())


def test_no_name_of_the_user_in_the_report(vendor: Vendor) -> None:
    """A service whose lists ignore the filter brings no other name into the report."""
    vendor.files = {"private": 1}
    report = doctor(vendor, Direct(vendor, lists(vendor, lambda *_: True))).examine()
    assert different(report) == {"empty-list", "filter-case", "filter-wildcards"}
    assert "private" not in report.as_text()


@pytest.mark.parametrize(
    "value", ["private-value", ["private-value", 12345], {"file": "private-value", "private-field": 12345.5}]
)
@pytest.mark.parametrize("is_error", [False, True])
def test_no_value_of_the_user_in_the_report(vendor: Vendor, value: Any, is_error: bool) -> None:
    """What a service puts into the reply about another file is described by its type and length, never quoted."""
    error, message = ("private-error", json.dumps(value)) if is_error else (None, value)
    report = doctor(vendor, Direct(vendor, instead("NoFile", None, {"error": error, "message": message}))).examine()
    assert "load-missing" in different(report)
    texts = report.as_text() + json.dumps(report.as_json()) + repr(report)
    assert not re.search("private|12345", texts)
    assert "a text of 13 characters" in texts


def test_no_header_of_the_service_in_the_report(vendor: Vendor) -> None:
    """A header is named only by words that the package knows."""
    transport = Direct(vendor)
    transport.headers |= {
        "CloudStore-Extensions": "once, private",
        "Content-Type": "private/private",
        "Date": "private",
    }
    report = doctor(vendor, transport).examine()
    assert report.extensions == ("once", "an unknown one of 7 characters")
    assert "private" not in report.as_text() + json.dumps(report.as_json())


def test_no_name_beside_a_name_of_the_doctor(vendor: Vendor) -> None:
    """If names are joined in another way than by commas, no other name is shown, nor as a file that is left."""
    vendor.files = {"private": 1}

    def tweak(asked: Ask, do: Do) -> Ask:
        if asked["options"] == "delete":
            return KEPT["refused"]
        answer = do({**asked, "file": ""}) if asked["options"] == "list" and "doctor-" in asked["file"] else do(asked)
        if asked["options"] == "list":
            answer["message"] = answer["message"].replace(",", "; ")
        return answer

    report = doctor(vendor, Direct(vendor, tweak)).examine()
    assert any("…" in left.name for left in report.left)
    assert "private" not in report.as_text() + json.dumps(report.as_json())


ENCODINGS: dict[str, Callable[[str], str]] = {
    "base64": lambda key: base64.b64encode(key.encode()).decode(),
    "base64 for URLs": lambda key: base64.urlsafe_b64encode(key.encode()).decode(),
    "hex": lambda key: key.encode().hex(),
    "%XX": quote,
    "swapped case": str.swapcase,
    "backwards": lambda key: key[::-1],
    "JSON": lambda key: json.dumps(key)[1:-1],
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_no_encoded_key_in_the_report(vendor: Vendor, encoding: str) -> None:
    """A service that repeats the API key in another form, anywhere, brings no form of it into the report."""
    vendor.api_key = "Sup3rS3cret/+é?"
    secret = ENCODINGS[encoding](vendor.api_key)

    def tweak(asked: Ask, do: Do) -> Ask:
        answer = do(asked)
        return {"error": f"Odd{secret}", "message": secret} if answer["error"] or is_save(asked) else answer

    transport = Direct(vendor, tweak)
    for name in ("CloudStore-Extensions", "Content-Type", "Date"):
        transport.headers[name] = secret
    report = doctor(vendor, transport).examine()
    texts = (report.as_text() + json.dumps(report.as_json(), ensure_ascii=False) + repr(report)).lower()
    assert secret.lower().rstrip("=") not in texts
    assert "…" in doctor(vendor, transport)._masked(f"a {secret} b")
    assert secret.rstrip("=") not in doctor(vendor, transport)._masked(f"a {secret} b")


@pytest.mark.parametrize("exception", [http.client.BadStatusLine("private"), ValueError("private")])
def test_no_reply_in_a_failure(vendor: Vendor, exception: Exception) -> None:
    """The reason of a broken connection is shown only if it is the system's, as others quote the service."""

    def fail(number: int) -> None:
        if number > 20:
            raise TransportError("The connection broke (private); try again.", sent=True) from exception

    transport = Direct(vendor)
    transport.before = fail
    report = doctor(vendor, transport).examine()
    assert "Not all was tested: The connection broke; try again." in report.as_text()
    assert "private" not in report.as_text()


def test_files_under_names_that_hold_no_prefix(vendor: Vendor) -> None:
    """Files that the service keeps under names of its own are counted, without a name, and nothing is "all deleted"."""
    vendor.files = {"private": 1}

    def tweak(asked: Ask, do: Do) -> Ask:
        return do({**asked, "file": f"h{asked['file'].encode().hex()}"} if is_save_alone(asked) else asked)

    report = doctor(vendor, Direct(vendor, tweak)).examine()
    left = len(vendor.files) - 1
    assert left > 10
    assert (report.new_names, report.as_json()["new_names"], report.is_clean) == (left, left, False)
    assert f"\nNew in the list of all files: {left} names other than the doctor's.\n" in report.as_text()
    assert "all deleted" not in report.as_text()
    assert "private" not in report.as_text()


def test_the_report(vendor: Vendor) -> None:
    """The report is the same in each run but for prefix and date; its last line counts the outcomes."""
    date = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    one, other = (doctor(vendor, Direct(vendor), now=lambda: date).examine() for _ in range(2))
    text = one.as_text()
    assert text == other.as_text()
    assert one.as_json() == other.as_json()
    lines = text.splitlines()
    assert lines[0] == f"package:    cloudstore-mapping {cm.__version__}"
    assert f"server:     {vendor.address}" in lines
    assert "date:       2026-01-02 03:04:05 UTC" in lines
    counts = one.as_json()["counts"]
    assert lines[-1] == f"{counts['as expected']} as expected, 0 different, {counts['not tested']} not tested"
    assert sum(counts.values()) == len(CHECKS) == len(one.findings)
    assert all(line == line.rstrip() for line in lines)


def test_the_pace_that_a_service_asks_for(vendor: Vendor) -> None:
    """After a 429 the requests keep the interval in its `Retry-After`, but for the one that is to come early."""
    waits: list[float] = []
    transport = Direct(vendor)
    transport.before = lambda number: Fault(429, b"", {"Retry-After": "2"}) if number == 3 else None
    pacer = Pacer(lambda: 0.0, waits.append)
    Doctor(vendor.api_key, vendor.address, transport=transport, pacer=pacer, sleep=lambda _: None).examine()
    assert [later - earlier for earlier, later in pairwise(waits)].count(2.0) == len(waits) - 2


def test_the_pace(vendor: Vendor) -> None:
    """Requests keep the interval, but for the one that is to come early."""
    now = [0.0]
    sent: list[float] = []

    def sleep(seconds: float) -> None:
        now[0] += seconds

    transport = Direct(vendor)
    transport.before = lambda _: sent.append(now[0])
    pacer = Pacer(lambda: now[0], sleep)
    Doctor(vendor.api_key, vendor.address, interval=3.0, transport=transport, pacer=pacer, sleep=sleep).examine()
    gaps = [later - earlier for earlier, later in pairwise(sent)]
    assert sorted(gaps)[:2] == [0.0, 3.0]
    assert Doctor(vendor.api_key, "https://droidscript.cloud/cloudstore").expected_seconds == 3.0 * REQUESTS


@pytest.mark.parametrize("status", [503, 404])
def test_a_status_that_ends_the_examination(vendor: Vendor, status: int) -> None:
    """A status that is no reply of CloudStore's is told in one sentence."""
    vendor.faults.extend(Fault(status, b"<h1>Sorry</h1>") for _ in range(20))
    with pytest.raises(cm.CloudStoreError, match=rf"^The answer was {status}( \(.*\))?; [^;.]*\.$"):
        doctor(vendor, HTTPTransport(vendor.address)).examine()
