"""Places: what a text names, and what of it may be shown."""

import pickle

import pytest

from data_shards.places import Place, redact, to_place

SECRET = "pa:ss'w$rd"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        (f"http://bob:{SECRET}@host:80/a/b", "http://host:80/a/b"),
        (f"https://{SECRET}@host", "https://host"),
        (f"https://host/a?sig={SECRET.replace(chr(39), '')}", "https://host/a"),
        (f"read https://b:{SECRET}@h/x, then s3://bucket/y?v=pa:ss", "read https://h/x, then s3://bucket/y"),
        (f"simplecache::http://b:{SECRET}@h/x", "simplecache::http://h/x"),
        ("http://a@b:pa:ss@host/x", "http://host/x"),
        ("http://host/a@b", "http://host/a@b"),
        ("url='http://b:pa:ss@h/x?pa:ss'", "url='http://h/x'"),
        ("https://host/a#pa:ss", "https://host/a"),
        ("abfs://box@account.dfs.core.windows.net/x", "abfs://box@account.dfs.core.windows.net/x"),
        ("s3://AKIA:sec/ret@bucket/set", "s3://bucket/set"),
        ("http://u:se#cr?et@h/x", "http://h/x"),
        ("http://host:80/a@b", "http://host:80/a@b"),
        ("http://[::1]:80/a@b", "http://[::1]:80/a@b"),
        ("no url: bob@host?", "no url: bob@host?"),
        ("s3://bucket/set", "s3://bucket/set"),
    ],
)
def test_a_text_is_redacted(text, redacted):
    assert redact(text) == redacted
    assert redact(redacted) == redacted


def test_places(tmp_path):
    url = to_place(f"http://bob:{SECRET}@host/set")
    for shown in (str(url), f"{url}", repr(url), repr([url]), repr({"place": url})):
        assert SECRET not in shown
    assert url.address == f"http://bob:{SECRET}@host/set" == pickle.loads(pickle.dumps(url)).address
    assert url.is_url
    assert url.has_secret
    assert url.absolute() is url
    for given in ("a/b", f"file://{tmp_path}", tmp_path, Place("x")):
        place = to_place(given)
        assert not place.is_url
        assert not place.has_secret
        assert place.absolute().path.is_absolute()
        assert "file://" not in str(place)
    for wrong, words in (("", "is empty"), (" ", "is empty"), ("http:/host/set", "write two"), ("s3:/b", "write two")):
        with pytest.raises(ValueError, match=words):
            to_place(wrong)
