"""Passwords in addresses."""

import pytest

from lqray.experiment.secrets import masked


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql+psycopg://u:secret@db:5432/x", "postgresql+psycopg://u:***@db:5432/x"),
        ('tracking: {uri: "http://u:s3cr/et@x@host"}\nname: a@b', 'tracking: {uri: "http://u:***@host"}\nname: a@b'),
        ("a redis://:secret@host and https://u:other@host/p", "a redis://:***@host and https://u:***@host/p"),
        ("http://host:5000/a", "http://host:5000/a"),
        ("sqlite:////tmp/a:b.db", "sqlite:////tmp/a:b.db"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("https://user@host", "https://user@host"),
    ],
)
def test_passwords_are_masked_and_nothing_else(text, shown):
    assert masked(text) == shown
    assert masked(shown) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://h/p?a=1&access_token=hidden&b=2", "https://h/p?a=1&access_token=***&b=2"),
        ("s3 says: https://b.s3/x?X-Amz-Signature=hidden", "s3 says: https://b.s3/x?X-Amz-Signature=***"),
    ],
)
def test_keys_in_queries_are_masked(text, shown):
    assert masked(text) == shown
