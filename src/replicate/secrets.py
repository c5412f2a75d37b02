"""What is a password, a token or a private key, and the same values with `***` in its place.

Pure functions over names, texts and values, for whatever is about to be recorded. They err towards
keeping what is no secret: a param that is lost is a loss too. It reads no environment and no file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

HIDDEN = "***"
#: What a person allows to be recorded: everything (True), or what has one of these names.
Allowed = bool | tuple[str, ...]
#: From text to the same text with `***` in place of secrets.
Redact = Callable[[str], str]

# ---------------------------------------------------------------- names

#: The last words of the names of secrets.
_ENDINGS = (
    *("password", "passwords", "passwd", "passphrase", "secret", "secrets", "apikey"),
    *("api key", "api keys", "access key", "secret key", "private key", "account key"),
    *("storage key", "signing key", "encryption key", "ssh key", "license key"),
)
#: Those that may as well name a file or a way to log in: the value decides.
_PERHAPS = ("credential", "credentials", "auth", "token")
#: What a token is of when it is a secret, rather than one of a tokenizer's.
_TOKEN_OF = frozenset(
    (
        *("access", "api", "auth", "bearer", "bot", "csrf", "id", "jwt", "login", "oauth"),
        *("personal", "refresh", "registry", "sas", "secret", "security", "service", "session"),
        *("user", "vault", "aws", "azure", "gcp", "gh", "git", "github", "gitlab", "google"),
        *("comet", "hf", "hub", "huggingface", "hugging", "kaggle", "mlflow", "neptune", "npm"),
        *("openai", "anthropic", "pypi", "replicate", "slack", "telegram", "wandb", "face"),
    )
)
_LAST = tuple({ending.rpartition(" ")[2] for ending in _ENDINGS} | {*_PERHAPS})
_WORD = r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+"
_NUMBER = r"[-+]?[\d_.]+(?:[eE][-+]?\d+)?"
#: Special tokens of a tokenizer, references to variables, and what stands for nothing.
_NO_VALUE = r"(?is)<.*>|\[.*\]|\$.*|\*+|none|null|true|false|"
_PATH = r"(?s)(?:~|\.{1,2})/.*|(?:/[a-z0-9._-]+)+|[\w./\\:-]+\.[A-Za-z]{2,5}"


def is_secret(name: str, value: str) -> bool:
    """Whether a text that is called `name` is a secret, by the last words of the name."""
    if not name.lower().endswith(_LAST) or re.fullmatch(_NO_VALUE, value):
        return False
    words = [word.lower() for word in re.findall(_WORD, name)]
    last, two = " ".join(words[-1:]), " ".join(words[-2:])
    if last in _ENDINGS or two in _ENDINGS:
        return "key" not in last or re.fullmatch(_PATH, value) is None
    if last not in _PERHAPS or re.fullmatch(_NUMBER, value) or re.fullmatch(_PATH, value):
        return False
    if last == "token" and (len(words) == 1 or words[-2] in _TOKEN_OF):
        return True
    return _looks_random(value) or (last != "token" and ":" in value)


def _looks_random(value: str) -> bool:
    return (
        len(value) >= 16
        and re.search(r"\s", value) is None
        and re.search(r"\d", value) is not None
        and re.search(r"[A-Za-z]", value) is not None
        and len(set(value)) >= 8
    )


# ---------------------------------------------------------------- values


class Pattern(NamedTuple):
    """What a kind of secret looks like wherever it stands. One of the `hints` is in every text that
    has one, which is far quicker to see. Group 1, if there is one, is what stays."""

    kind: str
    hints: tuple[str, ...]
    pattern: str


def _pattern(kind: str, hints: str, pattern: str) -> Pattern:
    return Pattern(kind, tuple(hints.split(" ")), pattern)


# To compile them all would take longer than the rest of a start, and few are ever needed.
_compiled = cache(re.compile)


_START = r"(?<![A-Za-z0-9])"
PATTERNS = (
    _pattern("AWS key id", "AKIA ASIA", _START + r"(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"),
    _pattern("GitHub token", "ghp_ gho_ ghu_ ghs_ ghr_", _START + r"gh[pousr]_[A-Za-z0-9]{20,}"),
    _pattern("GitHub fine-grained token", "github_pat_", _START + r"github_pat_\w{20,}"),
    _pattern("GitLab token", "glpat-", _START + r"glpat-[\w-]{16,}"),
    _pattern(
        "Hugging Face token",
        "hf_",
        _START + r"hf_(?:(?=[A-Za-z]*\d)[A-Za-z0-9]{16,}|[A-Za-z]{34}(?![A-Za-z0-9_]))",
    ),
    _pattern(
        "OpenAI or Anthropic key",
        "sk-",
        _START + r"sk-(?:[a-z0-9]+-){0,3}(?=[A-Za-z_-]*\d)(?=[\w-]{0,40}[A-Za-z0-9]{16})[\w-]{20,}",
    ),
    _pattern("Stripe key", "k_live_ k_test_", _START + r"[rs]k_(?:live|test)_[A-Za-z0-9]{16,}"),
    _pattern("Slack token", "xox", _START + r"xox[abeprs]-[\w-]{10,}"),
    _pattern("Slack webhook", "hooks.slack.com", r"(hooks\.slack\.com/services/)[\w/]{16,}"),
    _pattern("Google API key", "AIza", _START + r"AIza[\w-]{30,}"),
    _pattern("Google OAuth token", "ya29.", _START + r"ya29\.[\w-]{20,}"),
    _pattern("PyPI token", "pypi-AgE", _START + r"pypi-AgE[\w-]{20,}"),
    _pattern("npm token", "npm_", _START + r"npm_[A-Za-z0-9]{36}(?![A-Za-z0-9])"),
    _pattern("JSON web token", "eyJ", _START + r"eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}"),
    _pattern(
        "private key",
        "PRIVATE",
        r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[\s\S]*?(?:-----END[A-Z ]{0,40}-----|\Z)",
    ),
    _pattern("password in a URL", "://", r"(://)[^/@\s'\"]*:[^/@\s'\"]+(?=@)"),
    _pattern(
        "Azure key",
        "AccountKey= SharedAccessKey=",
        r"((?:AccountKey|SharedAccessKey)=)[A-Za-z0-9+/=]{20,}",
    ),
    _pattern(
        "signature of a URL",
        "sig= ignature= ecurity-Token=",
        r"([?&](?:sig|X-(?:Amz|Goog)-(?:Signature|Security-Token))=)[\w%+/=.-]{16,}",
    ),
    _pattern(
        "AWS secret key",
        "ecret ECRET",
        r"((?i:aws_?secret_?(?:access_?)?key)\W{1,6})[A-Za-z0-9+/]{40}(?![A-Za-z0-9+/])",
    ),
    _pattern(
        "Authorization header",
        "earer EARER",
        r"((?i:\bbearer)\s+)(?=[A-Za-z_.~+/-]*\d)[\w.~+/-]{20,}=*",
    ),
    _pattern(
        "member of an object",
        "\": ':",
        r"""((['"])[\w-]{0,30}(?:(?i:passw(?:or)?d|secret|api[_-]?key|(?:access|secret|private)"""
        r"""[_-]?key|(?:auth|access|api)[_-]?token))\2:\s*(['"]))(?:(?!\3)[^\\]|\\.)+(?=\3)""",
    ),
)


def redact_text(text: str) -> str:
    """`text` with `***` for all in it that looks like a secret by itself."""
    for _, hints, pattern in PATTERNS:
        if any(hint in text for hint in hints):
            text = _compiled(pattern).sub(_hidden, text)
    return text


def _hidden(found: re.Match[str]) -> str:
    return (found[1] if found.re.groups else "") + HIDDEN


def environment_secrets(environ: Mapping[str, str], allowed: Allowed = ()) -> tuple[str, ...]:
    """The values of the variables that hold secrets, such as AWS_SECRET_ACCESS_KEY, the longest
    first. One that is short might be any word, and is none of them."""
    found = {
        value
        for name, value in environ.items()
        if len(value) >= _SHORTEST and is_secret(name, value) and not _may(name, allowed)
    }
    return tuple(sorted(found, key=lambda value: (-len(value), value)))


_SHORTEST = 12


def redactor(values: Sequence[str]) -> Redact:
    """A function from text to the same text with `***` for these values, the longest first, and
    for all that looks like a secret by itself."""

    def redact(text: str) -> str:
        for value in values:
            text = text.replace(value, HIDDEN)
        return redact_text(text)

    return redact


# ---------------------------------------------------------------- commands


def redact_words(words: Iterable[str], allowed: Allowed = ()) -> tuple[list[str], list[str]]:
    """The arguments of a command without secrets, and what each one that was hidden is called."""
    kept: list[str] = []
    hidden: list[str] = []
    expected = ""  # the option whose value comes next
    for word in words:
        if expected and not word.startswith("-") and is_secret(expected, word):
            kept.append(HIDDEN)
            hidden.append(expected)
            expected = ""
            continue
        name, equals, value = word.partition("=")
        expected = name if name.startswith("-") and not equals and not _may(name, allowed) else ""
        kept.append(_redacted_word(word, name, value, allowed))
        if kept[-1] != word:
            hidden.append(name if equals else "an argument")
    return kept, hidden


def _redacted_word(word: str, name: str, value: str, allowed: Allowed) -> str:
    if _may(name, allowed):
        return word
    if value and re.fullmatch(r"[\w.+-]+", name) and is_secret(name, value):
        return f"{name}={HIDDEN}"
    return redact_text(word)


_SHELL_WORD = r"""(?s)(?:'[^']*'|"[^"]*"|\\.|[^\s'"\\])+|['"\\]"""


def redact_command(command: str, allowed: Allowed = ()) -> tuple[str, list[str]]:
    """The same for a whole command, written as for a shell."""
    found = list(re.finditer(_SHELL_WORD, command))
    typed = [re.sub(r"['\"\\]", "", word[0]) for word in found]
    kept, hidden = redact_words(typed, allowed)
    parts, end = [], 0
    for match, before, after in zip(found, typed, kept, strict=True):
        parts += [command[end : match.start()], match[0] if after == before else after]
        end = match.end()
    return "".join([*parts, command[end:]]), hidden


# ---------------------------------------------------------------- params


def redact_values(
    values: Mapping[str, Any], allowed: Allowed = ()
) -> tuple[dict[str, Any], list[str]]:
    """Params without secrets, however nested, and the dotted names of those that were hidden.
    Numbers are never secrets."""
    hidden: list[str] = []
    kept = {key: _redacted(value, key, key, allowed, hidden) for key, value in values.items()}
    return kept, hidden


def _redacted(value: Any, key: str, name: str, allowed: Allowed, hidden: list[str]) -> Any:
    """`value`, which the nearest `key` calls so and which is `name` in full."""
    if _may(name, allowed):
        return value
    if isinstance(value, Mapping):
        return {k: _redacted(v, k, f"{name}.{k}", allowed, hidden) for k, v in value.items()}
    if isinstance(value, list):
        return [_redacted(v, key, f"{name}.{i}", allowed, hidden) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value
    kept = HIDDEN if is_secret(key, value) else redact_text(value)
    if kept != value:
        hidden.append(name)
    return kept


def _may(name: str, allowed: Allowed) -> bool:
    """Whether what has this name, or one that ends in it, may be recorded."""
    if isinstance(allowed, bool):
        return allowed
    plain = _plain(name)
    return any(plain == a or plain.endswith(f".{a}") for a in map(_plain, allowed))


def _plain(name: str) -> str:
    return name.lstrip("-+").replace("-", "_").lower()


# ---------------------------------------------------------------- what is said, and may be saved


def may_save(path: str, allowed: Allowed) -> bool:
    """Whether a file that looks like a secret may be saved: it, or its name, is allowed."""
    if isinstance(allowed, bool):
        return allowed
    return any(path == name or path.endswith(f"/{name}") for name in allowed)


def hidden_message(names: Sequence[str]) -> str:
    """What to tell the person of values that were hidden."""
    return (
        f"Recorded as {HIDDEN}, because they look like secrets: {_row(names)}. "
        f"To record one, name it in {_HOW_TO_ALLOW}."
    )


def left_out_message(paths: Sequence[str]) -> str:
    """What to tell the person of files that were not saved."""
    return (
        f"Not saved, because they probably hold secrets: {_row(paths)}. "
        f"To save one, name it in {_HOW_TO_ALLOW}."
    )


_HOW_TO_ALLOW = "`allow_secrets` in replicate.yaml"
_NAMED = 10


def _row(names: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(names))
    more = f" and {len(distinct) - _NAMED:,} more" if len(distinct) > _NAMED else ""
    return ", ".join(distinct[:_NAMED]) + more
