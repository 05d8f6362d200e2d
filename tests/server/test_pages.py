"""The pages and their files: nothing of a foreign host, open without a key, and what was vendored."""

import hashlib
import json
import re
from pathlib import Path

import httpx
import pytest

from tests.fakes import FakeEngine
from tests.server.harness import serving
from tools.vendor import INDEX, LIBRARIES, ROOT, TEST_LIBRARIES, TEST_ROOT

KEY = "a-key-for-the-docs"
STATIC = ROOT.parent


@pytest.mark.parametrize("keys", [(), (KEY,)])
@pytest.mark.parametrize(
    ("page_path", "num_files", "others"), [("/", 9, {"docs"}), ("/docs", 4, {"data:,", "openapi.json"})]
)
def test_a_page_and_all_that_it_loads_come_from_here_without_a_key(keys, page_path, num_files, others):
    with serving(FakeEngine(), keys=keys) as server:
        page = server.client.get(page_path)
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        files = [path for path in loaded if path.startswith("static/")]
        assert len(files) == num_files
        assert set(loaded) - set(files) == others
        for path in files:
            _check_file(server.client, path)
        assert server.client.get("/openapi.json").status_code == (401 if keys else 200)
        assert server.client.get("/v1/models").status_code == (401 if keys else 200)
        headers = {"authorization": f"Bearer {KEY}"}
        assert server.client.get("/openapi.json", headers=headers).json()["openapi"]


def _check_file(client: httpx.Client, path: str) -> None:
    reply = client.get(f"/{path}")
    assert reply.status_code == 200
    kinds = {".js": "javascript", ".css": "css", ".svg": "svg"}
    assert kinds[Path(path).suffix] in reply.headers["content-type"]
    assert reply.headers["cache-control"] == "no-cache"  # else a page could mix files of two versions
    etag = {"if-none-match": reply.headers["etag"]}
    assert client.get(f"/{path}", headers=etag).status_code == 304


def test_the_playground_has_no_style_or_script_but_from_files_and_no_html_from_strings():
    with serving(FakeEngine()) as server:
        policy = server.client.get("/").headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "require-trusted-types-for 'script'; trusted-types dompurify" in policy


def test_every_module_that_a_module_imports_is_served():
    imported = re.compile(r'(?:from|import) "(\.[^"]+)"')
    with serving(FakeEngine()) as server:
        for path in (STATIC / "playground").glob("*.js"):
            for name in imported.findall(path.read_text()):
                target = (path.parent / name).resolve().relative_to(STATIC)
                reply = server.client.get(f"/static/{target}")
                assert reply.status_code == 200, (path.name, name)
                assert "javascript" in reply.headers["content-type"]


def test_our_own_pages_name_no_host_and_have_no_script_in_them():
    for path in STATIC.rglob("*"):
        if path.is_file() and ROOT not in path.parents:
            text = path.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
            assert "://" not in text, path.name
            assert not re.search(r"<script>|\son\w+=\"|style=\"|innerHTML|\beval\(", text), path.name


@pytest.mark.parametrize("name", ["../auth.py", "%2e%2e/auth.py", "", "absent.js", "vendor"])
def test_only_the_files_of_pages_are_served(name):
    with serving(FakeEngine()) as server:
        reply = server.client.get(f"/static/{name}")
        assert reply.status_code == 404
        assert reply.json()["error"]["message"].startswith("there is no ")
        assert server.client.post("/static/docs.js").status_code == 405


@pytest.mark.parametrize(
    ("root", "libraries"), [(ROOT, LIBRARIES), (TEST_ROOT, TEST_LIBRARIES)], ids=["pages", "tests"]
)
def test_what_is_vendored_is_what_the_index_says(root, libraries):
    """Nobody edits these files: `python -m tools.vendor` writes them, with their licences."""
    index = json.loads((root / INDEX).read_text())
    assert list(index) == [library.name for library in libraries]
    for library in libraries:
        entry = index[library.name]
        assert (entry["version"], entry["licence"]) == (library.version, library.licence)
        folder = root / library.name
        names = sorted(Path(name).name for name in library.files)
        assert sorted(path.name for path in folder.iterdir()) == names
        assert "LICENSE" in names
        for name, digest in entry["sha256"].items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
    assert {path.name for path in root.iterdir()} == {INDEX, *index}


def test_the_wheel_has_every_file_of_the_pages():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert 'server = ["py.typed", "static/**/*"]' in text
