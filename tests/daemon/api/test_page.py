"""The page: its own files only, within its content security policy, and log text never becomes markup."""

import re
from importlib.resources import files

from daemon.api.app import create_app
from tests.daemon.fake_control import FakeControl

FOLDER = files("daemon.api")
HTML, CSS = ((FOLDER / f"page.{kind}").read_text("utf-8") for kind in ("html", "css"))
JS = "\n".join((FOLDER / name).read_text("utf-8") for name in ("page.js", "incidents.js"))


async def test_everything_the_page_loads_is_served_beside_it() -> None:
    client = create_app(FakeControl(), hosts=(), token=None).test_client()
    links = set(re.findall(r'(?:href|src)="([^"]+)"', HTML)) - {"data:,"}
    assert links == {"page.css", "page.js", "incidents.js", "status"}
    asked = set(re.findall(r'(?:fetch|read|EventSource)\(["`]([a-z]+)', JS))
    assert asked == {"status", "anomalies", "incidents", "feedback", "events"}
    for path in links | asked:
        for prefix in ("/", "/anomaly/"):
            answer = await client.head(prefix + path, headers={"Host": "localhost"})
            assert answer.status_code == 200, prefix + path


async def test_an_incidents_first_alert_is_asked_for_by_its_id() -> None:
    client = create_app(FakeControl(), hosts=(), token=None).test_client()
    [path] = re.findall(r"read\(`(anomalies/)\$\{item\.incident\.id\}`\)", JS)
    assert (await client.get(f"/{path}1207.1", headers={"Host": "localhost"})).status_code == 200


async def test_without_its_slash_the_prefix_leads_to_the_page() -> None:
    client = create_app(FakeControl(), hosts=(), token=None).test_client()
    answer = await client.get("/anomaly", headers={"Host": "localhost"})
    assert answer.status_code == 308 and answer.headers["Location"].endswith("/anomaly/")


def test_nothing_comes_from_elsewhere_or_needs_more_than_the_policy_allows() -> None:
    for text in (HTML, CSS, JS):
        assert "://" not in text and "@import" not in text and "url(" not in text
    assert not re.search(r"<style|<script(?![^>]*src=)|\sstyle=|\son\w+=", HTML)  # inline: the policy forbids it


def test_text_is_never_parsed_as_markup() -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\(", JS)


def test_what_the_page_changes_it_changes_by_post() -> None:
    calls = re.findall(r"fetch\((.+)", JS)
    assert len(calls) == 3 and [call for call in calls if "path" in call and "POST" in call] == [
        'path, { method: "POST", body, headers: authorization(), signal: AbortSignal.timeout(TIMEOUT_MS) });'
    ]


def test_the_token_goes_from_the_fragment_into_a_header_and_nowhere_else() -> None:
    assert JS.index("takeToken();") < JS.index("\npoll();"), "taken, and off the address, before anything is asked"
    assert re.findall(r"history\.replaceState\(.+", JS) == [
        'history.replaceState(null, "", location.pathname + location.search);'
    ]
    assert set(re.findall(r"(?:local|session)Storage\.\w+\(TOKEN_KEY|\w+Storage\b(?!\.\w+\(TOKEN_KEY)", JS)) == {
        f"sessionStorage.{each}Item(TOKEN_KEY" for each in ("get", "set", "remove")
    }
    assert JS.count("Bearer") == 1 and "?token" not in JS and "console." not in JS and "vigilctl page" in HTML


def test_every_element_the_script_fills_is_on_the_page() -> None:
    named = set(re.findall(r'(?:\$|put)\("([a-z-]+)"', JS))
    assert named and named <= set(re.findall(r'id="([a-z-]+)"', HTML))
