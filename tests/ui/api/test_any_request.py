"""Whatever a program sends: an answer, or a refusal in OpenAI's shape that calls it its own fault. Never a 5xx."""

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.ui.api.conftest import ECHO

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
ROUTES = {
    "chat/completions": ("ChatRequest", {"messages": [{"role": "user", "content": "Hello"}]}),
    "completions": ("CompletionRequest", {"prompt": "Hello"}),
    "responses": ("ResponsesRequest", {"input": "Hello"}),
}


@pytest.fixture(scope="module")
def fields(served):
    """Route -> the fields that its published description names."""
    schemas = httpx.get(f"{served.base}/openapi.json").json()["components"]["schemas"]
    return {route: sorted(schemas[name]["properties"]) for route, (name, _) in ROUTES.items()}


@pytest.mark.parametrize("route", ROUTES)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_of_any_field_is_answered_or_refused(served, fields, route, data):
    names = st.sampled_from([*fields[route], "tools", "n", "logprobs", "response_format"]) | st.text(
        max_size=10
    )
    odd = data.draw(st.dictionaries(names, ANYTHING, min_size=1, max_size=3))
    document = {"model": ECHO, **ROUTES[route][1], **odd}
    answer = httpx.post(f"{served.base}/{route}", json=document, timeout=60)
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert error["type"] == "invalid_request_error"


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=ANYTHING)
def test_any_json_at_all_is_refused_politely(served, document):
    answer = httpx.post(f"{served.base}/chat/completions", json=document, timeout=60)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["message"]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=200))
def test_any_bytes_are_refused_politely(served, body):
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{served.base}/responses", content=body, headers=headers, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
