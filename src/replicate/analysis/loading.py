"""Reading a file into a value, only where the format can hold nothing but data: nothing here ever
unpickles, so no file that someone else has made can run code. It knows no repository."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Literal

from replicate.analysis.optional import required
from replicate.errors import UsageError

Framework = Literal["numpy", "pt"]
_TEXT = frozenset({".txt", ".md", ".log", ".py", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".tex"})
#: Before this version pyarrow unpickled what some Parquet files hold (CVE-2023-47248).
_SAFE_PYARROW = (14, 0, 1)
_ADVICE: Mapping[str, str] = {
    **dict.fromkeys(
        (".pt", ".pth", ".ckpt", ".bin"), "torch.load(checkpoint.open({path!r}), weights_only=True)"
    ),
    **dict.fromkeys((".pkl", ".pickle"), "pickle.load(checkpoint.open({path!r}))"),
    **dict.fromkeys((".joblib",), "joblib.load(checkpoint.open({path!r}))"),
}


def read(file: BinaryIO, path: str, framework: Framework = "numpy") -> Any:
    """What the file holds, by the ending of its name: arrays, tables, JSON or text.

    Raises UsageError for a format that could run code, for a file that is not what its name says,
    and where a library is missing.
    """
    if framework not in ("numpy", "pt"):
        raise UsageError(f'framework must be "numpy" or "pt", not {framework!r}')
    suffix = PurePosixPath(path).suffix.lower()
    if suffix == ".safetensors":
        return _safetensors(file, path, framework)
    reader = _READERS.get(suffix, _text if suffix in _TEXT else None)
    if reader is None:
        raise _refusal(path, suffix)
    try:
        return reader(file)
    except (ValueError, EOFError, KeyError) as error:  # JSON and UTF-8 errors are ValueErrors
        raise UsageError(
            f"{path} cannot be read as what its name says: {error}",
            hint=f"checkpoint.open({path!r}) has its bytes.",
        ) from error


def _refusal(path: str, suffix: str) -> UsageError:
    advice = _ADVICE.get(suffix)
    if advice is None:
        return UsageError(
            f"load() does not know files such as {path}",
            hint=f"Open it yourself: checkpoint.open({path!r}) is a file to read from.",
        )
    trust = "" if "weights_only" in advice else ", if you trust who made it"
    return UsageError(
        f"load() does not read {path}: a file of this kind can run code when it is read",
        hint=f"Open it yourself{trust}: {advice.format(path=path)}",
    )


def _safetensors(file: BinaryIO, path: str, framework: Framework) -> Any:
    module = _library("safetensors.torch" if framework == "pt" else "safetensors.numpy")
    data = file.read()
    try:
        return module.load(data)
    except (KeyError, TypeError) as error:  # bfloat16 and the like, which numpy has not
        raise UsageError(
            f"{path} has numbers of a kind that numpy does not know: {error}",
            hint='Pass framework="pt" to get tensors of torch.',
        ) from error
    except _library("safetensors").SafetensorError as error:
        raise UsageError(f"{path} is not a safetensors file: {error}") from error


def _numpy(file: BinaryIO) -> Any:
    loaded = _library("numpy").load(file, allow_pickle=False)
    return dict(loaded) if isinstance(loaded, Mapping) else loaded


def _csv(file: BinaryIO) -> Any:
    return _library("pandas").read_csv(file)


def _parquet(file: BinaryIO) -> Any:
    pandas, pyarrow = _library("pandas"), _library("pyarrow")
    version = tuple(int(part) for part in pyarrow.__version__.split(".")[:3] if part.isdecimal())
    if version < _SAFE_PYARROW:
        raise UsageError(f"pyarrow {pyarrow.__version__} may unpickle: update it to read Parquet")
    return pandas.read_parquet(file, engine="pyarrow")


def _text(file: BinaryIO) -> str:
    return file.read().decode()


_READERS: Mapping[str, Callable[[BinaryIO], Any]] = {
    ".npy": _numpy,
    ".npz": _numpy,
    ".json": json.load,
    ".csv": _csv,
    ".parquet": _parquet,
}


_EXTRAS: Mapping[str, str] = {
    "pandas": "'replicate[pandas]'",
    "pyarrow": "'replicate[parquet]'",
}


def _library(module: str) -> Any:
    library = module.partition(".")[0]
    return required(module, "Such a file", _EXTRAS.get(library, library))
