"""Hugging Face model directories: local, safetensors only, no code of their own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ArgumentError, LlcFastError, ModelError
from .lm import token_losses

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model in eval mode, its tokenizer, and where they came from.

    digest: SHA-256 over the names and bytes of the configuration, weight and tokenizer files.
    max_length: most positions it takes, None if its configuration does not say.
    """

    model: nn.Module
    tokenizer: Any
    path: Path
    family: str
    digest: str
    vocabulary: int
    max_length: int | None

    @property
    def numel(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


def load(
    directory: str | Path,
    *,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    tokenizer: bool = True,
) -> LoadedModel:
    """The model of a directory written by `save_pretrained`, with its tokenizer unless that is not wanted.

    Reads local files only, weights from safetensors only, and runs no code from the directory. dtype:
    "float32" or "bfloat16", what the weights are converted to. Raises ModelError where the directory
    holds no such model, says what is missing, and what to do; ArgumentError for an unknown dtype.
    """
    if dtype not in DTYPES:
        raise ArgumentError(f"dtype is {dtype!r}: give one of {', '.join(DTYPES)}")
    path = Path(directory).expanduser()
    settings = check(path, tokenizer=tokenizer)
    family = str(settings.get("model_type"))
    with _quiet():
        model = _load_weights(path, family, DTYPES[dtype])
        own = _load_tokenizer(path) if tokenizer else None
    model.requires_grad_(True)
    model.eval()
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as e:
        raise ModelError(f"{path} does not go to {device}: {_line(e)}") from e
    embedding = model.get_input_embeddings()
    limit = next((settings[k] for k in ("max_position_embeddings", "n_positions") if settings.get(k)), None)
    return LoadedModel(
        model, own, path.resolve(), family, digest(path), int(embedding.weight.shape[0]), limit and int(limit)
    )


def structure(directory: str | Path) -> nn.Module:
    """The model of a directory on the meta device: its modules and shapes without its weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    path = Path(directory).expanduser()
    family = check(path, tokenizer=False).get("model_type")
    try:
        with _quiet(), torch.device("meta"):
            config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            model: nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as e:  # transformers raises whatever its many parts raise
        raise ModelError(f"transformers cannot build {path} (model_type {family!r}): {_line(e)}") from e
    return model


def check(path: Path, *, tokenizer: bool = True) -> dict[str, Any]:
    """The directory's config.json, after everything that can be refused without loading weights."""
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise ModelError(
            f"model directory {path} {what}: give a local directory with config.json and *.safetensors "
            "(to fetch one from the Hugging Face hub: hf download NAME --local-dir DIR)"
        )
    config = path / "config.json"
    if not config.is_file():
        if (path / "adapter_config.json").is_file():
            raise ModelError(
                f"{path} holds an adapter: merge it (peft's merge_and_unload), save, and give that"
            )
        raise ModelError(f"{path} has no config.json: give a directory written by save_pretrained")
    settings = _read_json(config)
    if settings.get("auto_map"):
        raise ModelError(
            f"{config} has an auto_map: this model brings its own Python code, which llc-fast does not run. "
            "If transformers has this architecture built in, convert it to that and save it; otherwise load it "
            "in your own code and call llc_fast.estimate_llc"
        )
    _check_weights(path)
    if tokenizer and not any((path / name).is_file() for name in _TOKENIZERS):
        raise ModelError(f"{path} has no tokenizer: save the model's own there (tokenizer.save_pretrained)")
    return settings


def _check_weights(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    files = _weight_files(path)
    if not files:
        pickles = sorted(f.name for f in path.iterdir() if f.suffix in _PICKLES and "arg" not in f.stem)
        if pickles:
            raise ModelError(
                f"{path} has its weights as pickle files only ({', '.join(pickles[:3])}), which can run any "
                "code when they are read and are refused. Where you trust them, convert them once: "
                "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR, safe_serialization=True)"
            )
        raise ModelError(f"{path} has no weights: no *.safetensors file is there")
    for file in files:
        if not file.is_file():
            raise ModelError(f"{path} lacks {file.name}, which its index names: fetch it again")
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as e:
            raise ModelError(f"{file} is not a readable safetensors file ({_line(e)}): fetch it again") from e


def _weight_files(path: Path) -> list[Path]:
    """The safetensors files that make up the model."""
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        shards = _read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ModelError(f"{index} has no weight_map: fetch it again")
        return [path / Path(str(name)).name for name in sorted(set(shards.values()))]
    return sorted(path.glob("*.safetensors"))


def _load_weights(path: Path, family: str, dtype: torch.dtype) -> Any:
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    version = tuple(int(n) for n in transformers.__version__.split(".")[:2])
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        if hasattr(config, "quantization_config"):
            raise ModelError(
                f"{path} is quantized: its weights cannot be moved by small steps, give the original"
            )
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **{"dtype" if version >= (4, 56) else "torch_dtype": dtype},
        )
        model, info = loaded
    except LlcFastError:
        raise
    except Exception as e:  # transformers raises whatever its many parts raise
        raise ModelError(f"transformers cannot load {path} (model_type {family!r}): {_line(e)}") from e
    missing = sorted(str(k) for k in info["missing_keys"])
    mismatched = sorted(str(k[0] if isinstance(k, tuple) else k) for k in info["mismatched_keys"])
    if missing or mismatched:
        names = ", ".join((missing + mismatched)[:3])
        raise ModelError(
            f"the weights in {path} do not fit its config.json: {len(missing)} tensors are missing and "
            f"{len(mismatched)} have another shape ({names}): give matching files"
        )
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ModelError(
                f"{name} in {path} holds NaN or infinity: such weights are no anchor for a chain"
            )
    return model


def _load_tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if (path / "tokenizer_config.json").is_file() and _read_json(path / "tokenizer_config.json").get(
        "auto_map"
    ):
        raise ModelError(f"the tokenizer in {path} brings its own Python code, which llc-fast does not run")
    try:
        if (path / "tokenizer.json").is_file() and not (path / "tokenizer_config.json").is_file():
            return PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as e:
        raise ModelError(f"transformers cannot load the tokenizer in {path}: {_line(e)}") from e


def digest(path: Path) -> str:
    """SHA-256 over the files that decide what the model computes, names included."""
    names = {"config.json", *_TOKENIZERS, "tokenizer_config.json", "special_tokens_map.json", "merges.txt"}
    files = [path / name for name in names if (path / name).is_file()] + _weight_files(path)
    total = hashlib.sha256()
    for file in sorted(files):
        with file.open("rb") as f:
            total.update(f"{file.name} {hashlib.file_digest(f, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def sequence_losses(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean next-token cross-entropy of each sequence in nats, fp32 of shape (batch,), from tokens (batch, length).

    See `lm.token_losses`.
    """
    return token_losses(model, tokens).mean(-1)


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without progress bars and warnings: what matters is checked and said here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ModelError(f"{file} is not readable JSON ({_line(e)}): fetch it again") from e
    if not isinstance(value, dict):
        raise ModelError(f"{file} holds no JSON object: fetch it again")
    return value


def _line(e: BaseException) -> str:
    """An exception's first line."""
    return (str(e).strip() or type(e).__name__).splitlines()[0]
