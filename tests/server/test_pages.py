"""/docs and the files of pages: nothing of a foreign host, open without a key, and what was vendored."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from tests.fakes import FakeEngine
from tests.server.harness import serving
from tools.vendor import INDEX, LIBRARIES, ROOT

KEY = "a-key-for-the-docs"
STATIC = ROOT.parent


@pytest.mark.parametrize("keys", [(), (KEY,)])
def test_the_docs_and_all_that_they_load_come_from_here_without_a_key(keys):
    with serving(FakeEngine(), keys=keys) as server:
        page = server.client.get("/docs")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        files = [path for path in loaded if path.startswith("static/")]
        assert len(files) == 4
        assert set(loaded) - set(files) == {"data:,", "openapi.json"}
        for path in files:
            reply = server.client.get(f"/{path}")
            assert reply.status_code == 200
            kind = "javascript" if path.endswith(".js") else "css"
            assert kind in reply.headers["content-type"]
            assert (
                server.client.get(f"/{path}", headers={"if-none-match": reply.headers["etag"]}).status_code
                == 304
            )
        assert server.client.get("/openapi.json").status_code == (401 if keys else 200)
        headers = {"authorization": f"Bearer {KEY}"}
        assert server.client.get("/openapi.json", headers=headers).json()["openapi"]


def test_our_own_pages_name_no_host_and_have_no_script_in_them():
    for path in STATIC.iterdir():
        if path.is_file():
            text = path.read_text()
            assert "://" not in text, path.name
            assert not re.search(r"<script>|\son\w+=|style=", text), path.name


@pytest.mark.parametrize("name", ["../auth.py", "%2e%2e/auth.py", "", "absent.js", "vendor"])
def test_only_the_files_of_pages_are_served(name):
    with serving(FakeEngine()) as server:
        reply = server.client.get(f"/static/{name}")
        assert reply.status_code == 404
        assert reply.json()["error"]["message"].startswith("there is no ")
        assert server.client.post("/static/docs.js").status_code == 405


def test_what_is_vendored_is_what_the_index_says():
    """Nobody edits these files: `python -m tools.vendor` writes them, with their licences."""
    index = json.loads(INDEX.read_text())
    assert list(index) == [library.name for library in LIBRARIES]
    for library in LIBRARIES:
        entry = index[library.name]
        assert (entry["version"], entry["licence"]) == (library.version, library.licence)
        folder = ROOT / library.name
        assert sorted(path.name for path in folder.iterdir()) == sorted(library.files)
        assert "LICENSE" in library.files
        for name, digest in entry["sha256"].items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
    assert {path.name for path in ROOT.iterdir()} == {INDEX.name, *index}


def test_the_wheel_has_every_file_of_the_pages():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert 'server = ["py.typed", "static/**/*"]' in text
