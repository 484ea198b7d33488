from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_fleet.rollout.query import QueryError, Target, compile_query, select

FLEET = [
    Target("cam-1", "jetson", "kws:1", "aarch64", tags={"site": "lab", "ring": "0"}, online=True),
    Target("cam-2", "jetson", "kws:1", "aarch64", tags={"site": "roof"}),
    Target("nuc-1", "intel-nuc", "kws:2", "x86_64", online=True, emulated=True),
    Target('we"ird', "raspberry-pi-5"),
]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", "cam-1 cam-2 nuc-1 we"),
        ("all", "cam-1 cam-2 nuc-1 we"),
        ('profile == "jetson"', "cam-1 cam-2"),
        ("profile == jetson and tag:site == lab", "cam-1"),
        ("profile != jetson", "nuc-1 we"),
        ('id ~ "cam-*"', "cam-1 cam-2"),
        ('id !~ "cam-?"', "nuc-1 we"),
        ("not id in (\"cam-1\", 'cam-2')", "nuc-1 we"),
        ("tag:site", "cam-1 cam-2"),
        ("not tag:site", "nuc-1 we"),
        ("tag:site != lab", "cam-2 nuc-1 we"),
        ("tag:site in (lab, roof)", "cam-1 cam-2"),
        ("online and not emulated", "cam-1"),
        ("online or profile == raspberry-pi-5 and tag:site", "cam-1 nuc-1"),
        ("(online or profile == raspberry-pi-5) and not tag:site", "nuc-1 we"),
        ("not not online", "cam-1 nuc-1"),
        ("release == kws:2", "nuc-1"),
        (r'id == "we\"ird"', "we"),
        ("architecture ~ '[ax]*'", "cam-1 cam-2 nuc-1"),
    ],
)
def test_matches(query: str, expected: str) -> None:
    assert [device.id.split('"')[0] for device in select(query, FLEET)] == expected.split()


@pytest.mark.parametrize(
    ("query", "column", "what"),
    [
        ("profle == 1", 1, "unknown field 'profle'"),
        ("profile = jetson", 9, "unexpected '='"),
        ("profile jetson", 9, "expected ==, !=, ~, !~ or `in`"),
        ("profile ==", 11, "expected a value"),
        ("profile == )", 12, "expected a value, got ')'"),
        ('id == "cam', 7, "without its closing quote"),
        ("(online", 8, "expected `)`"),
        ("online)", 7, "expected `and`, `or` or the end"),
        ("online and", 11, "it ends here"),
        ("id in (a b)", 10, "expected `,` or `)`"),
        ("id in a", 7, "expected `(`"),
        ("tag: == a", 1, "a tag without its name"),
        ("online online", 8, "got 'online'"),
    ],
)
def test_mistakes_name_the_column(query: str, column: int, what: str) -> None:
    with pytest.raises(QueryError) as caught:
        compile_query(query)
    assert caught.value.message.startswith(f"target query, column {column}: ")
    assert what in caught.value.message


def test_depth_and_length_are_bounded() -> None:
    with pytest.raises(QueryError, match="nested deeper"):
        compile_query("(" * 500 + "online" + ")" * 500)
    with pytest.raises(QueryError, match="nested deeper"):
        compile_query("not " * 400 + "online")
    with pytest.raises(QueryError, match="more than the 2000"):
        compile_query("online or " * 300 + "online")
    assert select(" or ".join(["online"] * 100), FLEET) == select("online", FLEET)


@given(st.text(max_size=200))
def test_any_text_is_a_query_or_a_query_error(text: str) -> None:
    try:
        chosen = select(text, FLEET)
    except QueryError as error:
        assert "\n" not in error.message
    else:
        assert set(map(id, chosen)) <= set(map(id, FLEET))


WORDS = r"""id profile tag:site online all and or not in ( ) , == != ~ !~ "a" ' lab jetson [z-a] [ ** \\ x"""
words = st.sampled_from(WORDS.split())


@given(st.lists(words, max_size=12).map(" ".join))
def test_any_words_are_a_query_or_a_query_error(text: str) -> None:
    try:
        chosen = select(text, FLEET)
    except QueryError as error:
        assert "column" in error.message
    else:
        negated = select(f"not ({text})", FLEET) if text.strip() else []
        assert len(chosen) + len(negated) == len(FLEET)


@given(st.text(min_size=1, max_size=20), st.text(max_size=20))
def test_a_quoted_value_matches_itself_only(value: str, other: str) -> None:
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    devices = [Target(value), Target(other)]
    assert select(f'id == "{quoted}"', devices) == [d for d in devices if d.id == value]
