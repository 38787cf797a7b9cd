"""From texts to tokens and back: a language model's own tokenizer, or one trained for a toy run.

Files of a folder are data: no code in them is ever run.
"""

import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from c2ser_jax.errors import UserError

END = "<|endoftext|>"
"""Ends an answer, as in the released model; Qwen2's chat models have it, too, beside their own."""

FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json",
)  # fmt: skip
_BYTES = 256
_MAX_FILE_BYTES = 200_000_000


class TextTokenizer:
    """Encodes without adding special tokens, decodes without showing them."""

    def __init__(self, tokenizer: Tokenizer, end: str, files: dict[str, bytes], where: str):
        """Use `load_tokenizer` or `train_tokenizer`; `end` is the token that ends an answer."""
        self._tokenizer, self._files = tokenizer, files
        self.where = where
        eos = tokenizer.token_to_id(end)
        if eos is None:
            raise UserError(
                f"the tokenizer of {where} lacks the token {end!r} that its config ends texts "
                "with; copy or download the folder again"
            )
        self.eos: int = eos
        self.pad: int = eos

    @property
    def vocabulary(self) -> int:
        """Rows that an embedding must have for every id."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special tokens and ids without an entry leave nothing."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def files(self) -> dict[str, bytes]:
        """{file name: content} of a folder that `load_tokenizer` takes."""
        return dict(self._files)


def load_tokenizer(directory: str | os.PathLike[str]) -> TextTokenizer:
    """The tokenizer of a local folder: tokenizer.json, or Qwen2's vocab.json and merges.txt.

    Raises:
      UserError: there is no such folder, it holds no tokenizer, or a broken one.
    """
    folder = Path(directory)
    files = {name: _read(folder / name) for name in FILES if (folder / name).is_file()}
    if not {"tokenizer.json"} & files.keys() and not {"vocab.json", "merges.txt"} <= files.keys():
        raise UserError(
            f"{folder} holds no tokenizer (tokenizer.json, or vocab.json and merges.txt); give the "
            "folder of the language model"
        )
    try:
        if "tokenizer.json" in files:
            tokenizer = Tokenizer.from_buffer(files["tokenizer.json"])
        else:
            tokenizer = _from_huggingface(folder)
    except UserError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise UserError(
            f"the tokenizer of {folder} cannot be read ({error}); copy or download it again"
        ) from error
    end = END if tokenizer.token_to_id(END) is not None else _end_of(files, folder)
    return TextTokenizer(tokenizer, end, files, str(folder))


def train_tokenizer(texts: Iterable[str], vocabulary: int = 512) -> TextTokenizer:
    """A byte-level BPE of at most `vocabulary` ids that merges what is frequent in `texts`.

    Every byte has an id, so any text can be encoded; with 257 ids nothing is merged.

    Raises:
      UserError: fewer ids than bytes and an end of text.
    """
    if vocabulary <= _BYTES:
        raise UserError(
            f"a byte-level tokenizer needs {_BYTES + 1} ids, the vocabulary has {vocabulary}; make "
            "it larger"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END}
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
        "tokenizer_config.json": (json.dumps(config, indent=1) + "\n").encode(),
    }
    return TextTokenizer(tokenizer, END, files, "the training texts")


def check_tokenizer(
    tokenizer: TextTokenizer, vocabulary: int, ends: Collection[int] | None = None
) -> None:
    """Raises `UserError` when a tokenizer doesn't belong to weights.

    It has ids that weights of `vocabulary` rows lack, or `ends`, where they are known, are the ids
    that end a text for the weights, and the tokenizer ends with another.
    """
    if tokenizer.vocabulary > vocabulary:
        raise UserError(
            f"the tokenizer of {tokenizer.where} has ids up to {tokenizer.vocabulary - 1}, the "
            f"language model {vocabulary} rows; give the tokenizer that belongs to the weights"
        )
    if ends and tokenizer.eos not in ends:
        raise UserError(
            f"the tokenizer of {tokenizer.where} ends texts with the id {tokenizer.eos}, the "
            f"language model with {', '.join(map(str, sorted(ends)))}; give the tokenizer that "
            "belongs to the weights"
        )


def _from_huggingface(folder: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )
    return found.backend_tokenizer


def _end_of(files: dict[str, bytes], folder: Path) -> str:
    if "tokenizer_config.json" not in files:
        return END
    try:
        config: Any = json.loads(files["tokenizer_config.json"])
        end = config.get("eos_token") or END
    except (ValueError, RecursionError, AttributeError) as error:
        raise UserError(
            f"{folder / 'tokenizer_config.json'} is no valid JSON table; copy or download it again"
        ) from error
    return str(end.get("content", END)) if isinstance(end, dict) else str(end)


def _read(path: Path) -> bytes:
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise UserError(f"{path} is too large for a tokenizer; copy or download it again")
    return path.read_bytes()
