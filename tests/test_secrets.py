"""Secrets: what is one, what is none, and that none reaches what a run records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import ProjectDirectory
from replicate import secrets
from replicate.backends.failures import storage_error
from replicate.backends.location import open_backend
from replicate.config import cloud_settings
from replicate.errors import ConfigError
from replicate.secrets import (
    PATTERNS,
    environment_secrets,
    is_secret,
    redact_command,
    redact_text,
    redact_values,
    redactor,
)

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
BASE64 = (LETTERS + "0123456789") * 2
#: Made up, of the form that each maker uses; by the kind of the pattern that finds it.
EXAMPLES = {
    "AWS key id": "AKIA" + LETTERS[:16],
    "GitHub token": "ghp_" + BASE64[:36],
    "GitHub fine-grained token": "github_pat_" + BASE64[:22] + "_" + BASE64[:59],
    "GitLab token": "glpat-" + BASE64[30:50],
    "Hugging Face token": "hf_" + LETTERS[10:44],
    "OpenAI or Anthropic key": "sk-proj-" + BASE64[30:62] + "-" + BASE64[:20],
    "Stripe key": "sk_live_" + BASE64[:24],
    "Slack token": "xoxb-" + "123456789012-abcdefABCDEF",
    "Slack webhook": "https://hooks.slack.com/services/T0000/B0000/" + LETTERS[:24],
    "Google API key": "AIza" + BASE64[10:45],
    "Google OAuth token": "ya29." + BASE64[:40],
    "PyPI token": "pypi-AgEIcHlwaS5vcmc" + BASE64[:40],
    "npm token": "npm_" + BASE64[:36],
    "JSON web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0." + BASE64[:43],
    "private key": f"-----BEGIN RSA PRIVATE KEY-----\n{BASE64}\n-----END RSA PRIVATE KEY-----",
    "password in a URL": "postgres://ada:" + BASE64[:12] + "@db/runs",
    "Azure key": "AccountName=a;AccountKey=" + BASE64[:86] + "==",
    "signature of a URL": "https://b.example/x?X-Amz-Signature=" + "0123456789abcdef" * 4,
    "AWS secret key": "aws_secret_access_key = " + BASE64[:40],
    "Authorization header": "Authorization: Bearer " + BASE64[20:60],
    "member of an object": '{"user": "ada", "password": "' + BASE64[:12] + '"}',
}


def test_there_is_an_example_of_every_kind_of_secret() -> None:
    assert EXAMPLES.keys() == {pattern.kind for pattern in PATTERNS}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_what_looks_like_a_secret_is_hidden_wherever_it_stands(kind: str) -> None:
    (pattern,) = (p for p in PATTERNS if p.kind == kind)
    assert any(hint in EXAMPLES[kind] for hint in pattern.hints)
    text = f"before {EXAMPLES[kind]} after"
    redacted = redact_text(text)
    assert secrets.HIDDEN in redacted
    assert redacted.startswith("before ")
    assert redacted.endswith(" after")
    for secret in (BASE64[:12], BASE64[30:42], LETTERS[:16], "0123456789abcdef"):
        assert secret not in redacted


@pytest.mark.parametrize(
    "text",
    [
        "sk-learn-random-forest-classifier sk-image",
        "hf_hub_download hf_transformers",
        "d41d8cd98f00b204e9800998ecf8427e 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822c",
        "https://example.org/path:8080/x@y s3://bucket/root git@github.com:ada/net.git",
        "s3://bucket/a?versionId=0123456789abcdef0123",
        "the bearer of bad news; secrets of deep learning; a password is needed",
        '{"tokenizer": "bert-base-uncased", "max_tokens": 512, "password": ""}',
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "epoch 1: loss=0.1 AKIAora npm_config_cache=/tmp ghp_",
    ],
)
def test_what_only_resembles_a_secret_is_kept_as_it_is(text: str) -> None:
    assert redact_text(text) == text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("password", "x"),
        ("db.password", "hunter2"),
        ("apiKey", "abc"),
        ("WANDB_API_KEY", "0123456789abcdef"),
        ("aws_secret_access_key", BASE64[:40]),
        ("aws_secret_access_key", "/" + BASE64[:39]),
        ("token", "x1"),
        ("hfToken", "x1"),
        ("github-token", "x1"),
        ("my_token", BASE64[40:70]),
        ("client_secret", "x"),
        ("passphrase", "correct horse"),
        ("auth", "ada:hunter2"),
        ("credentials", BASE64[40:70]),
    ],
)
def test_a_text_with_the_name_of_a_secret_is_one(name: str, value: str) -> None:
    assert is_secret(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokenizer", "bert-base-uncased"),
        ("token_dim", "64"),
        ("tokens", "abc"),
        ("max_tokens", "512"),
        ("num_tokens", "5"),
        ("token", "5"),
        ("pad_token", "<pad>"),
        ("mask_token", "[MASK]"),
        ("placeholder_token", "sks"),
        ("initializer_token", "cat"),
        ("user_token", "<|user|>"),
        ("password_length", "8"),
        ("secret_name", "db"),
        ("private_key", "~/.ssh/id_rsa"),
        ("credentials", "conf/gcp.json"),
        ("auth", "basic"),
        ("key", "value"),
        ("primary_key", "id"),
        ("api_key", "$API_KEY"),
        ("api_key", ""),
        ("api_key", "***"),
        ("hash", BASE64[:40]),
    ],
)
def test_a_text_that_is_only_named_alike_is_none(name: str, value: str) -> None:
    assert not is_secret(name, value)


def test_params_are_hidden_however_deep_and_numbers_never() -> None:
    params = {
        "lr": 0.1,
        "password": 1234,
        "token": None,
        "tokens": [1, 2],
        "db": {"password": "hunter2", "host": "db", "replicas": [{"api_key": "k"}]},
        "api_keys": ["a", "b"],
        "url": "https://ada:hunter2@example.org/x",
    }
    kept, hidden = redact_values(params)
    assert kept == {
        **params,
        "db": {"password": "***", "host": "db", "replicas": [{"api_key": "***"}]},
        "api_keys": ["***", "***"],
        "url": "https://***@example.org/x",
    }
    assert hidden == ["db.password", "db.replicas.0.api_key", "api_keys.0", "api_keys.1", "url"]


@pytest.mark.parametrize("allowed", [True, ("api_key", "db.password", "Url")])
def test_what_is_allowed_is_kept(allowed: secrets.Allowed) -> None:
    params = {"api_key": "k", "db": {"password": "p"}, "url": "http://a:b@c"}
    assert redact_values(params, allowed) == (params, [])
    command = "--api-key k --db.password=p --url=http://a:b@c"
    assert redact_command(command, allowed) == (command, [])


@pytest.mark.parametrize(
    ("typed", "recorded"),
    [
        ("train.py --api-key X1 --lr 1", "train.py --api-key *** --lr 1"),
        ("TOKEN=X1 torchrun train.py", "TOKEN=*** torchrun train.py"),
        ("a --password 'two words' -x", "a --password *** -x"),
        ('curl -H "X: y" --password="two words"', 'curl -H "X: y" --password=***'),
        ("it's  kept   as 'it is", "it's  kept   as 'it is"),
    ],
)
def test_a_command_that_is_given_as_text_keeps_its_form(typed: str, recorded: str) -> None:
    assert redact_command(typed)[0] == recorded


@given(st.text())
def test_any_text_is_redacted_without_an_error_and_only_once(text: str) -> None:
    once = redact_text(text)
    assert redact_text(once) == once
    redact_command(text)
    is_secret(text, text)


def test_the_values_of_variables_that_hold_secrets_are_found() -> None:
    environ = {
        "AWS_SECRET_ACCESS_KEY": "0/" + BASE64[:38],
        "HF_TOKEN": "a-token-of-mine",
        "WANDB_API_KEY": "short",
        "TOKENIZERS_PARALLELISM": "false-but-quite-long",
        "SSH_AUTH_SOCK": "/tmp/agent.1234",
        "GOOGLE_APPLICATION_CREDENTIALS": "/home/ada/key.json",
    }
    values = environment_secrets(environ)
    assert values == (environ["AWS_SECRET_ACCESS_KEY"], "a-token-of-mine")
    assert environment_secrets(environ, ("HF_TOKEN",)) == values[:1]
    assert redactor(values)(f"key={values[0]}, {values[1]}!") == "key=***, ***!"


# ------------------------------------------------------------ what a run records


def everything_in(directory: Path) -> bytes:
    return b"\n".join(f.read_bytes() for f in sorted(directory.rglob("*")) if f.is_file())


def test_nothing_that_a_run_records_holds_a_secret(project: ProjectDirectory) -> None:
    canary = "hunter2-canary-0xC0FFEE"
    project.write(".env", f"API_KEY={canary}")
    project.write("conf/key.pem", f"-----BEGIN PRIVATE KEY-----\n{canary}\n")
    project.write("out/.env.local", f"API_KEY={canary}")
    project.write("out/model.pth", "weights")
    done = project.run(
        """
        import os, replicate
        value = os.environ["MY_API_KEY"]
        experiment = replicate.init(
            params={"db": {"password": value}, "url": f"http://ada:{value}@db"}, notes="a note"
        )
        print("the key is", value)
        experiment.checkpoint("out", step=value, metrics={"loss": 1})
        raise RuntimeError(f"denied: {value}")
        """,
        "--token",
        canary,
        expect=1,
        MY_API_KEY=canary,
    )
    record = project.record()
    assert record.command == "train.py --token ***"
    assert record.params == {"db": {"password": "***"}, "url": "http://***@db"}
    assert record.stop is not None
    assert record.stop.exception is not None
    assert record.stop.exception.message == "denied: ***"
    assert project.cli("logs", record.id).stdout.count("the key is ***\n") == 1
    tree = project.open().repository.tree(record.checkpoints[0].tree or "")
    assert list(tree.files) == ["out/model.pth"]
    (project.path / "train.py").unlink()
    assert canary.encode() not in everything_in(project.repository)
    told = done.stderr.partition("Traceback")[0]
    assert canary not in told
    assert told.count("Recorded as ***, because they look like secrets: db.password, url, --t") == 1
    assert "Not saved, because they probably hold secrets: .env, conf/key.pem, out/.env" in told
    assert told.count("allow_secrets") == 3


def test_a_person_may_allow_secrets(project: ProjectDirectory) -> None:
    project.write("replicate.yaml", "allow_secrets: [token, db.password, .env]\n")
    project.write(".env", "TOKEN=1")
    done = project.run(
        'import replicate; replicate.init(params={"db": {"password": "p"}})', "--token=X1"
    )
    record = project.record()
    assert record.command == "train.py --token=X1"
    assert record.params == {"db": {"password": "p"}}
    assert ".env" in project.open().repository.tree(record.tree or "").files
    assert "look like secrets" not in done.stderr
    assert "hold secrets" not in done.stderr


def test_a_file_that_is_named_itself_is_saved(project: ProjectDirectory) -> None:
    project.write("id_rsa", "mine")
    project.run("import replicate; replicate.init(path=None).checkpoint('id_rsa')")
    tree = project.record().checkpoints[0].tree
    assert list(project.open().repository.tree(tree or "").files) == ["id_rsa"]


def test_the_command_of_the_environment_is_redacted_too(project: ProjectDirectory) -> None:
    project.run(
        "import replicate; replicate.init()",
        REPLICATE_COMMAND="run --password=X1",
        REPLICATE_NOTES="with hf_" + BASE64[30:60],
    )
    record = project.record()
    assert (record.command, record.notes) == ("run --password=***", "with ***")
    assert json.dumps(record.params) == "{}"


# ------------------------------------------------------------ credentials of the storage

CANARY = "hunter2-canary-0xC0FFEE"


@pytest.mark.parametrize(
    "url",
    [
        f"s3://AKIA123:{CANARY}@bucket/root",
        f"s3://{CANARY}@bucket/root",
        f"gs://ada:{CANARY}@bucket",
        f"az://container/root?sv=2024&sig={CANARY}",
        f"https://ada:{CANARY}@example.org/root",
    ],
)
def test_a_repository_with_credentials_in_its_url_is_refused_and_not_repeated(
    url: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        open_backend(url, relative_to=tmp_path)
    assert CANARY not in str(caught.value)
    assert "Credentials are taken from the environment" in str(caught.value)


def test_such_a_url_in_the_configuration_is_not_repeated_either(project: ProjectDirectory) -> None:
    project.write("replicate.yaml", f"repository: s3://ada:{CANARY}@bucket/root\n")
    done = project.cli("-v", "ls", expect=2)
    assert CANARY not in done.stdout + done.stderr


@pytest.mark.parametrize("status", ["403 Forbidden", "400 Bad Request", "500 Oops", "301 Moved"])
@pytest.mark.parametrize(
    "body",
    [
        f"<Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>{CANARY}</AWSAccessKeyId>"
        f"<StringToSign>AWS4 {CANARY}</StringToSign></Error>",
        f"<Error><Code>ExpiredToken</Code><Token-0>{CANARY}</Token-0></Error>",
        f"<Error><Code>InvalidAccessKeyId</Code><Message>{CANARY}</Message></Error>",
        f"Server failed to authenticate. sig={CANARY}",
        "",
    ],
)
def test_no_error_of_a_storage_repeats_what_was_sent(status: str, body: str) -> None:
    """A server may echo what it was sent, and a client the URL that it asked."""
    url = f"http://ada:{CANARY}@127.0.0.1/bucket/key?X-Amz-Security-Token={CANARY}"
    for text in (
        f"Generic S3 error: Client error with status {status}: {body}",
        f"Error performing GET {url} in 2ms - Server returned non-2xx status: {status}: {body}",
        f"Error performing PUT {url}: HTTP error: error sending request: {body}",
        f"External AWS credential provider: {CANARY}: {body}",
    ):
        error = storage_error("read", "s3://bucket", "key", OSError(text))
        assert CANARY not in repr(error) + str(error)


def test_what_the_variables_of_a_cloud_say_is_not_shown_with_the_settings() -> None:
    said = f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={CANARY}"
    settings = cloud_settings({"AZURE_STORAGE_CONNECTION_STRING": said})
    assert CANARY not in repr(settings)
