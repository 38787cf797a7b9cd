"""The text rules of the released C2SER model's training: what an answer looks like to it.

A normalised text has its labels in lower case and nothing but them around: "The emotion is
<HAPPY>" becomes "the emotion is<happy>". Source: `processor.py` of C2SER.
"""

import re

MISSING_TAG = "None_in_extract_X"
MISSING_ANSWER = "None_in_extract_answer"
"""What stands for a text in which the tag, or the answer, was not found; such rows are dropped."""

_AROUND_IDEOGRAPHS = re.compile(r"\s*([\u4e00-\u9fff])\s*")
_AROUND_BRACKETS = re.compile(r"\s*([<>])\s*")
_TAG = re.compile(r"<[^>]+>")
_STYLES = {
    "朗读": "新闻科普", "科普百科": "新闻科普", "悬疑恐怖": "恐怖故事", "童话故事": "童话故事",
    "客服": "客服", "诗歌": "诗歌散文", "散文": "诗歌散文", "武侠评书": "有声书", "小说": "有声书",
    "历史": "有声书", "科幻": "有声书", "对话": "日常口语", "口语": "日常口语", "幽默": "其他",
    "其他": "其他",
}  # fmt: skip


def normalize_text(text: str) -> str:
    """No white space around Chinese ideographs (U+4E00 to U+9FFF) or `<` and `>`; lower case."""
    return _AROUND_BRACKETS.sub(r"\1", _AROUND_IDEOGRAPHS.sub(r"\1", text).lower())


def extract_label_tag(text: str) -> str:
    """The first `<...>` of a text, brackets included; `MISSING_TAG` when there is none."""
    found = _TAG.search(text)
    return found.group() if found else MISSING_TAG


def merge_styles(text: str) -> str:
    """Maps fine speaking-style tags such as `<朗读>` to the published coarse ones."""
    return re.sub(r"<([^<>]+)>", lambda tag: f"<{_STYLES.get(tag[1], tag[1])}>", text)


def training_text(text: str, task: str) -> str:
    """The text that a row of a task is trained on: normalised, with styles merged for `<STYLE>`."""
    return normalize_text(merge_styles(text) if "<STYLE>" in task else text)
