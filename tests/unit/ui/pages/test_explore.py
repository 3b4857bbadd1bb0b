"""The cards of models: their images and states, and the text in their place."""

from __future__ import annotations

from typing import Any

from appliance.protocols.admin_types import ModelNotServed, ModelStatus
from appliance.protocols.response_types import ModelResponse
from appliance.ui.pages import explore
from tests.support.response_examples import completed

MODEL: dict[str, Any] = {
    "owner": "test",
    "name": "shapes",
    "description": "Draws <b>shapes</b>.",
    "run_count": 1234,
    "cover_image_url": None,
    "default_example": None,
}


def card(model: dict[str, Any], state: dict[str, Any] | None = None) -> str:
    states = {} if state is None else {"test/shapes": completed(ModelStatus, state)}
    return explore.cards_of([completed(ModelResponse, model)], states, narrowed=False)


def test_a_cover_is_the_configured_image_or_the_image_of_an_example_or_a_colour() -> None:
    made = {"output": ["http://x/outputs/1/a.txt", "http://x/outputs/1/b.png"]}
    assert 'src="./outputs/1/b.png"' in card({**MODEL, "default_example": made})
    configured = {**MODEL, "default_example": made, "cover_image_url": "https://example.org/c.png"}
    assert 'src="https://example.org/c.png"' in card(configured)
    for example in (None, {"output": None}, {"output": "https://elsewhere.example/a.png"}):
        assert "<img" not in card({**MODEL, "default_example": example})


def test_a_cover_without_an_image_is_the_text_of_an_example() -> None:
    for output in ("Ahoy <b>", ["Ahoy", " <b>"]):
        assert "<span>Ahoy &lt;b&gt;</span>" in card({**MODEL, "default_example": {"output": output}})
    for none in (None, {"score": 1}, [1.5], "http://x/outputs/1/a.wav"):
        assert "quote" not in card({**MODEL, "default_example": {"output": none}})


def test_a_card_says_what_its_model_does_and_nothing_in_it_is_html() -> None:
    state = {"state": "loading", "kind": "diffusers", "loading_for": 3.0, "load_seconds": 9.6, "queued": 0}
    said = card(MODEL, state)
    assert "loading, 3 s of about 10" in said
    assert "1,234 runs" in said
    assert "&lt;b&gt;shapes" in said


def test_a_model_that_cannot_be_served_has_a_card_with_the_reason() -> None:
    not_served = [ModelNotServed(name="test/broken", problem="its <b>header</b> is damaged")]
    made = explore.cards_of([], {}, not_served, narrowed=False)
    for said in ("test/broken", "not served", "its &lt;b&gt;header&lt;/b&gt; is damaged"):
        assert said in made


def test_an_empty_list_says_what_to_do() -> None:
    assert "models.yaml" in explore.cards_of([], {}, narrowed=False)
    assert "other words" in explore.cards_of([], {}, narrowed=True)
