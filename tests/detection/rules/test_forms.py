"""Forms of known attacks, each as a line of an access log: which the rules name, and which they are known to miss."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import pytest

from detection.detection_settings import RuleText
from detection.formats.kinds import parse_each_by_own_kind
from detection.rules.rule_matching import RuleSet
from detection.sessions.intake import match_rules

RULES = RuleSet.compile([RuleText("builtin", (files("detection") / "rulepack.toml").read_text("utf-8"))])
DOCS = Path(__file__).parents[3] / "docs" / "rules.md"
LINE = '203.0.113.9 - {user} [28/Oct/2025:08:00:00 +0000] "GET {target} HTTP/1.1" 200 450 "{referrer}" "{agent}"'
PLAIN = {"user": "-", "target": "/", "referrer": "-", "agent": "Mozilla/5.0"}


@dataclass(frozen=True)
class Form:
    attack_type: str
    field: str
    limit: str
    name: str
    text: str

    def line(self) -> bytes:
        text = self.text.replace("<4096 a>", "a" * 4096)
        return LINE.format(**PLAIN | {self.field: text}).encode()


def forms() -> list[Form]:
    rows = (Path(__file__).parent / "attack_forms.tsv").read_text("utf-8").splitlines()
    return [Form(*row.split("\t")) for row in rows if not row.startswith("#")]


def types(line: bytes) -> set[str]:
    """The types of attack that the whole way from line to rules names."""
    found = set()
    for _, fields in parse_each_by_own_kind("access", [line], clock=1.76e9):
        hits, _, _ = match_rules(RULES, fields, [line])
        found |= {RULES.rules[rule].attack_type for rule in hits.rules.tolist()}
    return found


def test_the_list_holds_at_least_125_forms_each_under_a_name_of_its_own() -> None:
    names = [form.name for form in forms()]

    assert len(names) >= 125
    assert len(set(names)) == len(names)
    assert {form.field for form in forms()} == PLAIN.keys()


def test_rules_name_every_form_but_those_of_the_documented_limits() -> None:
    missed = {form.name for form in forms() if form.attack_type not in types(form.line())}

    assert missed == {form.name for form in forms() if form.limit != "-"}
    assert len(forms()) - len(missed) >= 118


def test_each_limit_is_named_in_the_documentation_and_each_named_one_has_a_form() -> None:
    limits = DOCS.read_text("utf-8").partition("## Known limits\n")[2].partition("\n## ")[0]
    named = [line[4:].partition("**")[0] for line in limits.splitlines() if line.startswith("- **")]

    assert sorted(named) == sorted({form.limit for form in forms()} - {"-"})


@pytest.mark.parametrize(
    "parts",
    [
        {"user": "o'brien"},
        {"user": "rock'n'roll"},
        {"user": "d'or"},
        {"user": "union.select"},
        {"agent": 'Mozilla/5.0 (it\'s a \\"test\\"; and more) like=Gecko'},
        {"agent": "Hosted by O'Neil and Sons (site=x)"},
        {"agent": 'Mozilla/5.0" "203.0.113.7, 10.0.0.1" rt=0.004 uct="0.000" [default-hydra-80] "nikto.example'},
        {"referrer": "http://x/?q=union+select+committee"},
        {"referrer": "http://x/?q='red'+and+'blue'"},
        {"target": r"/files/\new\users\report.txt"},
        {"target": "/search?q=minus+select+items"},
        {"target": "/search?q=everything+except+select+brands"},
        {"target": "/search?q=credit+union+table+tennis"},
        {"target": "/note?text=one%0a%23two%0athree+--+four%0afive"},
        {"target": "/x?t=100%25252525+cotton"},
    ],
)
def test_harmless_neighbours_of_those_forms_stay_silent(parts: dict[str, str]) -> None:
    assert types(LINE.format(**PLAIN | parts).encode()) == set()
