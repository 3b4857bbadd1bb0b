"""Files of this appliance are found by their path on any host; nothing is loaded from other servers."""

from __future__ import annotations

import pytest

from appliance.ui.markup import figure, gallery
from appliance.ui.media import image_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://here.example/outputs/1/a.png", "./outputs/1/a.png"),
        ("http://another.name:5000/outputs/1/a.webp", "./outputs/1/a.webp"),
        ("https://here.example/outputs/1/a.svg", "./outputs/1/a.svg"),
        ("data:image/png;base64,AA==", "data:image/png;base64,AA=="),
        ("https://here.example/outputs/1/a.wav", None),
        ("https://elsewhere.example/a.png", None),
        ("data:text/html,x", None),
        ("an image at /outputs/1/a.png", None),
        ("http://[", None),
        ("", None),
    ],
)
def test_images_of_this_appliance_and_in_data_are_shown(url: str, shown: str | None) -> None:
    assert image_url(url) == shown


def test_a_file_keeps_its_name_and_one_without_gets_a_number() -> None:
    assert 'download="a b.tar"' in figure("https://here.example/outputs/1/a%20b.tar")
    assert 'download="file 3"' in figure("data:application/zip;base64,AA==", 3)


def test_data_opens_no_page() -> None:
    assert "target=" in figure("https://here.example/outputs/1/a.png")
    assert "target=" not in figure("data:image/png;base64,AA==")


def test_nothing_makes_no_gallery() -> None:
    assert gallery([figure(""), figure("https://elsewhere.example/a.png")]) == ""
