"""The object store, through boto3: buckets, objects and their versions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from infra.errors import ServerError, StoreError
from infra.references import Reference
from infra.settings import ObjectStore as ObjectStoreSettings


class StoredObject(Reference):
    """One version of one object.

    Attributes
    ----------
    bucket, key : str
    version : str
        "null" in a bucket without versions.
    size : int
    latest : bool
        Whether this is what one reads without naming a version.
    deleted : bool
        Whether this is a mark that the object was deleted, not bytes.
    """

    bucket: str
    key: str
    version: str
    size: int = 0
    latest: bool = True
    deleted: bool = False


class ObjectStore:
    """The S3-compatible store that the settings name.

    Parameters
    ----------
    settings : infra.settings.ObjectStore
    """

    def __init__(self, settings: ObjectStoreSettings) -> None:
        self.settings = settings
        self.buckets = settings.buckets

    @cached_property
    def client(self) -> Any:
        """The boto3 client, with credentials of its own: what AWS variables say elsewhere does not matter."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.settings.endpoint,
            region_name=self.settings.region,
            aws_access_key_id=self.settings.access_key,
            aws_secret_access_key=self.settings.secret_key.get_secret_value(),
            config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 5, "mode": "standard"}),
        )

    def prepare(self) -> None:
        """Make the buckets that are missing; data and artifacts keep old versions of their objects."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            present = {bucket["Name"] for bucket in self.client.list_buckets()["Buckets"]}
            for bucket in (self.buckets.data, self.buckets.artifacts, self.buckets.results):
                if bucket not in present:
                    self.client.create_bucket(Bucket=bucket)
            for bucket in (self.buckets.data, self.buckets.artifacts):
                self.client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        except (BotoCoreError, ClientError) as error:
            raise ServerError(
                f"The object store at {self.settings.endpoint} did not make its buckets: {error}. "
                "See `clearwell logs objects`."
            ) from error

    def read(self, bucket: str, key: str, version: str | None = None) -> bytes:
        """Bytes of an object.

        Raises
        ------
        StoreError
            If there is no such object.
        """
        from botocore.exceptions import ClientError

        named = {"VersionId": version} if version else {}
        try:
            return bytes(self.client.get_object(Bucket=bucket, Key=key, **named)["Body"].read())
        except ClientError as error:
            raise StoreError(
                f"The object store does not hold {bucket}/{key}: {error}.", bucket=bucket, key=key
            ) from None

    def write(self, bucket: str, key: str, content: bytes) -> None:
        """Put an object."""
        self.client.put_object(Bucket=bucket, Key=key, Body=content)

    def keys(self, bucket: str, prefix: str = "") -> Iterator[str]:
        """Keys of the objects that are there now."""
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", ()):
                yield item["Key"]

    def versions(self, bucket: str, prefix: str = "") -> Iterator[StoredObject]:
        """Every version of every object, marks of deletion included."""
        for page in self.client.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=prefix):
            for kind in ("Versions", "DeleteMarkers"):
                for item in page.get(kind, ()):
                    yield StoredObject(
                        bucket=bucket,
                        key=item["Key"],
                        version=item["VersionId"],
                        size=item.get("Size", 0),
                        latest=item["IsLatest"],
                        deleted=kind == "DeleteMarkers",
                    )

    def purge(self, bucket: str, key: str) -> int:
        """Delete an object with all its versions and marks, so that no bytes remain; returns how many."""
        found = [stored for stored in self.versions(bucket, key) if stored.key == key]
        for stored in found:
            self.client.delete_object(Bucket=bucket, Key=key, VersionId=stored.version)
        return len(found)
