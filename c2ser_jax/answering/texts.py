"""The prompts and the labels' answers of a model, as tokens of fixed shapes, and back to text.

Shapes: P prompt tokens, J labels, T tokens of the longest label's answer, K tokens that all of them
begin with.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from c2ser_jax.answering.ask import Ask, Mode
from c2ser_jax.answering.program import Question
from c2ser_jax.data.cot_text import implicit_answer
from c2ser_jax.data.prompts import LANGUAGES, Language, answer_language, paraphrases, prompt
from c2ser_jax.data.tokenizer import TextTokenizer
from c2ser_jax.decoding.labels import pack_labels, pack_rivals
from c2ser_jax.decoding.trie import Trie, build_trie
from c2ser_jax.errors import UserError

MULTIPLE = 8
"""Prompts are padded to a multiple of so many tokens."""

BEFORE: dict[Language, str] = {"en": "so it is. ", "zh": "如此。"}
"""What stands before the sentence that names the label of an explicit answer."""


class AnswerTexts:
    """What a model is asked and may answer, in every language that it is asked in."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        labels: Sequence[str],
        *,
        vocabulary: int,
        prompts: Mapping[str, Mapping[str, str]] | None = None,
    ):
        """`vocabulary` counts the language model's tokens. `prompts` {mode: {language: text}}, as a
        model directory has them, take the place of the library's own.
        """  # noqa: D205
        self.tokenizer, self.labels, self.vocabulary = tokenizer, list(labels), vocabulary
        self._prompts = {
            mode: {answer_language(name): text for name, text in sorted(texts.items())}
            for mode, texts in (prompts or {}).items()
        }

    def prompt(self, mode: Mode, language: Language, wording: int = 0) -> str:
        """The prompt of a mode: its usual wording, or one that means the same."""
        kind = "explicit" if mode == "explicit" else "implicit"
        if wording:
            others = paraphrases(kind, language)
            if wording > len(others):
                raise UserError(
                    f"there is no wording {wording} of the {kind} prompt: use 0 to {len(others)}"
                )
            return others[wording - 1]
        given = self._prompts.get(kind, {})
        if language in given:
            return given[language]
        return prompt(kind, language)

    def wordings(self, mode: Mode) -> int:
        """How many wordings of a mode's prompt there are in every language."""
        kind = "explicit" if mode == "explicit" else "implicit"
        return 1 + min(len(paraphrases(kind, language)) for language in LANGUAGES)

    def question(self, mode: Mode, language: Language, wording: int = 0) -> Question:
        """The arrays of a prompt and of the labels' answers; their shapes are a mode's own."""
        P = self.prompt_tokens(mode, wording)
        ids = self.tokenizer.encode(self.prompt(mode, language, wording))
        tokens, is_prompt = np.zeros(P, np.int32), np.arange(P) < len(ids)
        tokens[: len(ids)] = ids
        labels, mask, rivals, lead = self._blocks(mode == "explicit")[language]
        K = max(len(block[3]) for block in self._blocks(mode == "explicit").values())
        led = np.zeros(K, np.int32)
        led[: len(lead)] = lead
        return Question(
            tokens, is_prompt, labels, mask, rivals, led, np.arange(K) < len(lead)
        )  # fmt: skip

    def prompt_tokens(self, mode: Mode, wording: int = 0) -> int:
        """P, the same for every language."""
        texts = [self.prompt(mode, language, wording) for language in LANGUAGES]
        longest = max(len(self.tokenizer.encode(text)) for text in texts)
        return -(-longest // MULTIPLE) * MULTIPLE

    @property
    def longest(self) -> int:
        """Tokens of the longest label's answer, its ending included."""
        return max(self._blocks(kind)[LANGUAGES[0]][0].shape[1] for kind in (False, True))

    def trie(self, language: Language) -> Trie:
        """The labels' answers as the only ones that may be written."""
        return self._tries[language]

    def written(
        self, tokens: np.ndarray, reasoning: int, ask: Ask, language: Language, best: str
    ) -> tuple[str, str | None]:
        """(a written answer as text, its label where that is certain).

        tokens int32[n], `reasoning` of them before the sentence that names the label; a constrained
        explicit answer ends with the sentence of the `best` label.
        """
        ids = [int(token) for token in tokens]
        if not ask.constrained:
            return self.tokenizer.decode(ids), None
        if ask.mode == "explicit":
            ids = ids[:reasoning] + self._endings[language][self.labels.index(best)]
            return self.tokenizer.decode(ids), best
        answers = [[*sequence, self.tokenizer.eos] for sequence in self._answers[language]]
        label = self.labels[answers.index(ids)]
        return self.tokenizer.decode(ids), label

    @functools.cached_property
    def _answers(self) -> dict[Language, list[list[int]]]:
        """The labels' short answers as they begin an answer, without the ending token."""
        return {
            language: [self.tokenizer.encode(implicit_answer(n, language)) for n in self.labels]
            for language in LANGUAGES
        }

    @functools.cached_property
    def _endings(self) -> dict[Language, list[list[int]]]:
        """The labels' short answers as they end an explicit answer, without the ending token.

        Behind other text, the first token of a sentence may be another one.
        """
        return {
            language: [
                self._behind(BEFORE[language], implicit_answer(n, language)) for n in self.labels
            ]
            for language in LANGUAGES
        }

    def _behind(self, before: str, text: str) -> list[int]:
        """Tokens of a text where another one stands before it, from the first that differs."""
        alone, both = self.tokenizer.encode(before), self.tokenizer.encode(before + text)
        same = 0
        while same < min(len(alone), len(both)) and alone[same] == both[same]:
            same += 1
        return both[same:]

    @functools.cached_property
    def _tries(self) -> dict[Language, Trie]:
        """Tries of one shape."""
        tries = {
            language: build_trie(sequences, self.tokenizer.eos, self.vocabulary)
            for language, sequences in self._answers.items()
        }
        M, W = (max(trie.tokens.shape[axis] for trie in tries.values()) for axis in (0, 1))

        def pad(table, fill: int) -> np.ndarray:
            table = np.asarray(table)
            more = ((0, M - table.shape[0]), (0, W - table.shape[1]))
            return np.pad(table, more, constant_values=fill)

        return {
            language: tries[language].replace(
                tokens=pad(tries[language].tokens, -1), nodes=pad(tries[language].nodes, 0)
            )
            for language in LANGUAGES
        }

    @functools.cache  # noqa: B019
    def _blocks(self, ends: bool) -> dict[Language, tuple]:
        """{language: (labels, mask, rivals, lead)} of one shape, the ending token included.

        `ends`: as they end an explicit answer.
        """
        found = self._endings if ends else self._answers
        ended = {name: [[*s, self.tokenizer.eos] for s in found[name]] for name in found}
        T = max(len(sequence) for sequences in ended.values() for sequence in sequences)
        blocks = {}
        for name, sequences in ended.items():
            labels, mask = pack_labels(sequences)
            more = ((0, 0), (0, T - labels.shape[1]))
            labels, mask = np.pad(labels, more), np.pad(mask, more)
            lead = 0
            while all(len(s) > lead and s[lead] == sequences[0][lead] for s in sequences):
                lead += 1
            blocks[name] = labels, mask, pack_rivals(labels, mask), sequences[0][:lead]
        return blocks
