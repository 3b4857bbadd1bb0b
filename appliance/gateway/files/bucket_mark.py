"""The object in the bucket of ``files.s3`` that says which appliance may use the prefix.

Its content is a random id, which is also in the database. So an appliance whose ``files.s3.url`` was changed
to another bucket, or to a prefix of another appliance, notices this before it uploads or deletes objects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from appliance.domain.errors import ObjectNotFound

if TYPE_CHECKING:
    from appliance.gateway.files.bucket import Bucket

MARK: Final = ".appliance"
_LONGEST: Final = 200  # bytes that are read


async def read(bucket: Bucket) -> str | None:
    """Return the id in the bucket, or None if there is no such object.

    Raises:
        BucketUnavailable: the object cannot be read.
    """

    def content() -> str | None:
        try:
            file = bucket.open(MARK)
        except ObjectNotFound:
            return None
        return file.read(_LONGEST).decode(errors="replace").strip()

    return await bucket.run(content)


def problem(url: str, found: str | None, expected: str | None, *, used: bool) -> str | None:
    """Return why the prefix must not be used, or None.

    Args:
        url: the URL of the bucket and the prefix.
        found: the id in the bucket.
        expected: the id in the database.
        used: whether the database has objects in a bucket.
    """
    if found == expected or (found is None and not used):
        return None
    if found is None:
        reason = f"has no object {MARK}, so it is not the bucket that has the files of this appliance"
    else:
        reason = f"is used by another appliance, as its object {MARK} says"
    change = (
        "correct files.s3.url in models.yaml and restart; or, if the bucket is the right one, write "
        f"{expected} to its object {MARK}"
    )
    return f"{url} {reason}: {change if used else 'set files.s3.url in models.yaml to another prefix'}"
