"""Text datasets as token sequences of one length."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import ArgumentError, DataError
from .scalars import check_integer

_PIECES = 20  # in which the texts of a batch are tokenized: where devinterp cuts them, for equal tokens


def tokenize_and_concatenate(
    dataset: Any,
    tokenizer: Any,
    streaming: bool = False,
    max_length: int = 1024,
    column_name: str = "text",
    add_bos_token: bool = True,
    num_proc: int = 10,
) -> Any:
    """A Hugging Face text dataset as one of token sequences, all of max_length, under 'input_ids'.

    Texts are joined by the tokenizer's EOS token, a thousand at a time, and cut into sequences; what is left of each
    thousand is dropped. add_bos_token: every sequence starts with BOS, which counts towards max_length. streaming:
    of an IterableDataset, which is returned as such. num_proc: processes, each with its part of the dataset.

    The sequences are those of devinterp's function of this name, which also cuts each thousand texts into 20 pieces
    before it tokenizes them, except that: no special tokens go into the pieces; EOS between texts is kept where it is
    the tokenizer's padding as well; what does not fill a sequence is dropped, not padded; the tokenizer is not
    changed. Raises ArgumentError or DataError.
    """
    from datasets import Features, Value
    from datasets import Sequence as Many

    length = check_integer("max_length", max_length, minimum=2)
    if add_bos_token and tokenizer.bos_token_id is None:
        raise ArgumentError(
            f"add_bos_token is True, but {type(tokenizer).__name__} has no BOS token: give add_bos_token=False"
        )
    if tokenizer.eos_token is None:
        raise ArgumentError(
            f"{type(tokenizer).__name__} has no EOS token to put between texts: set its eos_token"
        )
    names = dataset.column_names
    if names is not None and column_name not in names:
        raise DataError(
            f"dataset has no column {column_name!r} (it has: {', '.join(names)}): give column_name"
        )
    head = [tokenizer.bos_token_id] if add_bos_token else []
    settings = {
        "function": _sequences,
        "batched": True,
        "remove_columns": [column_name],
        "features": Features({"input_ids": Many(Value("int64"))}),
        "fn_kwargs": {
            "tokenizer": tokenizer,
            "column": column_name,
            "head": head,
            "length": length - len(head),
        },
    }
    texts = dataset.select_columns([column_name])
    if streaming:
        return texts.map(**settings).with_format("torch")
    sequences = texts.map(**settings, num_proc=num_proc)
    if not len(sequences):
        raise DataError(
            f"dataset has too little text for one sequence of {length} tokens: give more, or lower max_length"
        )
    sequences.set_format(type="torch", columns=["input_ids"])
    return sequences


def _sequences(
    examples: dict[str, list[str]], *, tokenizer: Any, column: str, head: list[int], length: int
) -> dict[str, npt.NDArray[np.int64]]:
    """Sequences of `length` tokens, each after `head`, of some texts together."""
    text = tokenizer.eos_token.join(examples[column])
    size = -(-len(text) // _PIECES)
    pieces = [text[i : i + size] for i in range(0, len(text), size)] if text.strip() else []
    encoded = tokenizer(pieces, add_special_tokens=False, verbose=False)["input_ids"] if pieces else []
    tokens = np.array([i for ids in encoded for i in ids], dtype=np.int64)
    rows = tokens[: len(tokens) // length * length].reshape(-1, length)
    return {
        "input_ids": np.concatenate([np.tile(np.array(head, dtype=np.int64), (len(rows), 1)), rows], axis=1)
    }
