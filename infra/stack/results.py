"""Where Prefect keeps results while the stack is up: the object store."""

from __future__ import annotations

from typing import Any

from infra.settings import RESULT_STORAGE, Settings


def prepare_results(settings: Settings) -> None:
    """Tell the Prefect server of the bucket for results.

    The block holds no key: clients have it in ``AWS_*`` variables.
    """
    if settings.object_store is None:
        return
    from prefect.filesystems import RemoteFileSystem

    storage: Any = RemoteFileSystem(basepath=f"s3://{settings.object_store.buckets.results}/results")
    storage.save(RESULT_STORAGE.partition("/")[2], overwrite=True)
