"""Checks that a folder's tokenizer belongs to its weights, from its files alone."""

import json
from collections.abc import Mapping
from typing import Any

from c2ser_jax.errors import UserError


def check_tokenizer_files(
    files: Mapping[str, bytes], vocabulary: int, ends: tuple[int, ...], where: str
) -> None:
    """Raises UserError without a tokenizer, for ids beyond the weights, or a missing ending token.

    files: a Hugging Face folder's; vocabulary: rows of the embedding; ends: ids that end a text.
    """
    ids = token_ids(files, where)
    if not ids:
        raise UserError(
            f"{where} has no tokenizer (tokenizer.json, or vocab.json and merges.txt); copy or "
            "download it"
        )
    if max(ids) >= vocabulary:
        raise UserError(
            f"the tokenizer of {where} has the id {max(ids)}, the weights have {vocabulary} rows; "
            "give the tokenizer that belongs to them"
        )
    for end in ends:
        if end not in ids:
            raise UserError(
                f"the tokenizer of {where} lacks the id {end}, which ends a text; give the "
                "tokenizer that belongs to these weights"
            )


def token_ids(files: Mapping[str, bytes], where: str) -> set[int]:
    """All ids of a tokenizer; empty when there is none."""
    ids: set[int] = set()
    if "tokenizer.json" in files:
        whole = _read(files, "tokenizer.json", where)
        model = whole.get("model")
        ids |= _numbers(model.get("vocab") if isinstance(model, dict) else None)
        added = whole.get("added_tokens")
        entries = added if isinstance(added, list) else []
        ids |= _numbers({str(i): e.get("id") for i, e in enumerate(entries) if isinstance(e, dict)})
    elif "vocab.json" in files and "merges.txt" in files:
        ids |= _numbers(_read(files, "vocab.json", where))
        if "added_tokens.json" in files:
            ids |= _numbers(_read(files, "added_tokens.json", where))
        if "tokenizer_config.json" in files:
            added = _read(files, "tokenizer_config.json", where).get("added_tokens_decoder")
            names = [str(name) for name in added] if isinstance(added, dict) else []
            ids |= {int(name) for name in names if name.isascii() and name.isdigit()}
    return ids


def _numbers(table: Any) -> set[int]:
    values = table.values() if isinstance(table, dict) else ()
    return {value for value in values if type(value) is int}


def _read(files: Mapping[str, bytes], name: str, where: str) -> dict[str, Any]:
    try:
        table = json.loads(files[name])
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}/{name} is no valid JSON; copy or download it again") from error
    if not isinstance(table, dict):
        raise UserError(f"{where}/{name} is no JSON table; copy or download it again")
    return table
