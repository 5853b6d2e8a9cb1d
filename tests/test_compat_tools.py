"""default_nbeta, preview_weight_restriction, tokenize_and_concatenate: as devinterp's, but for what its page names."""

from __future__ import annotations

import inspect
import random
import warnings
from typing import Any

import cli_tiny
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from llc_fast import create_param_masks
from llc_fast.errors import ArgumentError, ArgumentTypeError, DataError
from llc_fast.nbeta import default_nbeta
from llc_fast.preview import preview_weight_restriction
from llc_fast.tokenization import tokenize_and_concatenate

DEVINTERP = "needs devinterp 2.0.1: pip install 'llc-fast[dev]'"
theirs = pytest.importorskip("devinterp.utils", reason=DEVINTERP)
restrictions = pytest.importorskip("devinterp.slt.weight_restrictions", reason=DEVINTERP)
datasets = pytest.importorskip("datasets", reason="needs datasets")
transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'llc-fast[cli]'")


@pytest.mark.parametrize(
    ("mine", "other"),
    [
        (default_nbeta, theirs.default_nbeta),
        (preview_weight_restriction, restrictions.preview_weight_restriction),
        (tokenize_and_concatenate, theirs.tokenize_and_concatenate),
    ],
    ids=lambda f: f.__module__.partition(".")[0],
)
def test_signatures(mine: Any, other: Any):
    a, b = (inspect.signature(f).parameters.values() for f in (mine, other))
    assert [(p.name, p.default, p.kind) for p in a] == [(p.name, p.default, p.kind) for p in b]


@pytest.mark.parametrize("size", [2, 3, 32, 10_000])
@pytest.mark.parametrize("steps", [1, 4])
def test_nbeta(size: int, steps: int):
    loader = DataLoader(range(5), size)  # type: ignore[arg-type,var-annotated]
    for given in (size, loader):
        assert default_nbeta(given, steps) == pytest.approx(theirs.default_nbeta(given, steps), rel=1e-15)
    assert type(default_nbeta(size)) is float


def test_nbeta_without_a_value():
    with pytest.warns(UserWarning, match="nbeta is 1"):
        assert default_nbeta(1) == 1
    with pytest.raises(ArgumentTypeError, match="dataloader is a str"):
        default_nbeta("32")  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="dataloader is a bool"):
        default_nbeta(True)
    with pytest.raises(ArgumentError, match="batch_sampler"):
        default_nbeta(DataLoader(range(5), batch_size=None))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cli_tiny.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def neox(folder: Any) -> nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("component", ["l0h1", "l1 mlp", "full", "embed", ["l0h0", "l1 attn"]])
def test_previews_are_devinterps(neox: nn.Module, component: Any, capsys: pytest.CaptureFixture[str]):
    masks = create_param_masks(neox, component)
    for plain in (False, True):
        preview_weight_restriction(neox, masks, plain=plain)
        mine = capsys.readouterr().out
        restrictions.preview_weight_restriction(neox, masks, plain=plain)
        assert mine == capsys.readouterr().out
        assert len(mine.splitlines()) >= len(masks)


def test_previews_of_a_parameter_without_a_module(capsys: pytest.CaptureFixture[str]):
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(4, 3))
            self.none = nn.Parameter(torch.ones(0))

    model, masks = Bare(), {"w": torch.ones(4, 3) > 0, "none": None}
    masks["w"][1:] = False
    preview_weight_restriction(model, masks)
    mine = capsys.readouterr().out
    restrictions.preview_weight_restriction(model, masks)
    assert mine == capsys.readouterr().out
    assert "(3 of 12)" in mine
    with pytest.raises(ArgumentError, match="'v', which is no parameter"):
        preview_weight_restriction(model, {"v": None})
    with pytest.raises(ArgumentError, match=r"masks\['w'\] has shape \(3,\)"):
        preview_weight_restriction(model, {"w": torch.ones(3)})
    with pytest.raises(ArgumentTypeError, match="masks is a str"):
        preview_weight_restriction(model, "w")  # type: ignore[arg-type]


@pytest.fixture
def tokenizer(folder: Any) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def text() -> Any:
    """2,100 texts: two batches of a thousand and a rest of a hundred, some texts empty."""
    words = [*cli_tiny.PROSE.split(), "naïve", "日本", "\n", "  "]
    pick = random.Random(0)
    rows = [" ".join(pick.choices(words, k=pick.randrange(12))) for _ in range(2100)]
    return datasets.Dataset.from_dict({"text": rows, "other": rows})


def both(text: Any, tokenizer: Any, **settings: Any) -> tuple[Any, Any]:
    settings = {"max_length": 16, "num_proc": 1, "add_bos_token": False} | settings
    mine = tokenize_and_concatenate(text, tokenizer, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = theirs.tokenize_and_concatenate(text, tokenizer, **settings)
    return mine, other


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("length", [5, 64])
def test_tokens_are_devinterps(text: Any, tokenizer: Any, bos: bool, length: int):
    tokenizer.bos_token = cli_tiny.EOS
    before = len(tokenizer)
    mine, other = both(text, tokenizer, add_bos_token=bos, max_length=length)
    assert len(mine) > 100
    assert mine.column_names == other.column_names == ["input_ids"]
    assert torch.equal(mine["input_ids"][:], other["input_ids"][:])
    assert mine[0]["input_ids"].dtype == torch.int64
    assert (mine["input_ids"][:][:, 0] == tokenizer.bos_token_id).all() == bos
    assert len(tokenizer) == before + 1  # devinterp added a padding token


def test_the_tokenizer_is_left_alone(text: Any, tokenizer: Any):
    before = len(tokenizer)
    tokenize_and_concatenate(text, tokenizer, max_length=16, num_proc=1, add_bos_token=False)
    assert len(tokenizer) == before
    assert tokenizer.pad_token is None


def test_separators_stay_where_they_are_padding_too(text: Any, tokenizer: Any):
    """devinterp drops them with the padding, and documents run into each other."""
    tokenizer.pad_token = tokenizer.eos_token
    mine, other = both(text, tokenizer)
    assert int((other["input_ids"][:] == tokenizer.eos_token_id).sum()) == 0
    count = int((mine["input_ids"][:] == tokenizer.eos_token_id).sum())
    assert 2100 - 3 - 3 * 16 <= count <= 2100 - 3


def test_nothing_is_padded(text: Any, tokenizer: Any):
    """A rest shorter than a sequence is left out; devinterp fills it with tokens that the model does not know."""
    few = text.select([i for i in range(30) if len(text[i]["text"]) > 20][:1])
    with pytest.raises(DataError, match="too little text for one sequence of 1000 tokens"):
        tokenize_and_concatenate(few, tokenizer, max_length=1000, num_proc=1, add_bos_token=False)
    padded = theirs.tokenize_and_concatenate(few, tokenizer, max_length=1000, num_proc=1, add_bos_token=False)
    assert int(padded["input_ids"][:].max()) == tokenizer.pad_token_id >= 300


def test_no_special_tokens_within(text: Any, tokenizer: Any):
    """A tokenizer that starts every text with BOS would start every piece with it."""
    from tokenizers import processors

    tokenizer.bos_token = cli_tiny.EOS
    plain = tokenize_and_concatenate(text, tokenizer, max_length=16, num_proc=1)["input_ids"][:]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cli_tiny.EOS} $A", special_tokens=[(cli_tiny.EOS, tokenizer.bos_token_id)]
    )
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    text = text.with_format(None).add_column("again", text["other"])  # so that nothing comes from a cache
    assert torch.equal(
        tokenize_and_concatenate(text, tokenizer, max_length=16, num_proc=1)["input_ids"][:], plain
    )


def test_streams_stay_streams(text: Any, tokenizer: Any):
    whole = tokenize_and_concatenate(text, tokenizer, max_length=16, num_proc=1, add_bos_token=False)
    stream = tokenize_and_concatenate(
        text.to_iterable_dataset(), tokenizer, streaming=True, max_length=16, add_bos_token=False
    )
    rows = torch.stack([row["input_ids"] for row in stream.take(70)])
    assert torch.equal(rows, whole["input_ids"][:70])


def test_text_that_cannot_be_tokenized(text: Any, tokenizer: Any):
    with pytest.raises(DataError, match=r"no column 'words' \(it has: text, other\)"):
        tokenize_and_concatenate(text, tokenizer, column_name="words", add_bos_token=False)
    with pytest.raises(ArgumentError, match="no BOS token: give add_bos_token=False"):
        tokenize_and_concatenate(text, tokenizer)
    with pytest.raises(ArgumentError, match="max_length is 1"):
        tokenize_and_concatenate(text, tokenizer, max_length=1, add_bos_token=False)
    tokenizer.eos_token = None
    with pytest.raises(ArgumentError, match="no EOS token"):
        tokenize_and_concatenate(text, tokenizer, add_bos_token=False)
