"""Which unpacked images no model uses."""

from __future__ import annotations

from pathlib import Path

from appliance.adding.unused import delete_unused, unused
from appliance.config import Config, ImageSource
from appliance.weights import cog_image


def test_an_image_is_used_if_a_model_names_its_digest_or_a_tag_that_leads_to_it(tmp_path: Path) -> None:
    tag, digest = ImageSource(image="r8.im/a/b:v1"), ImageSource(image=f"r8.im/a/c@sha256:{'0' * 64}")
    root = cog_image.root(tmp_path)
    for name in ("1111-b", "2222-b", cog_image.folder(tmp_path, digest).name):
        (root / name / "root").mkdir(parents=True)
        (root / name / "root" / "file").write_text("12345")
    cog_image.folder(tmp_path, tag).symlink_to("1111-b")
    (root / "tag-x").symlink_to("2222-b")
    models = [
        {"name": f"a/{number}", "kind": "cog", "source": {"image": source.image}}
        for number, source in enumerate((tag, digest))
    ]
    config = Config.model_validate({"code": {"cog": True}, "models": models})
    found = unused(tmp_path, lambda: [config])
    assert [(each.path.name, each.size) for each in found] == [("2222-b", 5), ("tag-x", 0)]
    paths = [each.path for each in found]
    assert delete_unused(tmp_path, lambda: [config], [*paths, cog_image.folder(tmp_path, digest)]) == found
    assert len(list(root.iterdir())) == 3
