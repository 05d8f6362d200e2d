"""Blocks in a directory: whole or not at all, bounded, of one layout, and of one server."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from engine.interface.errors import ConfigError
from engine.kv_cache import block_files
from engine.kv_cache.block_files import BlockFiles

HASHES = [bytes([number]) * 16 for number in range(20)]
HEAD_BYTES = 8 + 32


def open_files(path, *, secret=b"s" * 32, layout=b"layout", max_bytes=2**20):
    return BlockFiles(path, secret=secret, layout=layout, max_bytes=max_bytes)


def body(number, size=1000):
    return bytes([number % 251]) * size


def filled(path, count=5, **options):
    files = open_files(path, **options)
    for number in range(count):
        files.save(HASHES[number], body(number))
    files.close()


def found(path, **options):
    files = open_files(path, **options)
    loaded = {number for number, one in enumerate(HASHES) if one in files and files.load(one) == body(number)}
    files.close()
    return loaded


def test_blocks_outlive_the_process_for_their_owner_alone(tmp_path):
    path = tmp_path / "cache"
    filled(path)
    assert found(path) == set(range(5))
    assert stat.S_IMODE((path / "blocks").stat().st_mode) == 0o700
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in path.rglob("*") if file.is_file())


def test_another_layout_discards_them_and_touches_nothing_else(tmp_path):
    filled(tmp_path)
    (tmp_path / "blocks" / "notes.txt").write_text("somebody's")
    assert found(tmp_path, layout=b"another") == set()
    assert found(tmp_path) == set()
    assert [file.name for file in (tmp_path / "blocks").iterdir()] == ["notes.txt"]


def test_another_secret_finds_nothing_whole(tmp_path):
    filled(tmp_path)
    assert found(tmp_path, secret=b"t" * 32) == set()


@pytest.mark.parametrize("offset", [0, 7, 8, 39, HEAD_BYTES, 500, -1])
def test_one_flipped_bit_is_noticed_and_forgotten(tmp_path, offset):
    filled(tmp_path)
    path = tmp_path / "blocks" / HASHES[3].hex()
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    files = open_files(tmp_path)
    assert files.load(HASHES[3]) is None
    assert HASHES[3] not in files
    assert not path.exists()
    files.save(HASHES[3], body(3))
    files.close()
    assert found(tmp_path) == set(range(5))


@pytest.mark.parametrize("content", [b"", b"DLKV0001", b"x" * 5000])
def test_a_file_that_was_cut_or_is_another_is_noticed(tmp_path, content):
    filled(tmp_path)
    (tmp_path / "blocks" / HASHES[0].hex()).write_bytes(content)
    assert found(tmp_path) == {1, 2, 3, 4}


def test_a_block_under_another_blocks_name_is_noticed(tmp_path):
    filled(tmp_path)
    blocks = tmp_path / "blocks"
    (blocks / HASHES[0].hex()).write_bytes((blocks / HASHES[1].hex()).read_bytes())
    assert found(tmp_path) == {1, 2, 3, 4}


def test_a_file_that_vanished_is_a_miss(tmp_path):
    filled(tmp_path)
    files = open_files(tmp_path)
    (tmp_path / "blocks" / HASHES[2].hex()).unlink()
    assert files.load(HASHES[2]) is None
    files.close()


def test_what_a_killed_process_left_half_written_is_no_block(tmp_path):
    filled(tmp_path)
    (tmp_path / "blocks" / f"{HASHES[7].hex()}.part").write_bytes(b"half")
    assert found(tmp_path) == set(range(5))
    assert not list((tmp_path / "blocks").glob("*.part"))


def test_the_longest_unused_are_deleted_beyond_the_size(tmp_path):
    size = 1000 + HEAD_BYTES
    filled(tmp_path, 5, max_bytes=5 * size)
    for number in range(5):
        os.utime(tmp_path / "blocks" / HASHES[number].hex(), ns=(number, number))
    files = open_files(tmp_path, max_bytes=5 * size)
    assert files.load(HASHES[0]) == body(0)  # used again
    files.save(HASHES[5], body(5))
    files.save(HASHES[6], body(6))
    files.close()
    assert files.num_bytes == 5 * size == sum(f.stat().st_size for f in (tmp_path / "blocks").iterdir())
    assert found(tmp_path) == {0, 3, 4, 5, 6}


def test_a_writer_that_is_behind_takes_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(block_files, "_MAX_PENDING_BYTES", 2500)
    held = []
    monkeypatch.setattr(BlockFiles, "_write_all", lambda self: held.append(self))
    files = open_files(tmp_path)
    room = []
    for one in HASHES[:4]:
        files.save(one, body(0))
        room.append(files.has_room)
    assert room == [True, True, False, False]
    files._lock_file.close()


def test_a_disk_that_takes_no_more_stops_nothing(tmp_path, monkeypatch, caplog):
    files = open_files(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(block_files, "_write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        for number in range(3):
            files.save(HASHES[number], body(number))
        while files._num_pending_bytes:
            pass
    assert len(caplog.records) == 1, "a full disk is said once a minute"
    files._paused_until = 0.0
    files.save(HASHES[5], body(5))
    files.close()
    assert found(tmp_path) == {5}


def test_two_servers_do_not_share_a_directory(tmp_path):
    files = open_files(tmp_path)
    with pytest.raises(ConfigError, match="in use by another server"):
        open_files(tmp_path)
    files.close()
    open_files(tmp_path).close()


def test_a_directory_that_cannot_be_used_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"kv_cache_dir: .*file: Not a directory"):
        open_files(tmp_path / "file")


def test_a_killed_writer_leaves_whole_blocks_only(tmp_path):
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from engine.kv_cache.block_files import BlockFiles
from pathlib import Path
files = BlockFiles(Path({str(tmp_path)!r}), secret=b"s" * 32, layout=b"layout", max_bytes=2**30)
number, is_told = 0, False
while True:
    if files.has_room:
        files.save(number.to_bytes(16, "little"), bytes([number % 251]) * 200_000)
        number += 1
    if len(files) > 20 and not is_told:
        is_told = True
        print("go", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"go\n"
    process.kill()
    process.communicate()
    files = open_files(tmp_path, max_bytes=2**30)
    assert len(files) > 10
    for block_hash in list(files._sizes):
        number = int.from_bytes(block_hash, "little")
        assert files.load(block_hash) == bytes([number % 251]) * 200_000
    files.close()
