"""Two owners at one dashboard: neither sees or changes what is the other's, by any name, id, form or session."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.records import Account, Media
from cloudstore_mapping.web.server import background
from tests.service_fakes import Asker, FakeHasher, ManualClock
from tests.storages import new_storage
from tests.visitor import SAME_SITE, Visitor, named, owner, shown


@dataclass
class Two:
    """The account "victim" with a data and a media file, and the owner of another account, who is signed in."""

    service: Service
    victim: Account
    program: Asker
    media: Media
    stranger: Visitor


@pytest.fixture
def two(clock: ManualClock, hasher: FakeHasher, no_threads_left: None) -> Iterator[Two]:
    """Return two owners."""
    with Service(new_storage(), clock=clock, hasher=hasher) as service, background(service) as address:
        program = Asker(service, owner(service, "victim"))
        owner(service, "stranger")
        victim = service.accounts.named("victim")
        program.save("private", "secret value")
        upload = service.media.begin(name="p.png", content_type="image/png", owner=victim)
        upload.write(b"\x89PNG\r\n\x1a\n")
        upload.finish()
        (media,) = service.panels.media(victim).rows
        with Visitor(address) as stranger:
            stranger.sign_in("stranger")
            yield Two(service, victim, program, media, stranger)


def test_nothing_is_seen(two: Two) -> None:
    """No page shows the other's names, values, ids, folder or events."""
    queries = ["", "?panel=media", "?panel=user", "?panel=activity", "?file=private&value=1", "?search=private"]
    queries += [f"?panel=media&file={two.media.id}", "?panel=media&search=p"]
    secrets = ["secret value", "p.png", two.victim.folder, "victim"]
    for query in queries:
        page = two.stranger.get(query)
        for secret in secrets:
            assert secret not in page.text, query
    assert "There is no such file" in shown(two.stranger.get("?file=private"))
    assert "There is no such file" in shown(two.stranger.get(f"?panel=media&file={two.media.id}"))


def test_nothing_is_fetched(two: Two) -> None:
    """Neither the other's value is downloaded, nor a preview of the other's picture."""
    for path in ("data/value?name=private", f"media/preview?id={two.media.id}"):
        answer = two.stranger.session.get(f"{two.stranger.address}/admin/{path}", timeout=30)
        assert answer.status_code == 404
        assert "secret value" not in answer.text


def test_nothing_is_changed(two: Two) -> None:
    """No form deletes, locks or overwrites what is the other's, or touches the other's keys and passwords."""
    before = two.service.panels.data_file(two.victim, "private")
    keys = two.service.accounts.keys("victim")
    post = two.stranger.post
    post("data/delete", name=named("private"))
    post("data/lock", name=named("private"), password="pw", what="view")
    post("data/save", name=named("private"), value="1", version=before.info.version if before else "")
    post("media/delete", name=two.media.id)
    post("media/lock", name=two.media.id, password="pw")
    post("key/rotate", user="victim", account=str(two.victim.id))
    post("key/end", user="victim")
    post("defaults", user="victim", kind="data", password="pw")
    post("password", user="victim", old="correct horse", new="another horse", again="another horse")
    assert two.service.panels.data_file(two.victim, "private") == before
    assert two.service.panels.media(two.victim).rows == [two.media]
    assert two.service.accounts.keys("victim") == keys
    assert two.service.accounts.named("victim") == two.victim
    assert two.program.value("private") == "secret value"
    assert two.service.owners.sign_in("victim", "correct horse", "")


def test_a_form_of_the_others_session(two: Two) -> None:
    """A form made for the other's session does nothing in one's own."""
    with Visitor(two.stranger.address) as victim:
        victim.sign_in("victim")
        token = victim.form_token
    assert two.stranger.post("data/delete", name=named("private"), token=token).status_code == 403


def test_an_upload_of_the_others_name(two: Two) -> None:
    """An upload by the page is one's own, though the other has a file of that name; the other's token is refused."""
    two.stranger.get("?panel=media")
    with Visitor(two.stranger.address) as victim:
        victim.sign_in("victim")
        for token, status in ((victim.form_token, 400), (two.stranger.form_token, 200)):
            answer = two.stranger.session.post(
                f"{two.stranger.address}/admin/media/upload",
                data={"token": token, "key": two.program.api_key},
                files={"file": ("p.png", b"the stranger's", "image/png")},
                headers=SAME_SITE,
                timeout=30,
            )
            assert answer.status_code == status
    assert two.service.panels.media(two.victim).rows == [two.media]
    (own,) = two.service.panels.media(two.service.accounts.named("stranger")).rows
    assert (own.name, own.size) == ("p.png", 14)


def test_a_deleted_accounts_session(two: Two) -> None:
    """With its account a session ends, and the dashboard shows the sign-in."""
    two.service.accounts.delete("stranger")
    assert "Sign in" in shown(two.stranger.get())
