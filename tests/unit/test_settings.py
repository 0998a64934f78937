"""Where settings come from, which wins, and that each mistake gets one clear message that names it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from scheduler.errors import ConfigError
from scheduler.settings import (
    AssembleSettings,
    BatchSettings,
    BreakerSettings,
    EndpointSettings,
    Example,
    FromVariable,
    PostSettings,
    RagSettings,
    RateSettings,
    RouteSettings,
    Settings,
    load_settings,
)

ECHO = '[[routes.chat.endpoints]]\nbackend = "echo"\n'
DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def load(toml: str | None = None, /, **environ: str) -> Settings:
        if toml is not None:
            (tmp_path / "config.toml").write_text(toml)
            environ["SCHEDULER_CONFIG"] = str(tmp_path / "config.toml")
        return load_settings(environ=environ)

    return load


def test_without_configuration_there_is_the_echo_route(load: Any) -> None:
    settings = load()
    assert settings == Settings()
    assert list(settings.routes) == ["echo"]
    assert settings.redis_url.get_secret_value() == "redis://localhost:6379"


def test_what_is_passed_wins_over_environment_over_file_over_default(load: Any, tmp_path: Path) -> None:
    load("lease_s = 20\nmax_running = 7\nqueue = 'file'")
    settings = load_settings(
        tmp_path / "config.toml",
        environ={"SCHEDULER_LEASE_S": "30", "SCHEDULER_QUEUE": "environment"},
        queue="passed",
    )
    assert (settings.queue, settings.lease_s, settings.max_running, settings.drain_s) == ("passed", 30, 7, 30)


def test_file_that_is_passed_wins_over_the_variable(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text("queue = 'one'")
    environ = {"SCHEDULER_CONFIG": str(tmp_path / "missing.toml")}
    assert load_settings(tmp_path / "one.toml", environ=environ).queue == "one"


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({"REDIS_URL": "redis://plain"}, "redis://plain"),
        ({"REDIS_URL": "redis://plain", "SCHEDULER_REDIS_URL": "redis://ours"}, "redis://ours"),
        ({"REDIS_URL": "redis://plain", "SCHEDULER_REDIS_URL": ""}, "redis://plain"),
        ({"REDIS_URL": ""}, "redis://localhost:6379"),
        ({"SCHEDULER_REDIS_URL": "embedded"}, "embedded"),
        ({"SCHEDULER_REDIS_URL": "rediss://host:6380/2"}, "rediss://host:6380/2"),
    ],
)
def test_redis_url_is_ours_else_the_common_one(load: Any, environ: dict[str, str], url: str) -> None:
    assert load(**environ).redis_url.get_secret_value() == url


def test_variables_reach_into_routes_of_the_file(load: Any) -> None:
    settings = load(ECHO, SCHEDULER_ROUTES__CHAT__BATCH__MAX_SIZE="8")
    assert settings.routes["chat"].batch == BatchSettings(max_size=8)
    assert settings.routes["chat"].endpoints[0].backend == "echo"


def test_route_can_be_given_as_json_in_a_variable(load: Any) -> None:
    settings = load(SCHEDULER_ROUTES__CHAT__ENDPOINTS='[{"backend": "vllm", "weight": 2}]')
    assert settings.routes["chat"].endpoints == [EndpointSettings(backend="vllm", weight=2)]


def test_empty_variable_is_one_that_is_not_set(load: Any) -> None:
    assert load(SCHEDULER_DATA_DIR="", SCHEDULER_LEASE_S="") == Settings()


def test_variables_that_kubernetes_sets_for_a_service_are_passed_over(load: Any) -> None:
    service = {"SCHEDULER_PORT": "tcp://10.0.0.1:80", "SCHEDULER_SERVICE_HOST": "10.0.0.1"}
    assert load(**service, SCHEDULER_PORT_80_TCP_ADDR="10.0.0.1") == Settings()


WRONG_VARIABLES = [
    ("SCHEDULER_LEASE_S", "abc", "lease_s: ", "number"),
    ("SCHEDULER_LEASE_S", "0.1", "lease_s: ", "0.5"),
    ("SCHEDULER_LEASE_S", "nan", "lease_s: ", "finite"),
    ("SCHEDULER_DRAIN_S", "inf", "drain_s: ", "finite"),
    ("SCHEDULER_MAX_RUNNING", "1.5", "max_running: ", "give a whole number"),
    ("SCHEDULER_QUEUE", "a b", "queue: ", "give a letter"),
    ("SCHEDULER_QUEUE", "a}", "queue: ", "give a letter"),
    ("SCHEDULER_WHEN_FULL", "drop", "when_full: ", "'reject', 'shed' or 'block'"),
    ("SCHEDULER_REDIS_URL", "http://host", "redis_url: ", "rediss://"),
    ("SCHEDULER_LEASES", "5", "SCHEDULER_LEASES: no such setting", "did you mean SCHEDULER_LEASE_S?"),
    ("SCHEDULER_COLOUR", "red", "SCHEDULER_COLOUR: no such setting", "docs/settings.md"),
    ("SCHEDULER_LEASE_S__X", "5", "SCHEDULER_LEASE_S__X: no such setting", "SCHEDULER_LEASE_S"),
    ("SCHEDULER_ROUTES", "chat", "SCHEDULER_ROUTES: ", "JSON"),
    ("SCHEDULER_ROUTES__CHAT__ENDPOINTS", "[{", "SCHEDULER_ROUTES__CHAT__ENDPOINTS: ", "JSON"),
    ("SCHEDULER_ROUTES__CHAT__BATCH__MAX_SIZE", "8", "routes.chat.endpoints: ", "missing"),
    ("SCHEDULER_CONFIG", "/nowhere/config.toml", "/nowhere/config.toml: cannot be read", "SCHEDULER_CONFIG"),
]


@pytest.mark.parametrize(("variable", "value", "start", "words"), WRONG_VARIABLES)
def test_mistake_in_a_variable_is_told_in_one_line(
    load: Any, variable: str, value: str, start: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(**{variable: value})
    assert str(caught.value).startswith(start)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def route(line: str) -> str:
    return f"[routes.chat]\nendpoints = [{{ backend = 'echo' }}]\n{line}"


WRONG_FILES = [
    ("lease_s = ", "", "is not valid TOML"),
    ("leas_s = 5", "leas_s: no such setting", "did you mean lease_s?"),
    ("lease_s = 'x'", "lease_s: ", "number"),
    ("routes = 5", "routes: ", "give a mapping"),
    ("[routes]", "routes: ", "at least one"),
    ("[routes.chat]", "routes.chat.endpoints: ", "missing"),
    ("[routes.chat]\nendpoints = []", "routes.chat.endpoints: ", "at least one"),
    ("[routes.'a b']\nendpoints = [{ backend = 'echo' }]", "routes.a b: ", "give a letter or a digit"),
    ("[tenants.'a b']", "tenants.a b: ", "give a letter or a digit"),
    ("[tenants.a]\ntokens_per_minute = 100_000_000_000", "tenants.a.tokens_per_minute: ", "1,000,000,000"),
    ("max_running = true", "max_running: ", "a number, not true or false"),
    ("[routes.chat.endpoints]\nbackend = 'x'", "routes.chat.endpoints: ", "[[routes.chat.endpoints]]"),
    (
        "[routes.chat]\nendpoints = [{ backend = 'x', weight = true }]",
        "routes.chat.endpoints.0.weight: ",
        "a number",
    ),
    (
        "[routes.chat]\nendpoints = [{ backend = 'x', model = '' }]",
        "routes.chat.endpoints.0.model: ",
        "at least one",
    ),
    (
        "[routes.chat]\nendpoints = [{ backend = 'x', breaker = { open_s = 1e300 } }]",
        "routes.chat.endpoints.0.breaker.open_s: ",
        "86,400",
    ),
    ("[routes.chat]\nendpoints = [{}]", "routes.chat.endpoints.0.backend: ", "missing"),
    (
        "[routes.chat]\nendpoints = [{ backend = 'x', weigth = 2 }]",
        "routes.chat.endpoints.0.weigth: ",
        "weight?",
    ),
    (
        "[routes.chat]\nendpoints = [{ backend = 'x', timeout_s = inf }]",
        "routes.chat.endpoints.0.timeout_s",
        "finite",
    ),
    (
        "[routes.chat]\nendpoints = [{ backend = 'x', max_in_flight = 0 }]",
        "routes.chat.endpoints.0.max_in",
        "1",
    ),
    (
        "[routes.chat]\nendpoints = [{ backend = 'x', reserved = 'two' }]",
        "routes.chat.endpoints.0.reserved: ",
        '"auto"',
    ),
    (
        "[routes.chat]\nendpoints = [{ backend = 'x', max_in_flight = 2, reserved = 2 }]",
        "routes.chat.endpoints.0.reserved: ",
        "less than max_in_flight, which is 2",
    ),
    (route("batch = { max_size = 0 }"), "routes.chat.batch.max_size: ", "1"),
    (route("rag = { k = 3 }"), "routes.chat.rag.documents: ", "missing"),
    (
        route("post = { redact = ['email', 'name'] }"),
        "routes.chat.post.redact.1: ",
        "'email', 'phone' or 'card'",
    ),
    (route("stages = ['inference', 'stream', 'sing']"), "routes.chat.stages: ", "unknown stage 'sing'"),
    (route("stages = ['stream', 'inference']"), "routes.chat.stages: ", "keep their order"),
    (route("stages = ['inference']"), "routes.chat.stages: ", "cannot be left out"),
]


@pytest.mark.parametrize(("toml", "start", "words"), WRONG_FILES)
def test_mistake_in_the_file_is_told_with_the_file(
    load: Any, tmp_path: Path, toml: str, start: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(toml)
    assert str(caught.value).startswith(start)
    assert words in str(caught.value)
    assert str(tmp_path / "config.toml") in str(caught.value)


def test_all_mistakes_are_told_at_once(load: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        load("lease_s = 0\nmax_running = 0")
    assert "lease_s: " in str(caught.value)
    assert "max_running: " in str(caught.value)


def test_folder_as_configuration_is_a_config_error(load: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(SCHEDULER_CONFIG=str(tmp_path))


@pytest.mark.parametrize("url", ["redis://:s3cret@host", "http://user:s3cret@host"])
def test_password_in_the_url_is_never_shown(load: Any, url: str) -> None:
    try:
        shown = repr(load(SCHEDULER_REDIS_URL=url)) + str(load(SCHEDULER_REDIS_URL=url))
    except ConfigError as error:
        shown = str(error)
    assert "s3cret" not in shown


def test_keys_cannot_be_put_into_the_file(load: Any) -> None:
    with pytest.raises(ConfigError, match="did you mean api_key_env") as caught:
        load("[routes.chat]\nendpoints = [{ backend = 'openai', api_key = 's3cret' }]")
    assert "s3cret" not in str(caught.value)


def test_headers_and_query_are_text_or_name_a_variable(load: Any) -> None:
    extra = 'headers = { X-Team = "a", X-Key = { env = "KEY" } }\nquery = { api-version = "1" }\n'
    settings = load(ECHO + extra)
    endpoint = settings.routes["chat"].endpoints[0]
    assert endpoint.headers["X-Key"] == FromVariable(env="KEY")
    assert endpoint.query["api-version"].get_secret_value() == "1"
    assert settings == load(ECHO + extra)
    assert settings != load(ECHO + extra.replace('"a"', '"b"'))


@pytest.mark.parametrize("setting", ["headers", "query"])
@pytest.mark.parametrize(
    "value", ["5", "true", "['s3cret']", "{ env = 5 }", "{ env = '' }", "{ variable = 's3cret' }", "{}"]
)
def test_header_of_another_form_is_named_and_not_shown(load: Any, setting: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(f"{ECHO}{setting} = {{ X-Key = {value} }}")
    assert f"routes.chat.endpoints.0.{setting}: X-Key is neither text nor" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_header_is_in_no_representation_of_the_settings(load: Any) -> None:
    settings = load(ECHO + 'headers = { X-Key = "s3cret" }\nquery = { key = "s3cret" }')
    assert "s3cret" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().lease_s = 3  # type: ignore[misc]  # frozen: that is what is tested


def test_stages_of_your_own_may_stand_anywhere(load: Any) -> None:
    stages = ["mine.first:Stage", "rag", "inference", "mine.last:Stage", "stream"]
    assert load(route(f"stages = {stages}")).routes["chat"].stages == stages


class TestRevision:
    """The hash of what changes the answer, which `dedup_key="auto"` takes in."""

    BASE = RouteSettings(endpoints=[EndpointSettings(backend="echo")])

    @pytest.mark.parametrize(
        "change",
        [
            {"assemble": AssembleSettings(system="Be brief.")},
            {"assemble": AssembleSettings(examples=[Example(user="a", assistant="b")])},
            {"rag": RagSettings(documents=Path("docs"))},
            {"post": PostSettings(trim=True)},
            {"endpoints": [EndpointSettings(backend="vllm")]},
            {"endpoints": [EndpointSettings(backend="echo", model="other")]},
            {"endpoints": [EndpointSettings(backend="echo", options={"delay_s": 1})]},
        ],
        ids=str,
    )
    def test_changes_with_what_changes_the_answer(self, change: dict[str, Any]) -> None:
        assert self.BASE.model_copy(update=change).revision != self.BASE.revision

    @pytest.mark.parametrize(
        "change",
        [
            {"batch": BatchSettings(max_size=1)},
            {"max_waiting": 5},
            {"endpoints": [EndpointSettings(backend="echo", weight=3, timeout_s=1)]},
        ],
        ids=str,
    )
    def test_stays_with_what_does_not(self, change: dict[str, Any]) -> None:
        assert self.BASE.model_copy(update=change).revision == self.BASE.revision


def test_metadata_counts_where_a_template_or_a_stage_can_see_it() -> None:
    endpoints = [EndpointSettings(backend="echo")]
    assert not RouteSettings(endpoints=endpoints).uses_metadata
    template = AssembleSettings(template="{{ metadata.name }}: {{ prompt }}")
    assert RouteSettings(endpoints=endpoints, assemble=template).uses_metadata
    assert RouteSettings(endpoints=endpoints, stages=["inference", "mine:Stage", "stream"]).uses_metadata


SECTIONS: dict[str, type[BaseModel]] = {
    "Everything": Settings,
    "Routes": RouteSettings,
    "Endpoints": EndpointSettings,
    "Breaker": BreakerSettings,
    "Tenants": RateSettings,
    "Batch": BatchSettings,
    "Rag": RagSettings,
    "Assemble": AssembleSettings,
    "Post": PostSettings,
}


@pytest.mark.parametrize("title", SECTIONS)
def test_document_names_each_setting_and_no_other(title: str) -> None:
    section = re.search(rf"^## {title}\b.*?(?=^## |\Z)", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    assert section, f"docs/settings.md has no section {title}"
    assert set(re.findall(r"^\| `(\w+)` \|", section[0], re.MULTILINE)) == set(SECTIONS[title].model_fields)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_document_gives_the_variable_and_the_default_of(name: str) -> None:
    row = next(line for line in DOCUMENT.read_text().splitlines() if line.startswith(f"| `{name}` |"))
    default = Settings.model_fields[name].default
    assert f"`SCHEDULER_{name.upper()}`" in row
    cell = row.split("|")[2].replace("`", "").replace(",", "").replace("_", "").strip()
    if isinstance(default, bool):
        assert cell == str(default).lower()
    elif isinstance(default, int | float):
        assert float(cell) == default


@pytest.mark.parametrize(
    ("fallbacks", "said"),
    [
        ('["nowhere"]', "routes.chat.fallbacks.0: there is no route 'nowhere'"),
        ('["chat"]', "routes.chat.fallbacks.0: a route cannot be its own fallback"),
        ('["small", "small"]', "routes.chat.fallbacks.1: 'small' is named twice"),
    ],
)
def test_fallbacks_are_other_routes_each_once(load: Any, fallbacks: str, said: str) -> None:
    small = '[[routes.small.endpoints]]\nbackend = "echo"\n'
    with pytest.raises(ConfigError, match=re.escape(said)):
        load(f"[routes.chat]\nfallbacks = {fallbacks}\n{ECHO}{small}")


def test_tenants_have_limits_and_a_star_is_for_the_rest(load: Any) -> None:
    settings = load(
        '[tenants.acme]\nrequests_per_minute = 60\n[tenants."*"]\ntokens_per_minute = 1000\n',
        SCHEDULER_TENANTS__ACME__TOKENS_PER_MINUTE="5",
    )
    assert settings.tenants == {
        "acme": RateSettings(requests_per_minute=60, tokens_per_minute=5),
        "*": RateSettings(tokens_per_minute=1000),
    }


@pytest.mark.parametrize("variable", ["SCHEDULER_ROUTES", "SCHEDULER_TENANTS"])
def test_the_variable_that_is_no_json_is_named(variable: str) -> None:
    with pytest.raises(ConfigError, match=f"{variable}: is not valid JSON"):
        load_settings(environ={variable: "{acme"})
