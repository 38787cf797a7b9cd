"""The default C2SER has the released checkpoint's size, counted under upstream's own names.

Nothing is allocated: shapes come from `eval_shape`, the numbers from REAL_SIZES.md. Upstream embeds
4099 speech tokens, of which the last two, begin and end of speech, are ever used: those two rows
are parameters here, the table is carried. It also counts two heads that text output never uses,
which are carried as a whole. Positional tables are its buffers, and parameters here.
"""

import collections
import dataclasses
import functools
import math
import re

import pytest

from c2ser_jax.models.c2ser import C2serConfig
from c2ser_jax.models.lora import LoraConfig
from conversions import emotion2vec
from conversions.c2ser_names import ADAPTED, References, llm_rules, target_shapes
from conversions.connector_names import SPEECH_MARKS, connector_rules, encoder_rules
from conversions.engine import Table

WIDTH, SPEECH_TOKENS = 3584, 4099
LAYERS = ADAPTED + r"model\.layers\."
ITEMS = {  # REAL_SIZES.md, "Parameters"; of the encoder and the language model their parts, too
    r"encoder\.embed\.conv": 3_393_536,
    r"encoder\.encoders": 302_284_800,
    r"encoder\.after_norm": 2_048,
    r"down_sample_2": 9_440_256,
    r"speech_transformer(?!.*\.pe$)": 38_849_536,
    r"speech_llama_proj": 3_673_600,
    r"llama_model.*model\.embed_tokens": 544_997_376,
    r"llama_model.*lm_head": 544_997_376,
    rf"{LAYERS}(?!.*lora_)": 6_525_618_176,
    r"llama_model(?!.*lora_)": 7_615_616_512,
    r"llama_model.*lora_": 15_138_816,
}
BUFFERS = {r"encoder\.embed\.pos_enc\.pe": 1_536_000, r"speech_transformer.*\.pe$": 5_120_000}
SPEECH_TABLE, UNUSED, TOTAL = 14_690_816, 2_048 + 14_687_745, 8_017_779_713
EMOTION2VEC_S = 93_171_212  # in an environment of its own upstream, and not counted there


def released() -> C2serConfig:
    cfg = C2serConfig(acoustic_tokens="published")
    return dataclasses.replace(cfg, llm=dataclasses.replace(cfg.llm, lora=LoraConfig()))


@functools.cache
def tensors() -> dict[str, tuple[int, ...]]:
    """{upstream's name: shape} of all tensors that the import asks the checkpoint for."""
    rules = [*encoder_rules(), *connector_rules(), *llm_rules(ADAPTED, LoraConfig().targets)]
    found, table = {}, Table(rules)
    for path, shape in target_shapes(released()).items():
        named = list(table.sources(path, shape))
        assert named or path.startswith("acoustic/"), path
        found |= {name: of_source for name, of_source, _ in named}
    return found


def count(pattern: str) -> int:
    return sum(math.prod(shape) for name, shape in tensors().items() if re.match(pattern, name))


@pytest.mark.parametrize("pattern", ITEMS | BUFFERS)
def test_every_item_has_its_published_count(pattern):
    assert count(pattern) == (ITEMS | BUFFERS)[pattern]


def test_the_items_add_up_to_the_released_model():
    marks = count(re.escape(SPEECH_MARKS))
    assert marks == 2 * WIDTH and SPEECH_TABLE == SPEECH_TOKENS * WIDTH
    held = count("") - sum(BUFFERS.values())
    assert held - marks + SPEECH_TABLE + UNUSED == TOTAL
    ln_speech, speaker_head = 2 * 1024, (SPEECH_TOKENS - 2) * (WIDTH + 1)
    assert ln_speech + speaker_head == UNUSED
    assert 16.04e9 < 2 * (TOTAL + sum(BUFFERS.values())) < 16.06e9  # bytes of the released file


def test_every_parameter_has_a_source_of_its_shape():
    references, counted = References(ADAPTED, LoraConfig().targets), collections.Counter()
    for name, shape in tensors().items():
        match = references.match(name)
        assert match is not None
        counted[match.target] += math.prod(shape)
    shapes = target_shapes(released())
    speech = {path: math.prod(s) for path, s in shapes.items() if not path.startswith("acoustic/")}
    assert counted == speech
    acoustic = {
        "encoder/" + path.removeprefix("acoustic/"): shape
        for path, shape in shapes.items()
        if path.startswith("acoustic/")
    }
    assert sum(map(math.prod, acoustic.values())) == EMOTION2VEC_S
    names = [n for path, s in acoustic.items() for n, _, _ in emotion2vec.TABLE.sources(path, s)]
    assert len(names) == len(set(names)) >= len(acoustic)
