"""Rules files: what is accepted, and that every refusal names file, rule and remedy."""

import pytest

from detection.detection_settings import RuleText
from detection.rules.rule_files import RuleError, read_rules
from detection.rules.rule_matching import RuleSet

GOOD = """
[[rule]]
name = "our-admin"
type = "probe"
severity = "low"
confidence = 0.6
field = "target"
about = "nobody outside asks for this"
pattern = '''^/our-admin\\b'''
unless = '''token=ours'''
tests.match = ["/our-admin/", "/OUR%2Dadmin?x=1"]
tests.silent = ["/our-administration", "/our-admin?token=ours"]
"""


def test_a_good_file_gives_its_rules() -> None:
    (rule,) = read_rules([RuleText("my.toml", GOOD)])

    assert (rule.name, rule.attack_type, rule.severity, rule.confidence) == ("our-admin", "probe", "low", 0.6)
    assert rule.source == "my.toml"
    assert rule.patterns == (r"^/our-admin\b",)
    assert RuleSet.compile([RuleText("my.toml", GOOD)]).rules == (rule,)


def test_files_add_up_in_order_and_a_later_one_can_disable_a_rule() -> None:
    other = GOOD.replace("our-admin", "our-other")
    both = read_rules([RuleText("a", GOOD), RuleText("b", other)])
    one = read_rules([RuleText("a", GOOD), RuleText("b", 'disable = ["our-admin"]\n' + other)])

    assert [rule.name for rule in both] == ["our-admin", "our-other"]
    assert [rule.name for rule in one] == ["our-other"]


def test_a_disabled_rule_can_be_replaced_by_one_of_the_same_name() -> None:
    mine = 'disable = ["our-admin"]\n' + GOOD.replace('severity = "low"', 'severity = "high"')

    (rule,) = read_rules([RuleText("a", GOOD), RuleText("b", mine)])

    assert (rule.severity, rule.source) == ("high", "b")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("unless =", "unles =", r"my.toml: rule 'our-admin': unknown key 'unles' \(did you mean 'unless'\?\)"),
        (
            'severity = "low"',
            'severity = "bad"',
            "rule 'our-admin': severity must be one of low, medium, high, critical",
        ),
        ('severity = "low"\n', "", "rule 'our-admin': add severity ="),
        ('name = "our-admin"\n', "", "my.toml: rule number 1: add name ="),
        ('name = "our-admin"', 'name = "Our Admin"', "name may hold only lower-case letters"),
        ("confidence = 0.6", "confidence = 0.2", "confidence must be a number from 0.5 to 1, not 0.2"),
        ("confidence = 0.6", "confidence = true", "confidence must be a number"),
        ("confidence = 0.6", "confidence = nan", "confidence must be a number"),
        ('field = "target"', 'field = "body"', "field must be one of target, agent, message, line"),
        ("pattern = '''^/our-admin\\b'''\n", "", "give either pattern"),
        ("unless = ", "any = ['''x''']\nunless = ", "give either pattern"),
        ("pattern = '''^/our-admin\\b'''", "any = []", "empty pattern would match everything"),
        ("tests.match = ", "# ", "add tests.match"),
        ("tests.silent = [", "tests.silence = [", "unknown key 'silence'"),
        ('tests.match = ["/our-admin/", ', "tests.match = [3, ", "tests: match must be a list of texts"),
        ("[[rule]]", "[rule]", "begin every rule with a line"),
        ("[[rule]]", "[[rules]]", r"unknown key 'rules' \(did you mean 'rule'\?\)"),
        ("[[rule]]", "[[rule]", "my.toml: not valid TOML"),
        ("[[rule]]", 'disable = ["our-adm"]\n[[rule]]', "disable: no earlier file has a rule 'our-adm'"),
    ],
)
def test_a_faulty_file_is_refused_with_the_place_and_the_remedy(old: str, new: str, said: str) -> None:
    text = GOOD.replace(old, new)
    assert text != GOOD

    with pytest.raises(RuleError, match=said):
        read_rules([RuleText("my.toml", text)])


def test_two_rules_of_one_name_are_refused_naming_the_first_file() -> None:
    with pytest.raises(RuleError, match=r"b: rule 'our-admin': a already has a rule of this name.*disable"):
        read_rules([RuleText("a", GOOD), RuleText("b", GOOD)])


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(?=x)y", "is not a usable RE2 pattern: "),
        (r"(a)\1", "is not a usable RE2 pattern: "),
        ("a)|(b", "is not a usable RE2 pattern: "),
        ("x*", "also matches nothing at all"),
        ("(?:a{1000}){1000}", "is not a usable RE2 pattern: "),
    ],
)
def test_a_pattern_that_cannot_work_is_refused(pattern: str, said: str) -> None:
    text = GOOD.replace(r"^/our-admin\b", pattern)

    with pytest.raises(RuleError, match="my.toml: rule 'our-admin': pattern .*" + said):
        RuleSet.compile([RuleText("my.toml", text)])


def test_a_rule_that_fails_its_own_tests_is_refused() -> None:
    misses = GOOD.replace('"/our-admin/"', '"/their-admin/"')
    hits = GOOD.replace('"/our-administration"', '"/our%2dadmin"')

    with pytest.raises(RuleError, match=r"rule 'our-admin': tests.match number 1 should match and does not: '/their"):
        RuleSet.compile([RuleText("my.toml", misses)])
    with pytest.raises(RuleError, match=r"tests.silent number 1 should stay silent and matches: .*sees '/our-admin'"):
        RuleSet.compile([RuleText("my.toml", hits)])
